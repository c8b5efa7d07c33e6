"""What a model thinks aloud is not its answer: `<think> ... </think>` and its relatives."""

from __future__ import annotations

import regex

_STEMS = (
    r"(?:(?:think|thought|reason|reflect|analy|rationale|deliberat|scratch_?pad|monologue|ponder"
    r"|cot\b|chain_of_thought)\w*|(?:plan|planning|draft|working|workings|internal|explanation"
    r"|steps?)\b)"
)
# <think>, </think>, < thinking >, &lt;think&gt;, <seed:think>, [THINK], ◁think▷,
# <|begin_of_thought|>
_TAG = regex.compile(
    r"(?:<|&lt;)\s*\|?(?<end>/?)\s*(?:\w+[:_-])*?"
    + _STEMS
    + r"(?:\s[^<>\n]{0,80}?)?\s*\|?(?:>|&gt;)"
    r"|\[(?<end>/?)THINK(?:ING)?\]|◁(?<end>/?)think(?:ing)?▷",
    regex.IGNORECASE,
)
_MAY_OPEN = regex.compile(r"[<\[◁]|&lt;")
_ENDING = regex.compile(r"<\|?/?(?:end|stop|close)[:_-]", regex.IGNORECASE)
_FINAL = regex.compile(r"<\|channel\|>\s*final\s*<\|message\|>")
# <unused94>thought ... <unused95>, <|channel>thought ... <channel|>,
# <|im_start|>think ... <|im_end|>
_SPECIAL = r"<(?:\|[\w-]{1,30}\|?|[\w-]{1,30}\||unused\d{1,4})>"
_NAMED = regex.compile(
    rf"{_SPECIAL}\s*(?:think|thinking|thought|thoughts|analysis|reasoning)\s*(?:\n|{_SPECIAL})"
    rf".*?(?:{_SPECIAL}(?:\s*{_SPECIAL}\s*(?:assistant|answer|final)\b)?|\Z)",
    regex.DOTALL | regex.IGNORECASE,
)
# Any other pair of tags that opens the text, with something behind it, unless it sets the answer
# (the first paper's sums are worked out in <scratch>).
_OPENING = regex.compile(
    r"\A\s*<\s*(?<name>[\p{L}_][\w:.-]*)(?:\s[^<>\n]{0,200})?>.*?<\s*/\s*(?P=name)\s*>(?=\s*\S)",
    regex.DOTALL | regex.IGNORECASE,
)
_ANSWERS = frozenset(
    "scratch answer ans final final_answer finalanswer response output result solution reply "
    "boxed choice a b body center code div em font h1 h2 h3 h4 h5 h6 html i kbd li mark math ol p "
    "pre q s small span strong sub sup table td tr tt u ul".split()
)


def without_thoughts(completion: str) -> str:
    """The completion without what stands between the tags of a thought.

    A thought is what stands in tags of that name, or in any pair of tags that opens the text, with
    the answer behind it. Behind a closing tag alone (the template has opened it) all that came
    before is thought; behind an opening tag alone (the limit came first) all that follows is, so
    nothing is left to read.
    """
    if not _MAY_OPEN.search(completion):
        return completion
    text = _NAMED.sub("\n", _FINAL.split(completion)[-1])
    kept: list[str] = []
    start, thinking = 0, False
    for tag in _TAG.finditer(text):
        closing = bool(tag["end"]) or _ENDING.match(tag[0]) is not None
        if closing and not thinking:
            kept.clear()
        elif not closing and not thinking:
            kept.append(text[start : tag.start()])
        thinking = not closing
        start = tag.end()
    if not thinking:
        kept.append(text[start:])
    text = "\n".join(kept)
    while (pair := _OPENING.match(text)) and pair["name"].casefold() not in _ANSWERS:
        text = text[pair.end() :]
    return text
