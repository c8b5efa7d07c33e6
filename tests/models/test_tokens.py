from __future__ import annotations

import copy

import pytest
from helpers import as_users_run_it, bench, bpe_tokenizer, sentence, word_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

import mechmem as mm
from mechmem.models.tokenizing import Tokens, as_prompts

BOS = 0


def _ids(tokenizer, text: str, **options) -> list[int]:
    return list(Tokens(tokenizer, **options).encode(text).rows[0].ids)


class TestBeginningOfSequence:
    @pytest.mark.parametrize("text", ["w1 w2", "<bos> w1 w2", "<bos> <bos> w1 w2"])
    @pytest.mark.parametrize("adds", [True, False])
    def test_there_is_never_more_than_one(self, text, adds) -> None:
        w1, w2 = word_tokenizer().convert_tokens_to_ids(["w1", "w2"])
        assert _ids(word_tokenizer(adds), text, prepend_bos=True) == [BOS, w1, w2]
        assert _ids(word_tokenizer(adds), text, prepend_bos=False) == [w1, w2]
        expected = [BOS, w1, w2] if adds or "<bos>" in text else [w1, w2]
        assert _ids(word_tokenizer(adds), text) == expected

    def test_one_inside_the_text_is_left_alone(self) -> None:
        assert _ids(word_tokenizer(), "w1 <bos> w2").count(BOS) == 2

    def test_a_tokenizer_without_one_works_unless_one_is_asked_for(self) -> None:
        tokenizer = word_tokenizer(adds_bos=False, bos=False)
        assert len(_ids(tokenizer, "w1 w2")) == 2
        assert len(_ids(tokenizer, "w1 w2", prepend_bos=False)) == 2
        with pytest.raises(mm.ModelError, match=r"prepend_bos=True.*no BOS token.*leave"):
            Tokens(tokenizer, prepend_bos=True)

    @settings(max_examples=50, deadline=None)
    @given(st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=20))
    def test_byte_level_text_is_fed_exactly_and_comes_back(self, text) -> None:
        tokenizer = bpe_tokenizer()
        tokens = Tokens(tokenizer)
        ids = tokens.encode(text).rows[0].ids
        assert list(ids) == tokenizer(text)["input_ids"]
        assert tokens.decode(ids) == text


class TestLength:
    def test_a_prompt_of_exactly_the_context_is_taken_and_one_more_is_refused(self) -> None:
        tokens = Tokens(word_tokenizer(), n_ctx=8)
        assert len(tokens.encode(sentence(7)).rows[0].ids) == 8
        with pytest.raises(mm.PromptError, match=r"'long' has 9 tokens.*at most 8\. Shorten"):
            tokens.encode(mm.Prompt(id="long", text=sentence(8)))

    def test_a_limit_set_in_the_tokenizer_cuts_nothing(self) -> None:
        tokenizer = word_tokenizer()
        tokenizer.model_max_length = 4
        tokenizer(sentence(20), truncation=True, max_length=3)  # leaves state in the fast core
        assert len(Tokens(tokenizer).encode(sentence(10)).rows[0].ids) == 11

    def test_a_text_without_tokens_is_refused_by_name(self) -> None:
        with pytest.raises(mm.PromptError, match=r"'blank' has no tokens: its text is ''"):
            Tokens(word_tokenizer(adds_bos=False)).encode(mm.Prompt(id="blank", text=""))

    def test_an_empty_text_after_a_beginning_of_sequence_is_one_token(self) -> None:
        assert _ids(word_tokenizer(), "") == [BOS]


