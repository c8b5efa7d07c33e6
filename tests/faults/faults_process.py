"""Interrupted, killed, full: what happens to files and hooks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fault_scene import Fault, Scene

import mechmem as mm
from mechmem import artifacts
from mechmem.analysis import Directions

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


KEPT = """
import resource, signal, sys, torch
from mechmem.artifacts import load_artifact, save_artifact
path = sys.argv[1]
save_artifact(path, "note", {"x": torch.ones(8)}, {"which": "old"})
"""

FULL = (
    KEPT
    + """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save_artifact(path, "note", {"x": torch.zeros(100_000)}, {"which": "new"})
except ValueError as error:
    print(type(error).__name__, error)
"""
)

KILLED = (
    KEPT
    + """
import os, mechmem.artifacts as own, mechmem.writing as writing
def die(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "writing":
    save = own.save_file
    own.save_file = lambda tensors, target, **more: (save(tensors, target, **more), die())
else:
    writing.os.replace = die
save_artifact(path, "note", {"x": torch.zeros(100_000)}, {"which": "new"})
"""
)


def old_is_whole(s: Scene) -> None:
    tensors, about = artifacts.load_artifact(s.folder / "kept", "note")
    assert about["which"] == "old"
    assert tensors["x"].tolist() == [1.0] * 8


def too_large(s: Scene) -> None:
    done = python(FULL, s.folder / "kept")
    s.settled()
    old_is_whole(s)
    assert sorted(path.name for path in s.folder.iterdir()) == ["kept.json", "kept.safetensors"]
    assert done.returncode == 0, done.stderr
    name, _, message = done.stdout.strip().partition(" ")
    assert name == "ArtifactError"
    raise mm.ArtifactError(message)


def killed(when: str):
    def trigger(s: Scene) -> None:
        done = python(KILLED, s.folder / "kept", when)
        assert done.returncode == -9, done.stderr
        s.settled()
        old_is_whole(s)

    return trigger


def no_space(*args: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk(s: Scene) -> None:
    s.directions.save(s.folder / "r")
    s.settled()
    s.patch.setattr(artifacts, "save_file", no_space)
    s.directions.save(s.folder / "r")


def full_for_the_manifest(s: Scene) -> None:
    s.directions.save(s.folder / "r")
    s.settled()
    s.patch.setattr(Path, "write_text", no_space)
    try:
        mm.difference_of_means(s.acts, toward="memorized").save(s.folder / "r")
    finally:
        assert next(iter(Directions.load(s.folder / "r"))).toward == "generalized"


def full_for_prompts(save: str, name: str):
    def trigger(s: Scene) -> None:
        s.file(name, "before")
        s.patch.setattr(Path, "write_text", no_space)
        s.patch.setattr("pandas.DataFrame.to_csv", no_space)
        getattr(s.prompts, save)(s.folder / name)

    return trigger


def own_hook(error: BaseException):
    """The user's own hook raises in the middle of everything that runs the model."""

    def trigger(s: Scene) -> None:
        model = s.fresh()
        before = model.logits(s.others)

        def fail(tensor: Any, hook: Any) -> None:
            raise error

        model.tl.blocks[1].hook_resid_pre.add_hook(fail)
        caught = []
        runs = [
            lambda: model.logits(s.others),
            lambda: model.generate(s.others, max_new_tokens=2),
            lambda: mm.cache_activations(model, s.others),
        ]
        try:
            for run in runs:
                try:
                    run()
                except BaseException as other:
                    caught.append(other)
            assert all(len(p.fwd_hooks) <= 1 for p in model.tl.hook_dict.values())
        finally:
            model.tl.reset_hooks(including_permanent=True)
        assert caught == [error] * len(runs)
        assert model.logits(s.others).equal(before)
        raise caught[0]

    return trigger


def in_the_change(error: BaseException):
    """An edit fails while the model runs."""

    class Odd(mm.ProjectOut):
        def changes(self, model: mm.Model) -> Any:
            def fail(activation: Any, feed: Any) -> None:
                raise error

            return dict.fromkeys(super().changes(model), fail)

    def trigger(s: Scene) -> None:
        with mm.patched(s.model, Odd(s.direction)) as view:
            view.generate(s.others)

    return trigger


def reader_leaves(s: Scene) -> None:
    """``mechmem tasks | head -0``: nobody reads what is written."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "mechmem.cli", "tasks"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode in (1, 141)


FAULTS = [
    Fault(
        "fill the disk while tensors are written",
        full_disk,
        mm.ArtifactError,
        "Cannot write …r.safetensors…No space left on device",
        "Choose a folder you can write to.",
    ),
    Fault(
        "fill the disk while the manifest is written",
        full_for_the_manifest,
        mm.ArtifactError,
        "Cannot write …r.json…No space left on device",
        "Choose a folder you can write to.",
    ),
    Fault(
        "reach the limit of a file's size",
        too_large,
        mm.ArtifactError,
        "Cannot write …kept.safetensors",
        "Choose a folder you can write to.",
    ),
    Fault(
        "fill the disk while prompts are written as JSON lines",
        full_for_prompts("to_jsonl", "my.jsonl"),
        mm.ArtifactError,
        "Cannot write …my.jsonl: No space left on device",
        "Choose a folder you can write to.",
    ),
    Fault(
        "fill the disk while prompts are written as CSV",
        full_for_prompts("to_csv", "my.csv"),
        mm.ArtifactError,
        "Cannot write …my.csv: No space left on device",
        "Choose a folder you can write to.",
    ),
    Fault(
        "have the process killed while it saves",
        killed("writing"),
        None,
        "the files of the last save are whole; what is left is one hidden `.partial` file",
    ),
    Fault(
        "have the process killed before files are moved in place",
        killed("moving"),
        None,
        "the files of the last save are whole",
    ),
    Fault(
        "have your own hook fail",
        own_hook(ZeroDivisionError("in the user's hook")),
        ZeroDivisionError,
        "in the user's hook",
    ),
    Fault(
        "press Ctrl-C inside a hook",
        own_hook(KeyboardInterrupt("pressed")),
        KeyboardInterrupt,
        "pressed",
    ),
    Fault(
        "have your own edit fail while text is generated",
        in_the_change(ZeroDivisionError("in the user's edit")),
        ZeroDivisionError,
        "in the user's edit",
    ),
    Fault(
        "press Ctrl-C while text is generated under an edit",
        in_the_change(KeyboardInterrupt("pressed")),
        KeyboardInterrupt,
        "pressed",
    ),
    Fault(
        "close the reader of the command line's output",
        reader_leaves,
        None,
        "it ends with a status that is not 0, and says nothing",
    ),
]
