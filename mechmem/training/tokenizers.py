"""Small lossless tokenizers for models that are trained from nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mechmem.errors import TaskError

SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>")
_MARK = "▁"  # stands for the blank before a word


def build_tokenizer(
    texts: Iterable[str], split: str = "characters", *, context: int | None = None
) -> Any:
    """A fast tokenizer whose vocabulary is every piece that occurs in the texts.

    Args:
        texts: What the model is to read and write. A piece that never occurs there is unknown.
        split: ``"characters"``; ``"words"`` (a word carries the blank before it, so that it is one
            token at the beginning of a text as well; punctuation stands alone); or a regular
            expression whose matches are the pieces (what lies between matches is a piece, too).
        context: Longest text in tokens, written to the tokenizer's files.

    Returns:
        A ``PreTrainedTokenizerFast`` with ``<bos>`` before every text, and ``<eos>`` for the end of
        an answer. Decoding gives the text back, character by character.

    Raises:
        TaskError: When there is no text, or the expression is none.
    """
    from tokenizers import Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    fast: Any = PreTrainedTokenizerFast  # untyped in the library
    cutter, decoder = _cutter(split)
    pieces = sorted({piece for text in texts for piece, _ in cutter.pre_tokenize_str(text)})
    if not pieces:
        raise TaskError("A tokenizer needs texts to take its vocabulary from; got none.")
    vocabulary = {piece: index for index, piece in enumerate([*SPECIAL, *pieces])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = cutter
    core.decoder = decoder if decoder is not None else decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return fast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **({} if context is None else {"model_max_length": context}),
    )


def listed_words(vocabulary: Sequence[str], context: int) -> Any:
    """A tokenizer of exactly these words, in their order; a line break is a word."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    fast: Any = PreTrainedTokenizerFast  # untyped in the library
    index = {word: k for k, word in enumerate(vocabulary)}
    words = Tokenizer(models.WordLevel(index, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|[^\s]+"), behavior="removed", invert=True)
    words.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", index["<bos>"])]
    )
    return fast(
        tokenizer_object=words,
        bos_token="<bos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=context,
    )


def _cutter(split: str) -> tuple[Any, Any]:
    """What cuts a text into pieces, and what joins them where that is not plain joining."""
    from tokenizers import Regex, decoders, pre_tokenizers

    if split == "words":
        words = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(replacement=_MARK, prepend_scheme="always"),
                pre_tokenizers.Split(Regex(r"[^\w▁]"), behavior="isolated"),
            ]
        )
        return words, decoders.Metaspace(replacement=_MARK, prepend_scheme="always")
    try:
        pattern = Regex(r"[\s\S]" if split == "characters" else split)
    except Exception as error:  # the library raises plain Exception
        raise TaskError(
            f"split must be 'characters', 'words' or a regular expression, got {split!r}: {error}."
        ) from None
    return pre_tokenizers.Split(pattern, behavior="isolated"), None
