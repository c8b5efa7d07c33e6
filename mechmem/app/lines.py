"""The Python that does what the page did: every edit is made from the very words that are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mechmem import patching
from mechmem.tasks import Prompt, PromptSet


@dataclass(frozen=True)
class Call:
    """A value and the Python that makes it."""

    text: str
    value: Any


def call(name: str, *args: Call, **kwargs: Any) -> Call:
    """Make one of the house's edits, and keep the words."""
    values = {k: v.value if isinstance(v, Call) else v for k, v in kwargs.items()}
    texts = [one.text for one in args]
    texts += [f"{k}={v.text if isinstance(v, Call) else repr(v)}" for k, v in kwargs.items()]
    made = getattr(patching, name)(*(one.value for one in args), **values)
    return Call(f"mm.{name}({', '.join(texts)})", made)


def python(head: Mapping[str, str], prompts: PromptSet, edit: str, control: str) -> str:
    """Lines that give the three columns.

    Args:
        head: How model, task, ``r`` and ``scores`` are had.
        prompts: What is asked.
        edit: The call that makes the edit.
        control: Name of the control.
    """
    asked = ",\n    ".join(_prompt_line(prompt) for prompt in prompts)
    fitted = [
        f"{name} = {head[key]}"
        for name, key, used in (("r", "vector", "r["), ("scores", "scores", "(scores"))
        if used in edit
    ]
    return "\n".join(
        [
            "import mechmem as mm",
            "",
            f"model = {head['model']}",
            f"task = {head['task']}",
            *head.get("fit", "").splitlines()[1:],
            *fitted,
            f"prompts = mm.PromptSet([\n    {asked},\n])",
            "",
            f"edit = {edit}",
            f"control = mm.controls(edit, model)[{control!r}]",
            "unedited = mm.observe(model, prompts, task=task)",
            "edited = mm.evaluate(model, prompts, task=task, edit=edit).after",
            "controlled = mm.evaluate(model, prompts, task=task, edit=control).after",
            "for seen in (unedited, edited, controlled):",
            "    print(seen.table()[['completion', 'behavior', 'margin']])",
        ]
    )


def _prompt_line(prompt: Prompt) -> str:
    given = {
        name: getattr(prompt, name)
        for name in ("text", "group", "memorized", "generalized", "answer", "label")
        if getattr(prompt, name) is not None
    }
    if prompt.spans:
        given["spans"] = dict(prompt.spans)
    if prompt.meta:
        given["meta"] = dict(prompt.meta)
    said = [repr(prompt.id), *(f"{k}={v!r}" for k, v in given.items())]
    if prompt.chat is not None:
        said.append(f"chat=mm.{prompt.chat!r}")
    return f"mm.Prompt({', '.join(said)})"
