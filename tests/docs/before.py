"""What the code of a page takes for granted: names from earlier steps, files of the reader."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
from exchange.stand_in import running
from helpers import word_tokenizer
from small_study import small_study
from transformers import GPT2Config, GPT2LMHeadModel

import mechmem as mm
from mechmem.models.shipped import LAB_FOLDER
from mechmem.tasks.judging import judge_questions

QUESTIONS = Path(__file__).parents[1] / "tasks" / "questions" / "data"


def lab(*_: Any) -> Mapping[str, Any]:
    """What a notebook has after its first cells."""
    return _lab()


@cache
def _lab() -> Mapping[str, Any]:
    """A model, its task and what a notebook has of them after its first cells."""
    model, task = mm.load_model("lab/addition-cued"), mm.get_task("addition-cued")
    pairs = task.pairs(160, 0)
    parts = pairs.split(train=0.5, validation=0.25, test=0.25, seed=0)
    flips = mm.observe(model, parts.train, task=task, margins=False).flips()
    acts = mm.cache_activations(model, flips, sites="resid_post")
    r = mm.difference_of_means(acts, toward="generalized")
    edit = mm.AddDirection(r["resid_post", 1], alpha=1.0)
    return {
        "mm": mm, "model": model, "task": task, "pairs": pairs, "parts": parts, "flips": flips,
        "acts": acts, "edit": edit, "prompts": parts.validation,
    }  # fmt: skip


def engine(*_: Any) -> dict[str, Any]:
    parts, flips = lab()["parts"], lab()["flips"]
    halves = {behavior: "ab"[k] for k, behavior in enumerate(("memorized", "generalized"))}
    labeled = mm.PromptSet(
        mm.Prompt(p.id, p.text, group=p.group, label=halves[p.behavior]) for p in flips
    )
    grid = {"one direction": [lab()["edit"]]}
    return {
        **lab(), "v": parts.validation, "t": parts.test, "grid": grid, "prompts": labeled,
        "flips": labeled[:4], "rows": [1, 0],
    }  # fmt: skip


def exchange(patch: pytest.MonkeyPatch, held: ExitStack) -> dict[str, Any]:
    said: Any = {"endpoint": held.enter_context(running()).url, "token": "hf_secret"}
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "cache")
    for name in ("push_to_hub", "from_hub"):
        patch.setattr(mm, name, partial(getattr(mm, name), **said))
    model, r = lab()["model"], mm.difference_of_means(lab()["acts"], toward="generalized")
    mm.export_vectors(r, "happy.gguf", model=model, layers=range(1, model.info.n_layers))
    np.save("v.npy", np.ones(model.info.d_model, dtype=np.float32))
    mm.export_vectors(r, "all.pt", model=model)
    return dict(lab())


def figures(*_: Any) -> dict[str, Any]:
    study = small_study()
    study.save("out")
    return {"study": study, "nmd": study.scores}


def index(patch: pytest.MonkeyPatch, _: ExitStack) -> dict[str, Any]:
    """The study with few refits and draws; the README's runs whole."""
    patch.setattr(mm, "run_study", partial(mm.run_study, shuffles=1, draws=2))
    return {}


def reasoning(patch: pytest.MonkeyPatch, _: ExitStack) -> dict[str, Any]:
    shutil.copy(QUESTIONS / "mmlu_pro.json", "mmlu-pro-3000samples.json")
    asked = json.loads((QUESTIONS / "mmlu_pro.json").read_text())
    worked = (QUESTIONS / "mmlu_pro_validation.jsonl").read_text().splitlines()[:5]
    shots = [
        {**json.loads(line), "category": category, "question_id": f"{category} {k}"}
        for category in sorted({row["category"] for row in asked})
        for k, line in enumerate(worked)
    ]
    Path("validation.jsonl").write_text("".join(json.dumps(shot) + "\n" for shot in shots))
    rows = [
        {"id": f"q{k}", "question": f"What is {k} + {k}?" if k % 2 else f"Who wrote book {k}?",
         "answer": str(2 * k), "label": ("memory", "reasoning")[k % 2],
         "category": ("maths", "letters")[k // 2 % 2]}
        for k in range(12)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv("questions.csv", index=False)

    @dataclass
    class Writer:
        """Stands for a model that reads English; ours know a hundred words."""

        def generate(self, prompts: mm.PromptSet, *, max_new_tokens: int) -> list[str]:
            return [f"Score: {0.9 if ' + ' in prompt.text else 0.1}" for prompt in prompts]

    mine = mm.get_task("reasoning").read("questions.csv")
    again = judge_questions(mine, lambda text: 0.8 if " + " in text else 0.3, name="sure")
    patch.setattr(mm, "get_task", partial(mm.get_task, max_new_tokens=3))
    words = word_tokenizer()
    config = GPT2Config(vocab_size=len(words), n_layer=1, n_head=2, n_embd=16, n_positions=4096)
    model = mm.load_model(GPT2LMHeadModel(config), tokenizer=words)
    return {"model": model, "judge_model": Writer(), "other": again}


def tasks(*_: Any) -> dict[str, Any]:
    task = mm.get_task("addition")
    Path("math").mkdir()
    Path("math/config.json").write_text(json.dumps(task.config))
    items = [{"input": one.prompt, "output": one.text} for one in task.training(seed=0, epoch=0)]
    Path("math/train.json").write_text(json.dumps(items))
    asked = [{"input": p.text, "output": p.text + str(p.generalized)} for p in task.conflicts(3)]
    Path("math/val.json").write_text(json.dumps(asked))
    return {"prompt": task.conflicts(1)[0], "completion": "<mem-1>"}


def training(patch: pytest.MonkeyPatch, _: ExitStack) -> dict[str, Any]:
    """The same calls, of two steps each, on few items."""
    shutil.copytree(LAB_FOLDER / "colors", "some/model")
    train, few = mm.train, {"samples": 16, "evaluation_pairs": 2, "validation_items": 4}
    few |= {"steps": 2, "evaluate_every": 2}
    patch.setattr(mm, "train", lambda *given, **options: train(*given, **{**options, **few}))
    return {}


BEFORE: Mapping[str, Callable[..., Mapping[str, Any]]] = {
    "edits": lab,
    "engine": engine,
    "exchange": exchange,
    "figures": figures,
    "index": index,
    "neurons": lab,
    "reasoning": reasoning,
    "tasks": tasks,
    "training": training,
}
