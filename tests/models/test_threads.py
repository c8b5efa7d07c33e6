"""Two threads on one model: neither meets the other's edits, readers or trials."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass

import pytest
import torch
from models.zoo import build, tokenizer

import mechmem as mm
from mechmem import seeding
from mechmem.models.engine.batching import Feed
from mechmem.models.engine.gradients import margin_gradients
from mechmem.models.positions import Positions

PROMPTS = ["1 2 3", "4 5 6 7 8", "9", "10 11 12 13", "1 2 3 4", "1 2 3 5"]
TIMES = 3


@dataclass
class Shift:
    site: mm.Site
    where: Positions
    by: float = 3.0

    def apply(self, activation: torch.Tensor, feed: Feed) -> torch.Tensor:
        return activation + self.by * feed.mask(self.where)[..., None]


def load() -> mm.Model:
    return mm.load_model(build("llama"), tokenizer=tokenizer())


def edited(model: mm.Model) -> mm.Model:
    edit = Shift(mm.Site("resid_post", 0), Positions.parse("all"))
    return model.with_interventions([edit])


def states(model: mm.Model) -> torch.Tensor:
    return mm.cache_activations(model, PROMPTS, sites=("resid_post", 1))["resid_post", 1]


def slopes(model: mm.Model) -> torch.Tensor:
    site, where = mm.Site("resid_post", 0), Positions.parse("last")
    answers = [(7,)] * len(PROMPTS), [(9,)] * len(PROMPTS)
    prompts = model.tokenize(PROMPTS)
    return margin_gradients(model.backend, prompts, *answers, [site], [where])[
        site, where
    ].gradients


ACTIONS = {
    "read": states,
    "score": lambda model: model.logits(PROMPTS),
    "edit": lambda model: edited(model).logits(PROMPTS),
    "read an edited one": lambda model: states(edited(model)),
    "generate": lambda model: model.generate(PROMPTS, 5),
    "generate an edited one": lambda model: edited(model).generate(PROMPTS, 5),
    "differentiate": slopes,
    "check": lambda model: [f.reason for f in mm.models.check_model(model).findings],
}


def same(one, other) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def together(*calls) -> list[list]:
    """What each call gives when all run at once, several times each."""
    results: list[list] = [[] for _ in calls]
    start = threading.Barrier(len(calls))

    def work(k: int) -> None:
        start.wait()
        for _ in range(TIMES):
            try:
                results[k].append(calls[k]())
            except BaseException as error:  # what a thread raises would be lost
                results[k].append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize(
    "pair", list(itertools.combinations_with_replacement(ACTIONS, 2)), ids=" beside ".join
)
def test_each_of_two_threads_gets_what_it_gets_alone(pair):
    wanted = [ACTIONS[name](load()) for name in pair]
    model = load()  # fresh, so that its site checks and trials run among threads as well
    found = together(*(lambda name=name: ACTIONS[name](model) for name in pair))
    for one, several in zip(wanted, found, strict=True):
        for other in several:
            assert same(one, other), other
    assert not any(point.fwd_hooks for point in model.tl.hook_dict.values())


def test_two_wraps_of_one_bridge_wait_for_each_other_too():
    first = load()
    second = mm.load_model(first.tl, tokenizer=tokenizer(), prepend_bos=False)
    wanted = first.logits(PROMPTS)
    plain, moved = together(lambda: first.logits(PROMPTS), lambda: edited(second).logits(PROMPTS))
    assert all(torch.equal(found, wanted) for found in plain)
    assert not any(torch.equal(found, wanted) for found in moved)


def test_an_edit_may_ask_its_own_model():
    model, prompts = load(), PROMPTS[1:5]
    wanted, alone = edited(model).logits(prompts), model.logits("1 2 3 4")
    inner = []

    class Asks(Shift):
        asking = False

        def apply(self, activation, feed):
            if self.asking:
                return None
            self.asking = True
            inner.append(model.logits("1 2 3 4"))  # a row of as many tokens as there are rows
            self.asking = False
            return super().apply(activation, feed)

    edit = Asks(mm.Site("resid_post", 0), Positions.parse("all"))
    assert torch.equal(model.with_interventions([edit]).logits(prompts), wanted)
    assert inner
    assert all(torch.equal(found, alone) for found in inner)


def test_models_may_be_loaded_in_several_threads():
    def work() -> None:
        for dtype in ("float32", "bfloat16"):
            mm.load_model("lab/addition-cued", dtype=dtype)

    failed = []

    def told() -> None:
        try:
            work()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=told) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    work()
    assert torch.get_default_dtype() == torch.float32


def test_who_waits_for_another_threads_training_is_told(monkeypatch):
    monkeypatch.setattr(seeding, "_PATIENCE", 0.05)
    inside, done = threading.Event(), threading.Event()

    def train() -> None:
        with seeding.caller_state_kept():
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=train)
    thread.start()
    inside.wait()
    threading.Timer(0.5, done.set).start()
    with pytest.warns(mm.MechmemWarning, match="Another thread loads or trains"):
        mm.load_model("lab/addition-cued")
    assert done.is_set()
    thread.join()