class TestChatTemplate:
    PROMPT = mm.Prompt(
        id="c",
        text="w1 w2",
        spans={"second": (3, 5)},
        chat=mm.Chat(system="w9 w2", assistant_prefix="w7"),
    )

    @pytest.mark.parametrize("adds", [True, False])
    def test_the_template_system_turn_and_prefix_are_fed_with_one_bos(self, adds) -> None:
        tokenizer = word_tokenizer(adds, chat=True)
        words = ["<bos>", "[system]", "w9", "w2", "[user]", "w1", "w2", "[assistant]", "w7"]
        found = Tokens(tokenizer).encode(self.PROMPT).rows[0]
        assert list(found.ids) == tokenizer.convert_tokens_to_ids(words)

    def test_a_span_is_found_in_the_users_turn_and_not_where_its_words_also_stand(self) -> None:
        found = Tokens(word_tokenizer(chat=True)).encode(self.PROMPT).rows[0]
        assert found.spans == {"second": (6,)}
        assert found.straddling == ()

    def test_a_short_text_is_not_looked_for_in_the_template_itself(self) -> None:
        prompt = mm.Prompt(id="a", text="a", spans={"all": (0, 1)}, chat=mm.Chat(system="a a"))
        found = Tokens(word_tokenizer(chat=True)).encode(prompt).rows[0]
        # <bos> [system] a a [user] a [assistant]
        assert found.spans == {"all": (5,)}

    def test_a_tokenizer_without_a_template_is_refused(self) -> None:
        with pytest.raises(mm.PromptError, match=r"'c' asks for a chat template.*remove `chat`"):
            Tokens(word_tokenizer()).encode(self.PROMPT)

    def test_a_template_that_rewrites_the_text_cannot_place_spans(self) -> None:
        tokenizer = word_tokenizer(chat=True)
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
        with pytest.raises(mm.PromptError, match=r"rewrites the text of prompt 'c'.*'second'"):
            Tokens(tokenizer).encode(self.PROMPT)

    def test_the_continuation_follows_the_template_and_prefix(self) -> None:
        tokenizer = word_tokenizer(chat=True)
        assert Tokens(tokenizer).continuation(self.PROMPT, " w3") == (
            tokenizer.convert_tokens_to_ids("w3"),
        )


class TestSpans:
    def test_spans_are_the_tokens_of_their_characters(self) -> None:
        text = "w1 w22 w3 w4"
        prompt = mm.Prompt(id="s", text=text, spans={"two": (3, 9), "one": (0, 2), "part": (4, 5)})
        found = Tokens(word_tokenizer()).encode(prompt).rows[0]
        assert found.spans == {"two": (2, 3), "one": (1,), "part": (2,)}
        assert found.straddling == ("part",)

    def test_a_span_of_white_space_only_is_refused(self) -> None:
        prompt = mm.Prompt(id="s", text="w1  w2", spans={"gap": (2, 4)})
        with pytest.raises(mm.PromptError, match=r"Span 'gap' of prompt 's' covers no token"):
            Tokens(word_tokenizer()).encode(prompt)

    def test_spans_stay_right_when_a_spelled_out_bos_is_dropped_or_kept(self) -> None:
        prompt = mm.Prompt(id="s", text="<bos> w1 w2", spans={"two": (9, 11)})
        for force, place in ((None, 2), (True, 2), (False, 1)):
            found = Tokens(word_tokenizer(), prepend_bos=force).encode(prompt).rows[0]
            assert found.spans == {"two": (place,)}

    @settings(max_examples=80, deadline=None)
    @given(st.data())
    def test_byte_level_spans_cover_exactly_their_characters(self, data) -> None:
        text = data.draw(st.text("the answr1234 é🙂\n", min_size=1, max_size=24))
        start = data.draw(st.integers(0, len(text) - 1))
        end = data.draw(st.integers(start + 1, len(text)))
        tokenizer = bpe_tokenizer()
        prompt = mm.Prompt(id="s", text=text, spans={"cue": (start, end)})
        found = Tokens(tokenizer).encode(prompt).rows[0]
        # By the bytes: which bytes of the text does each token stand for?
        owner: list[int] = []
        for k, token in enumerate(tokenizer.convert_ids_to_tokens(list(found.ids))):
            owner += [k] * len(token)  # one printable character stands for one byte
        low, high = len(text[:start].encode()), len(text[:end].encode())
        assert len(owner) == len(text.encode())
        assert found.spans["cue"] == tuple(sorted(set(owner[low:high])))
        first, last = owner.index(owner[low]), len(owner) - owner[::-1].index(owner[high - 1])
        beyond = text.encode()[first:low] + text.encode()[high:last]
        whole_characters = (low - first, last - high) == (0, 0)
        if whole_characters:
            assert found.straddling == ()
        if beyond.strip():
            split = text[start] == text[end - 1] and not text[start].isascii()
            assert found.straddling == ("cue",) or split

    def test_a_slow_tokenizer_is_told_about(self) -> None:
        tokens = Tokens(word_tokenizer())

        class Slow:
            is_fast = False

        tokens.tokenizer = Slow()
        with pytest.raises(mm.ModelError, match=r"fast tokenizer.*Slow.*integer positions"):
            tokens.encode(mm.Prompt(id="s", text="w1", spans={"x": (0, 1)}))


