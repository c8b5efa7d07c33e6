"""Every attack tries one thing at random, and says how it ended.

An outcome is ``kept`` (as without the attack), ``refused`` (one of mechmem's errors), ``raw`` (any
other error) or ``wrong`` (another result, and nothing said).
"""

from __future__ import annotations

import itertools
import json
import os
import re
import resource
import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from helpers import as_users_run_it, bench, ragged
from models.test_threads import ACTIONS, PROMPTS, same, together
from models.zoo import build, tokenizer
from safetensors import safe_open
from safetensors.torch import save_file

import mechmem as mm
from attacks.scene import SAVED, SHARDS, content
from mechmem.artifacts import MANIFEST
from mechmem.manifests import DIGEST, json_text, sealed
from mechmem.studies.saving import write_manifest

Rng = np.random.Generator
KEPT, REFUSED, RAW, WRONG = "kept", "refused", "raw", "wrong"


@cache
def original(name: str) -> tuple[Path, str]:
    """A folder with one of `SAVED`, and its content."""
    folder = Path(tempfile.mkdtemp(prefix="attacked-"))
    save, read = SAVED[name]
    save(folder)
    return folder, content(read(folder))


@contextmanager
def copied(name: str) -> Iterator[tuple[Path, str]]:
    folder, whole = original(name)
    with tempfile.TemporaryDirectory(prefix="attack-") as place:
        target = Path(place) / "it"
        shutil.copytree(folder, target, symlinks=True)
        yield target, whole


def outcome(call: Callable[[], Any], whole: str) -> str:
    try:
        with as_users_run_it(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = content(call())
    except mm.MechmemError:
        return REFUSED
    except Exception:
        return RAW
    return KEPT if found == whole else WRONG


def pick(rng: Rng, choices: Any) -> Any:
    choices = sorted(choices)
    return choices[int(rng.integers(len(choices)))]


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]


def two_threads(rng: Rng) -> str:
    """Two of reading, editing, scoring, writing and checking, at once on one model."""
    family, pair = pick(rng, ["llama", "gpt2", "gpt_neox"]), [pick(rng, ACTIONS) for _ in "ab"]
    actions: Mapping[str, Callable[[mm.Model], Any]] = ACTIONS
    wanted = [actions[name](_zoo(family)) for name in pair]
    model = _zoo(family)
    found = together(*(partial(actions[name], model) for name in pair))
    for one, several in zip(wanted, found, strict=True):
        for other in several:
            if isinstance(other, mm.MechmemError):
                return REFUSED
            if isinstance(other, BaseException):
                return RAW
            if not same(one, other):
                return WRONG
    left = any(point.fwd_hooks for point in model.tl.hook_dict.values())
    return WRONG if left else KEPT


def _zoo(family: str) -> mm.Model:
    return mm.load_model(build(family), tokenizer=tokenizer())


