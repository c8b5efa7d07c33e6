"""What a chat template and a tokenizer put around a text, and what they take from it."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import as_users_run_it
from models.zoo import build, tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

import mechmem as mm
from mechmem.models.tokenizing import Tokens

CORPUS = [
    "A: Paris and London",
    "Q: is it Paris ? A: yes",
    "user says hello",
    "a b c d e f",
    "Rome",
]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|> {% endfor %}<|bot|>"
)


def byte_level(**kwargs):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<s>", "<|end|>", "<|user|>", "<|system|>", "<|bot|>", "<yes>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="<|end|>",
        extra_special_tokens=special[2:], **kwargs,
    )  # fmt: skip


def behind(tok, single):
    """The tokenizer with another text around every text."""
    out = copy.deepcopy(tok)
    out.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 0), ("<|end|>", 1)]
    )
    return out


def chat(text="hello", **kwargs):
    return mm.Prompt(id="q", text=text, chat=mm.Chat(**kwargs))


def ids(tok, prompt, **kwargs):
    return list(Tokens(tok, **kwargs).encode([prompt]).rows[0].ids)


class TestWhatIsFed:
    @pytest.mark.parametrize("single", ["$A <|end|>", "<s> $A <|end|>", "$A <|end|> <|end|>"])
    def test_an_end_token_behind_every_text_is_left_out(self, single):
        tok = behind(byte_level(), single)
        bare = tok("A: Paris", add_special_tokens=False)["input_ids"]
        first = [0] if single.startswith("<s>") else []
        assert ids(tok, "A: Paris") == first + bare
        assert ids(tok, "A: Paris<|end|>") == [*first, *bare, 1]  # one that was written stays
        tokens = Tokens(tok)
        prompt = mm.Prompt(id="q", text="A:")
        answer = tok(" Paris", add_special_tokens=False)["input_ids"]
        assert list(tokens.continuation(prompt, " Paris")) == answer

    @pytest.mark.parametrize("template", [TEMPLATE, "<s>" + TEMPLATE])
    @pytest.mark.parametrize("single", ["$A", "<s> $A", "<s> $A <|end|>"])
    def test_a_prompt_in_a_template_is_what_transformers_feeds(self, template, single):
        tok = behind(byte_level(chat_template=template), single)
        turns = [{"role": "system", "content": "Rome"}, {"role": "user", "content": "hello"}]
        want = tok.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert ids(tok, chat(system="Rome")) == want
        assert ids(tok, chat(system="Rome"), prepend_bos=True) == [0, *(i for i in want if i)]

    @pytest.mark.parametrize("single", ["$A", "<s> $A", "<s> <s> $A"])
    def test_two_bos_tokens_of_a_template_are_refused_not_made_one(self, single):
        tok = behind(byte_level(chat_template="{{ bos_token }}<s>" + TEMPLATE), single)
        turns = [{"role": "user", "content": "hello"}]
        fed = tok.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert fed[:3] == [0, 0, 2]
        message = r"'q' in its chat template begins with '<s><s><.*one BOS token \('<s>'\).*=True"
        with pytest.raises(mm.PromptError, match=message):
            ids(tok, chat())
        assert ids(tok, chat(), prepend_bos=True) == fed[1:]
        assert ids(tok, chat(), prepend_bos=False) == fed[2:]
        once = behind(byte_level(chat_template="<s>{{ messages[0]['content'] }}"), single)
        with pytest.raises(mm.PromptError, match="or of the text"):
            ids(once, chat("<s>hello"))
        assert ids(once, chat("a <s>hello"))[0] == 0

    def test_a_template_that_wants_parts_is_given_parts(self):
        parts = (
            "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'text' %}"
            "{{ c['text'] }}{% endif %}{% endfor %}<|end|>{% endfor %}<|bot|>"
        )
        tok = byte_level(chat_template=parts)
        assert tok.decode(ids(tok, chat("hello"))) == "hello<|end|><|bot|>"
        assert (
            tok.decode(ids(tok, chat("hello", system="Rome"))) == "Rome<|end|>hello<|end|><|bot|>"
        )

    def test_a_template_that_drops_a_text_is_refused(self):
        with pytest.raises(mm.PromptError, match=r"drops the text of prompt 'q'.*'<\|bot\|>'"):
            ids(byte_level(chat_template="<|bot|>"), chat())
        last = "{{ messages[-1]['content'] }}<|bot|>"
        assert ids(byte_level(chat_template=last), chat())
        with pytest.raises(mm.PromptError, match="drops the system message of prompt 'q'"):
            ids(byte_level(chat_template=last), chat(system="Be brief."))

    @pytest.mark.parametrize("broken", [
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
        "{{ messages[0]['content'] }}", "{% for x in %}", "{{ messages[0].nothing.there }}",
        "{{ messages[0]['content'] + 1 }}",
    ])  # fmt: skip
    def test_a_template_that_raises_is_named(self, broken):
        with pytest.raises(mm.PromptError, match=r"chat template refuses prompt 'q'.*before load"):
            ids(byte_level(chat_template=broken), chat(system="Rome"))

    def test_a_day_is_the_same_day_tomorrow(self):
        dated = "{{ strftime_now('%d %b %Y') }} {{ strftime_now(\"%f\") }} " + TEMPLATE
        tok = byte_level(chat_template=dated)
        assert tok.decode(ids(tok, chat())).startswith("26 Jul 2024 000000 ")
        assert tok.chat_template == dated

    @pytest.mark.parametrize("asked", [
        "strftime_now(format='%d %b %Y')", "strftime_now ('%d %b %Y')", "strftime_now(f)",
        "strftime_now('%d' ~ ' %b %Y')", "now('%d %b %Y')", "said('%d %b')",
        "strftime_now('%-d %b %Y')",
    ])  # fmt: skip
    def test_however_a_template_asks_for_the_day(self, asked):
        head = (
            "{% set f = '%d %b %Y' %}{% set now = strftime_now %}"
            "{% macro said(form) %}{{ strftime_now(form ~ ' %Y') }}{% endmacro %}"
        )
        tok = byte_level(chat_template=head + "{{ " + asked + " }} " + TEMPLATE)
        assert tok.decode(ids(tok, chat("%d"))).startswith("26 Jul 2024 <|user|> %d")

    @pytest.mark.parametrize("head", ["\n \n", "  ", "\n", ""])
    def test_a_day_changes_no_white_space(self, head):
        dated = head + "{% if strftime_now is defined %}{% endif %}\n" + TEMPLATE
        tok, plain = byte_level(chat_template=dated), byte_level(chat_template=TEMPLATE)
        turns = [{"role": "user", "content": "hello"}]
        wanted = tok.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert tok.decode(ids(tok, chat())) == wanted
        assert wanted.strip() == plain.decode(ids(plain, chat()))

    @pytest.mark.parametrize("cut", [
        "[:5]", "[-8:]", " | truncate(10)", ".split('?')[0]", ".upper()",
    ])  # fmt: skip
    def test_a_template_that_cuts_or_rewrites_a_text_is_refused(self, cut):
        tok = byte_level(chat_template=TEMPLATE.replace("m['content']", f"m['content']{cut}"))
        with pytest.raises(mm.PromptError, match="cuts or rewrites the text of prompt 'q'"):
            ids(tok, chat("Is Paris the capital of France?"))
        with pytest.raises(mm.PromptError, match="chat template"):
            ids(tok, chat("a", system="Paris? Say only what you know."))

    @pytest.mark.parametrize("given", [
        {"system": 3}, {"assistant_prefix": 3}, {"assistant_prefix": None}, {"system": ["a"]},
    ])  # fmt: skip
    def test_the_words_of_a_chat_are_text(self, given):
        with as_users_run_it(), pytest.raises(mm.PromptError, match=f"{next(iter(given))} of a"):
            mm.Chat(**given)

    def test_arguments_reach_the_template_and_misspelt_ones_are_refused(self):
        thinking = TEMPLATE + "{% if enable_thinking is false %} no {% endif %}"
        tok = byte_level(chat_template=thinking)
        plain, told = ids(tok, chat()), ids(tok, chat(enable_thinking=False))
        assert tok.decode(told) == tok.decode(plain) + " no "
        with pytest.raises(mm.PromptError, match=r"does not use 'enable_thinkin'"):
            ids(tok, chat(enable_thinkin=False))
        with pytest.raises(mm.PromptError, match="what JSON can hold"):
            mm.Chat(tools=[print])

    def test_arguments_are_saved_with_the_prompt(self, tmp_path):
        made = mm.PromptSet(
            [
                chat(enable_thinking=False, tools=[{"name": "f"}], system="x"),
            ]
        )
        for name, write, read in (
            ("p.jsonl", made.to_jsonl, mm.PromptSet.from_jsonl),
            ("p.csv", made.to_csv, mm.PromptSet.from_csv),
        ):
            write(tmp_path / name)
            assert read(tmp_path / name) == made
        assert copy.deepcopy(made) == made


class TestWhatIsRead:
    def test_special_tokens_end_a_completion_and_are_answers(self):
        plain = build("gpt2")
        tok = byte_level()
        plain.resize_token_embeddings(len(tok))
        plain.generation_config.eos_token_id = plain.config.eos_token_id = None
        tok.eos_token = None
        model = mm.load_model(plain, tokenizer=tok)
        free = model.complete("A: Paris", 6)[0]
        assert free.text == tok.decode(free.ids)
        # Whatever it writes third is made the special token by exchanging their embeddings.
        special, third = tok.convert_tokens_to_ids("<yes>"), free.ids[2]
        assert special not in free.ids

        def swapped(weight):
            weight[[special, third]] = weight[[third, special]]

        with torch.no_grad():
            swapped(plain.transformer.wte.weight.data)
        model = mm.load_model(plain, tokenizer=tok)
        again = model.complete("A: Paris", 6)[0]
        assert special in again.ids
        assert "<yes>" in again.text
        stopped = model.complete("A: Paris", 6, stop=["<yes>"])[0]
        assert stopped.finished
        assert stopped.text == again.text[: again.text.index("<yes>")]

    @pytest.mark.parametrize("scheme", ["always", "first"])
    def test_sentencepiece_answers_behind_a_blank_have_one_blank(self, scheme):
        core = Tokenizer(models.BPE(unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        core.decoder = decoders.Metaspace(prepend_scheme=scheme)
        trainer = trainers.BpeTrainer(
            vocab_size=200, special_tokens=["<unk>"], show_progress=False,
            initial_alphabet=["\u2581", "\n", "="],
        )  # fmt: skip
        core.train_from_iterator([*CORPUS, "Paris\nParis=Paris"], trainer)
        tok = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
        tokens = Tokens(tok)
        head = tok("A: ")["input_ids"]
        assert tok.convert_ids_to_tokens(head)[-1] == "\u2581"
        answer = list(tokens.continuation(mm.Prompt(id="q", text="A: "), "Paris"))
        assert "".join(tok.convert_ids_to_tokens(answer)) == "Paris"
        assert tok.decode(head + answer) == "A: Paris"
        alone = list(tokens.continuation(mm.Prompt(id="q", text="A:"), " Paris"))
        assert tok.convert_ids_to_tokens(alone) == ["\u2581Paris"]

    @pytest.mark.parametrize("text", ["日本 x", "é😀a", "नमस्ते", "a\n語"])
    def test_parts_of_a_letter_show_what_they_spell_together(self, text):
        tok = byte_level()
        tokens = Tokens(tok)
        given = tok(text, add_special_tokens=False)["input_ids"]
        shown = tokens.pieces(given)
        assert len(shown) == len(given)
        assert not any("\ufffd" in piece for piece in shown)
        spelled, last = "", None
        for piece, (start, end) in zip(
            shown, tok(text, add_special_tokens=False, return_offsets_mapping=True)[
                "offset_mapping"
            ], strict=True,
        ):  # fmt: skip
            if (start, end) != last:
                spelled += piece
            last = (start, end)
        assert spelled == text

    def test_a_single_part_of_a_letter_shows_its_bytes(self):
        tok = byte_level()
        first = tok("語", add_special_tokens=False)["input_ids"][0]
        assert Tokens(tok).token_text(first) == "<0xE8>"
        assert Tokens(tok).pieces([first]) == ["<0xE8>"]


def test_a_token_that_the_model_does_not_embed_is_named():
    tok = copy.deepcopy(tokenizer())
    tok.add_tokens(["NEW1"])
    model = mm.load_model(build("llama"), tokenizer=tok)
    with pytest.raises(mm.PromptError, match=r"token 'NEW1' \(id 64\).*embeds 64 tokens"):
        model.logits("1 NEW1")
    with pytest.raises(mm.PromptError, match=r"token 'NEW1'"):
        model.logprobs("1", [" NEW1"])


def test_a_model_without_a_limit_has_none():
    config = BloomConfig(
        vocab_size=64, hidden_size=32, n_layer=1, n_head=4, pad_token_id=1, bos_token_id=2,
        eos_token_id=3,
    )  # fmt: skip
    model = mm.load_model(BloomForCausalLM(config), tokenizer=tokenizer())
    assert model.info.n_ctx == 0
    assert model.logits(" ".join(["1"] * 2100)).shape == (1, 64)