class TestTheCallersTokenizer:
    def test_it_is_not_changed_by_loading_or_running(self) -> None:
        tokenizer = word_tokenizer(pad=False)
        tokenizer.padding_side = "right"
        before = copy.deepcopy(tokenizer.__dict__)
        core = tokenizer.backend_tokenizer.to_str()
        model = mm.load_model(bench().hf, tokenizer=tokenizer)
        model.generate(["w1 w2", "w3"], 3)
        model.logits(["w1 w2", "w3"])
        assert tokenizer.pad_token is None
        assert tokenizer.padding_side == "right"
        assert tokenizer.backend_tokenizer.to_str() == core
        assert {k: str(v) for k, v in tokenizer.__dict__.items()} == {
            k: str(v) for k, v in before.items() if k in tokenizer.__dict__
        } | {"_tokenizer": str(tokenizer.__dict__["_tokenizer"])}

    def test_changing_it_later_changes_nothing_here(self) -> None:
        tokenizer = word_tokenizer()
        tokens = Tokens(tokenizer)
        before = tokens.encode("w1 w2").rows
        tokenizer.add_tokens(["w1 w2"])
        assert tokens.encode("w1 w2").rows == before


class TestContinuation:
    def test_it_is_tokenized_as_it_would_follow(self) -> None:
        tokenizer = bpe_tokenizer()
        tokens = Tokens(tokenizer)
        prompt = mm.Prompt(id="p", text="the answer is")
        want = tokenizer("the answer is twelve")["input_ids"][
            len(tokenizer(prompt.text)["input_ids"]) :
        ]
        assert tokens.continuation(prompt, " twelve") == tuple(want)

    def test_where_it_would_merge_into_the_prompt_it_stands_alone(self) -> None:
        tokenizer = bpe_tokenizer()
        prompt = mm.Prompt(id="p", text="the answer is 12")
        joined = tokenizer("the answer is 123")["input_ids"]
        alone = tokenizer(prompt.text)["input_ids"]
        assert joined[: len(alone)] != alone  # the case is real
        assert Tokens(tokenizer).continuation(prompt, "3") == tuple(tokenizer("3")["input_ids"])

    def test_an_empty_one_is_refused(self) -> None:
        with pytest.raises(mm.PromptError, match=r"continuation '' of prompt 'p' has no tokens"):
            Tokens(word_tokenizer()).continuation(mm.Prompt(id="p", text="w1"), "")


class TestWhatUsersHandOver:
    def test_texts_prompts_and_lists_of_both(self) -> None:
        prompt = mm.Prompt(id="a", text="x")
        assert as_prompts("x").ids == ["0"]
        assert as_prompts(prompt).ids == ["a"]
        assert as_prompts([prompt, "y"]).ids == ["a", "1"]
        assert as_prompts(mm.PromptSet([prompt]))[0] is prompt

    @pytest.mark.parametrize("odd", [3, None, 1.5])
    def test_something_else_is_refused(self, odd) -> None:
        with as_users_run_it(), pytest.raises(mm.PromptError, match=r"prompts must be.*got"):
            as_prompts(odd)

    def test_token_ids_are_what_the_model_is_fed(self) -> None:
        lab = bench()
        assert lab.model.token_ids("w1 w2") == lab.ids("w1 w2")
