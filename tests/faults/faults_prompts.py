"""Prompts and the files they come from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
from fault_scene import Fault, Scene

import mechmem as mm


def one(**fields: Any) -> mm.Prompt:
    return mm.Prompt(**{"id": "a", "text": "w1 w2 w3", **fields})


def jsonl(content: str | bytes):
    return lambda s: mm.PromptSet.from_jsonl(s.file("my.jsonl", content))


def csv(content: str | bytes):
    return lambda s: mm.PromptSet.from_csv(s.file("my.csv", content))


def keep_strange_text(s: Scene) -> None:
    strange = "w1 <script>alert(1)</script> & \x00\x1b[31m \u202e\r\n w2"
    asked = mm.PromptSet([one(text=strange), one(id="b", text="w1 \r w2", meta={"html": "<b>"})])
    assert s.model.logits(asked).isfinite().all()
    path = asked.to_jsonl(s.folder / "kept.jsonl")
    assert mm.PromptSet.from_jsonl(path) == asked
    lines = mm.PromptSet([one(text="w1 \r\n w2 <i>,\"';|")])
    table = lines.to_csv(s.folder / "kept.csv")
    assert mm.PromptSet.from_csv(table) == lines
    s.settled()


def keep_surrogate(s: Scene) -> None:
    asked = mm.PromptSet([one(text="w1 \ud800 w2")])
    path = asked.to_jsonl(s.folder / "kept.jsonl")
    assert mm.PromptSet.from_jsonl(path) == asked
    s.settled()


def surrogate_csv(s: Scene) -> None:
    s.file("kept.csv", "before")
    mm.PromptSet([one(text="w1 \ud800")]).to_csv(s.folder / "kept.csv")


FAULTS = [
    Fault(
        "run an empty set of prompts",
        lambda s: s.model.logits(mm.PromptSet()),
        mm.PromptError,
        "No prompts to run: the set is empty.",
        "Add prompts, or look at the filter, split or file that it came from.",
    ),
    Fault(
        "give two prompts one id",
        lambda s: mm.PromptSet([one(), one()]),
        mm.PromptError,
        "Prompt ids must be unique; more than once: 'a'.",
        "Rename them, or use `group` to tie rephrasings together.",
    ),
    Fault(
        "join two sets that share an id",
        lambda s: s.prompts + s.prompts[:1],
        mm.PromptError,
        "Prompt ids must be unique; more than once: 'g0.0'.",
        "Rename them",
    ),
    Fault(
        "leave a prompt's id empty",
        lambda s: one(id=""),
        mm.PromptError,
        "A prompt's id must be a non-empty string, got ''",
        "write for example Prompt(id='q1', text=...)",
    ),
    Fault(
        "number prompts by integers",
        lambda s: one(id=7),
        mm.PromptError,
        "A prompt's id must be a non-empty string, got 7",
        "write for example Prompt(id='q1', text=...)",
    ),
    Fault(
        "give a prompt no text",
        lambda s: one(text=None),
        mm.PromptError,
        "Prompt 'a': text must be a string, got NoneType",
        "write for example text='What is 1+1?'",
    ),
    Fault(
        "name a span outside the text",
        lambda s: one(spans={"cue": (3, 99)}),
        mm.PromptError,
        "span 'cue' is (3, 99), but the text has 8 characters",
        "a span needs 0 <= start < end <= length.",
    ),
    Fault(
        "name a span without characters",
        lambda s: one(spans={"cue": (3, 3)}),
        mm.PromptError,
        "span 'cue' is (3, 3)",
        "a span needs 0 <= start < end <= length.",
    ),
    Fault(
        "name a span by one number",
        lambda s: one(spans={"cue": 3}),
        mm.PromptError,
        "span 'cue' is 3",
        "a span is a pair (start, end) of characters",
    ),
    Fault(
        "put plain texts into a PromptSet",
        lambda s: mm.PromptSet(["w1 w2"]),
        mm.PromptError,
        "A PromptSet holds Prompt objects, got str 'w1 w2'.",
        "use PromptSet.from_texts.",
    ),
    Fault(
        "run a number",
        lambda s: s.model.logits(5),
        mm.PromptError,
        "got int 5",
        "prompts must be a PromptSet, a Prompt, a text, or a list of prompts or texts",
    ),
    Fault(
        "run a list of numbers",
        lambda s: s.model.logits([5]),
        mm.PromptError,
        "A PromptSet holds Prompt objects, got int 5.",
        "Wrap plain text as Prompt(id=..., text=...)",
    ),
    Fault(
        "select a prompt that is not there",
        lambda s: s.prompts.select(["g0.0", "nobody"]),
        mm.PromptError,
        "No prompt with id 'nobody' in PromptSet(16 prompts, 8 groups)",
        "its ids are 'g0.0', 'g0.1'",
    ),
    Fault(
        "split into more than everything",
        lambda s: s.prompts.split(train=0.9, test=0.3),
        mm.PromptError,
        "Shares must lie in [0, 1] and add up to at most 1, got {'train': 0.9",
        "for example split(train=0.5, validation=0.2, test=0.3)",
    ),
    Fault(
        "split off a negative share",
        lambda s: s.prompts.split(train=-0.5),
        mm.PromptError,
        "Shares must lie in [0, 1]… 'train': -0.5",
        "for example split(train=0.5",
    ),
    Fault(
        "split off a share of NaN",
        lambda s: s.prompts.split(train=float("nan")),
        mm.PromptError,
        "Shares must lie in [0, 1]… 'train': nan",
        "for example split(train=0.5",
    ),
    Fault(
        "split off less than one group",
        lambda s: s.prompts.split(train=0.01),
        mm.PromptError,
        "train=0.01 of 8 groups is less than one group",
        "use more groups or a larger share.",
    ),
    Fault(
        "read a file that does not exist",
        lambda s: mm.PromptSet.from_jsonl(s.folder / "none.jsonl"),
        mm.PromptError,
        "No file …none.jsonl",
        "give the path of an existing file of prompts.",
    ),
    Fault(
        "read JSON lines of which one is cut off",
        jsonl('{"text": "w1"}\n{"text": "w'),
        mm.PromptError,
        "my.jsonl, line 2: not JSON (Unterminated string",
        "Mend or remove that line",
    ),
    Fault(
        "read JSON lines of which one is a plain text",
        jsonl('"w1 w2"\n'),
        mm.PromptError,
        "my.jsonl, line 1: expected an object, got 'w1 w2'",
        'write {"text": "..."}',
    ),
    Fault(
        "read JSON lines that are not UTF-8",
        jsonl('{"text": "h\xe9"}\n'.encode("latin-1")),
        mm.PromptError,
        "my.jsonl cannot be read as JSON lines: 'utf-8' codec can't decode",
        "Save it as UTF-8",
    ),
    Fault(
        "read a row whose span is no pair",
        jsonl('{"text": "w1 w2", "spans": {"cue": "1-2"}}\n'),
        mm.PromptError,
        "Row 0: span 'cue' is '1-2'",
        "a span is [start, end] in characters.",
    ),
    Fault(
        "read a row whose text is a list",
        jsonl('{"text": ["w1", "w2"]}\n'),
        mm.PromptError,
        "Row 0: column 'text' must be text or a number, got a list",
        "Make one row of every prompt, write the cell as text, or rename the column.",
    ),
    Fault(
        "read a row with a misspelt chat key",
        jsonl('{"text": "w1", "chat": {"sytem": "w2"}}\n'),
        mm.PromptError,
        "column 'chat' has unknown 'sytem'",
        "allowed are …'system'",
    ),
    Fault(
        "read a CSV file without a text column",
        csv("prompt,group\nw1,g\n"),
        mm.PromptError,
        "Row 0 has no 'text'; its columns are 'prompt', 'group'.",
        "Rename the column that holds the prompt to 'text'.",
    ),
    Fault(
        "read an empty CSV file",
        csv(""),
        mm.PromptError,
        "my.csv is empty",
        "give a CSV file whose first row names its columns.",
    ),
    Fault(
        "read a CSV file with too many cells in a row",
        csv("text,group\nw1,g\nw2,g,h,i\n"),
        mm.PromptError,
        "my.csv, line 3: 4 cells where the header has 2 ('text', 'group'): 'w2', 'g', 'h', 'i'.",
        "A cell that holds a comma goes in quotes",
    ),
    Fault(
        "read a CSV cell that should hold JSON",
        csv("text,meta\nw1,not json\n"),
        mm.PromptError,
        "Row 0: column 'meta' is not JSON: 'not json'",
        "Write it as a JSON object, or leave it empty.",
    ),
    Fault(
        "read a Parquet file that is none",
        lambda s: mm.PromptSet.from_parquet(s.file("my.parquet", b"PAR1 no")),
        mm.PromptError,
        "my.parquet cannot be read as Parquet",
        "Give a Parquet file",
    ),
    Fault(
        "read a table without a text column",
        lambda s: mm.PromptSet.from_pandas(pd.DataFrame({"question": ["w1"]})),
        mm.PromptError,
        "Row 0 has no 'text'; its columns are 'question'.",
        "Rename the column",
    ),
    Fault(
        "write a meta that JSON cannot hold",
        lambda s: mm.PromptSet([one(meta={"tags": {1, 2}})]).to_jsonl(s.folder / "x.jsonl"),
        mm.PromptError,
        "Prompt 'a': meta must be what JSON can hold …Object of type set",
        "Keep numbers, text, lists and dictionaries in it.",
    ),
    Fault(
        "write prompts where a file blocks the folder",
        lambda s: s.prompts.to_jsonl(s.blocked() / "x.jsonl"),
        mm.ArtifactError,
        "Cannot write …x.jsonl",
        "Choose a folder you can write to.",
    ),
    Fault(
        "write a CSV file where a file blocks the folder",
        lambda s: s.prompts.to_csv(s.blocked() / "x.csv"),
        mm.ArtifactError,
        "Cannot write …x.csv",
        "Choose a folder you can write to.",
    ),
    Fault(
        "run and keep text with HTML, control characters and line ends",
        keep_strange_text,
        None,
        "the same text comes back from JSON lines and CSV, and the model runs on it",
    ),
    Fault(
        "keep text with a lone surrogate",
        keep_surrogate,
        None,
        "it is written escaped, and the same text comes back from JSON lines",
    ),
    Fault(
        "write a lone surrogate as CSV",
        surrogate_csv,
        mm.PromptError,
        "Prompt 'a' has '\\ud800', which is not a character of UTF-8, so no table holds it.",
        "Remove it, or keep the prompts as JSON lines: to_jsonl keeps it.",
    ),
    Fault(
        "run text with a lone surrogate",
        lambda s: s.model.logits([one(text="w1 \ud800 w2")]),
        mm.PromptError,
        "Prompt 'a' has '\\ud800' at character 3, which is not a character of UTF-8",
        "Read the text again with its right encoding, or remove it.",
    ),
    Fault(
        "ask a contrast of a column that is none",
        lambda s: mm.cache_moments(s.model, s.prompts, by="group"),
        mm.PromptError,
        "got 'group'",
        "by must be 'behavior' (what the model did) or 'label'",
    ),
    Fault(
        "rephrase nothing and ask for the flip rate",
        lambda s: (
            mm.observe(s.model, mm.PromptSet(replace(p, group=p.id) for p in s.prompts)).flip_rate
        ),
        mm.PromptError,
        "A flip rate needs pairs",
        "give at least two rephrasings the same `group`.",
    ),
]