def two_processes(rng: Rng) -> str:
    """Two processes that read other prompts, some of them the same, into one store."""
    sizes = [int(rng.integers(3, 24)) for _ in "ab"]
    sets = [_named(f"{'ab'[k]}", sizes[k]) for k in (0, 1)]
    mine = mm.PromptSet([*sets[0], *sets[1][: sizes[1] // 2]])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "store"
        works = [
            lambda part=part: mm.extract_activations(bench().model, part, folder, **SHARDS)
            for part in (mine, sets[1])
        ]
        mm.cache_activations(bench().model, mine, sites=["resid_post"])  # sites are checked once
        children = [_started(work) for work in works]
        ends = [_ended(child) for child in children]
        if any(ends):
            return REFUSED if set(ends) <= {0, 1} else RAW
        both = mm.PromptSet({p.id: p for p in (*mine, *sets[1])}.values())
        want = mm.cache_activations(bench().model, both, sites=["resid_post"])
        found = mm.ActivationStore(folder).select(both)
        close = all(torch.allclose(found[site], want[site], atol=1e-4) for site in want.states)
        return KEPT if close else WRONG


def _named(prefix: str, n: int) -> mm.PromptSet:
    return mm.PromptSet(mm.Prompt(id=f"{prefix}{k}", text=p.text) for k, p in enumerate(ragged(n)))


def flipped_bit(rng: Rng) -> str:
    """One bit of one file of anything that is saved."""
    name = pick(rng, SAVED)
    with copied(name) as (folder, whole):
        path = pick(rng, files_of(folder))
        data = bytearray(path.read_bytes())
        place = int(rng.integers(8 * len(data)))
        data[place // 8] ^= 1 << (place % 8)
        path.write_bytes(data)
        return outcome(lambda: SAVED[name][1](folder), whole)


VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 10**30, float("nan"), "", "x", "../../x", "\x1b[2J", [], [1], {},
    {"a": 1},
)  # fmt: skip


def changed_entry(rng: Rng) -> str:
    """One entry of a manifest has another value, or none."""
    return _mutated(rng, lambda entries: entries)


def sealed_entry(rng: Rng) -> str:
    """The same by somebody who makes the digest fit; kept: read as what it says then."""
    found = _mutated(rng, sealed)
    return KEPT if found == WRONG else found


def _mutated(rng: Rng, seal: Callable[[Any], Any]) -> str:
    name = pick(rng, SAVED)
    with copied(name) as (folder, whole):
        path = pick(rng, [path for path in files_of(folder) if _has_entries(path)])
        entries = _mutate(rng, _entries(path))
        if isinstance(entries, dict):
            entries = seal(entries)
        elif path.suffix == ".jsonl":
            rows = entries if isinstance(entries, list) else [entries]
            entries = [
                seal(row) if isinstance(row, dict) and DIGEST in row else row for row in rows
            ]
        _put(path, entries)
        copy = path.with_suffix(".json")
        if path.suffix == ".safetensors" and copy.exists():
            copy.write_text(json_text(entries))
        return outcome(lambda: SAVED[name][1](folder), whole)


def _has_entries(path: Path) -> bool:
    if path.suffix != ".safetensors":
        return path.suffix in (".json", ".jsonl")
    with safe_open(str(path), framework="pt") as file:
        return MANIFEST in file.keys()  # noqa: SIM118


def _entries(path: Path) -> Any:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    with safe_open(str(path), framework="pt") as file:
        return json.loads(file.get_tensor(MANIFEST).numpy().tobytes())


def _put(path: Path, entries: Any) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json_text(row) + "\n" for row in entries), encoding="utf-8")
        return
    text = json_text(entries)
    if path.suffix == ".json":
        path.write_text(text, encoding="utf-8")
        return
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors[MANIFEST] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    save_file(tensors, path)


def _mutate(rng: Rng, value: Any) -> Any:
    """The same JSON with one entry, at a random depth, replaced or taken out."""
    keys = list(value if isinstance(value, dict) else range(len(value))) if value else []
    if not keys:
        return VALUES[int(rng.integers(len(VALUES)))]
    key = keys[int(rng.integers(len(keys)))]
    out = dict(value) if isinstance(value, dict) else list(value)
    if isinstance(value[key], (dict, list)) and value[key] and rng.random() < 0.7:
        out[key] = _mutate(rng, value[key])
    elif rng.random() < 0.3:
        del out[key]
    else:
        out[key] = VALUES[int(rng.integers(len(VALUES)))]
    return out


def killed(rng: Rng) -> str:
    """A process is killed while it saves or works; what is begun again ends as if it never was."""
    name = pick(rng, [*SAVED.keys() - {"a study"}])
    _, whole = original(name)
    save, read = SAVED[name]
    with tempfile.TemporaryDirectory() as place:
        target = Path(place) / "it"
        target.mkdir()
        began = time.monotonic()
        save(Path(tempfile.mkdtemp(dir=place)))
        took = time.monotonic() - began
        child = _started(lambda: save(target))
        time.sleep(took * float(rng.random()))
        os.kill(child, signal.SIGKILL)
        _ended(child)
        early = outcome(lambda: read(target), whole) if any(target.iterdir()) else REFUSED
        if early in (RAW, WRONG):
            return early
        save(target)
        return outcome(lambda: read(target), whole)


def _started(work: Callable[[], object], limit: int | None = None) -> int:
    """Run it in a process of its own, which ends with 0, or 1 when refused, or 2 when raw.

    Args:
        limit: Bytes that no file may grow past.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        status = 2
        try:
            work()
            status = 0
        except mm.MechmemError:
            status = 1
        finally:
            os._exit(status)
    return child


def _ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def full_disk(rng: Rng) -> str:
    """No file may grow past a random size: the save is refused and what was there is whole."""
    name = pick(rng, ["directions", "neuron scores", "states", "moments", "a store", "a sweep"])
    with copied(name) as (folder, whole):
        save, read = SAVED[name]
        largest = max(path.stat().st_size for path in files_of(folder))
        if name in ("a store", "a sweep"):  # begun in an empty folder
            shutil.rmtree(folder)
            folder.mkdir()
        status = _ended(_started(lambda: save(folder), limit=int(rng.integers(1, largest))))
        if status == 2:
            return RAW
        if name in ("a store", "a sweep"):
            save(folder)
        found = outcome(lambda: read(folder), whole)
        return REFUSED if found == KEPT and status == 1 else found


STRANGE = (
    '</script><script>document.title="stolen"</script>', "<img src=x onerror=alert(1)>", "{{7*7}}",
    "<svg/onload=alert(1)>", "javascript:alert(1)", "\u202egnp.exe", "\x1b]0;owned\x07", "]]>",
    "--><script>1</script>", "<style>*{display:none}</style>", "&lt;b&gt;", "<base href=//x>",
)  # fmt: skip


def hostile_page(rng: Rng) -> str:
    """Every text of one table of a study is markup, and the digests fit: no element comes of it."""
    with copied("a study") as (folder, _):
        table = pick(rng, list((folder / "tables").glob("*.csv")))
        frame = pd.read_csv(table, dtype=str, keep_default_na=False)
        text = STRANGE[int(rng.integers(len(STRANGE)))]
        for name, column in frame.items():
            if column.str.contains("[A-Za-z]").any():
                frame[name] = column + text
        frame.to_csv(table, index=False)
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        write_manifest({**manifest, "answer": manifest["answer"] + text}, folder)
        try:
            page = mm.write_report(folder).read_text(encoding="utf-8")
        except mm.MechmemError:
            return REFUSED
        except Exception:
            return RAW
        return KEPT if _elements(page) == _clean_elements() else WRONG


@cache
def _clean_elements() -> frozenset[str]:
    with copied("a study") as (folder, _):
        return _elements(mm.write_report(folder).read_text(encoding="utf-8"))


def _elements(page: str) -> frozenset[str]:
    """Names of what can run, load or hide something, with how often they occur."""
    names = r"<(script|img|svg|style|base|iframe|link|object)\b"
    found = Counter(re.findall(names, page.casefold()))
    return frozenset(f"{name} {count}" for name, count in found.items())


def hostile_file(rng: Rng) -> str:
    """A file is a pipe, a link, a pickle, half of itself, or says that it is immense."""
    name = pick(rng, SAVED)
    with copied(name) as (folder, whole):
        path = pick(rng, files_of(folder))
        data = path.read_bytes()
        path.unlink()
        kind = pick(rng, ["pipe", "link", "pickle", "half", "immense", "gone"])
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to("/dev/zero")
        elif kind != "gone":
            torch.save({"x": torch.ones(2)}, path)
            pickled = path.read_bytes()
            path.write_bytes(
                {"pickle": pickled, "half": data[: len(data) // 2]}.get(
                    kind, (1 << 60).to_bytes(8, "little") + data
                )
            )
        with _memory(4):
            return outcome(lambda: SAVED[name][1](folder), whole)


@contextmanager
def _memory(gigabytes: int) -> Iterator[None]:
    """What would take more than that raises MemoryError, and so counts as raw."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (gigabytes << 30), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


BAD = ("nan", "inf", "-inf")
NAN_CALLS: Mapping[str, Callable[[mm.Model], Any]] = {
    "logits": lambda model: model.logits(PROMPTS),
    "generate": lambda model: model.generate(PROMPTS, 4),
    "states": lambda model: mm.cache_activations(model, PROMPTS, sites=["resid_post"]).values,
    "log-probabilities": lambda model: model.logprobs(PROMPTS, ["7"] * len(PROMPTS)),
}


def broken_model(rng: Rng) -> str:
    """One number of one weight is NaN or infinite."""
    family, name = pick(rng, ["llama", "gpt2", "gpt_neox"]), pick(rng, NAN_CALLS)
    hf = build(family)
    weights = dict(hf.named_parameters())
    weight = weights[pick(rng, weights)]
    with torch.no_grad():
        weight.view(-1)[int(rng.integers(weight.numel()))] = float(pick(rng, BAD))
    return outcome(
        lambda: NAN_CALLS[name](mm.load_model(hf, tokenizer=tokenizer())), _unbroken(family, name)
    )


@cache
def _unbroken(family: str, name: str) -> str:
    return content(NAN_CALLS[name](_zoo(family)))


ATTACKS: dict[str, Callable[[Rng], str]] = {
    "two threads on one model": two_threads,
    "two processes into one store": two_processes,
    "one bit of a file flipped": flipped_bit,
    "one entry of a manifest changed": changed_entry,
    "the same, with a digest that fits": sealed_entry,
    "killed while it saves or works": killed,
    "a disk that is full": full_disk,
    "one weight NaN or infinite": broken_model,
    "a file that is none": hostile_file,
    "markup in a study's tables": hostile_page,
}


def run(name: str, trials: int, seed: int = 0) -> list[str]:
    """The outcomes of one attack, the same on every machine but for kills and threads."""
    rngs = (np.random.default_rng([seed, k]) for k in itertools.count())
    return [ATTACKS[name](rng) for rng in itertools.islice(rngs, trials)]
