"""Long prompts on a pretrained model, over transformers with its fastest attention (sdpa)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import mechmem as mm
from benchmarks.bench_memory import _peak
from benchmarks.bench_sweep import _added
from benchmarks.environments import Rivals
from benchmarks.setting import (
    Options,
    gap,
    model_of,
    paired,
    prompts_of,
    result,
    texts,
    tokenizer_of,
)
from mechmem.evaluation.many_edits import evaluate_each
from mechmem.models.engine.grid import many_logits
from mechmem.models.shipped import shipped_folder
from mechmem.patching.apply import patched_each
from mechmem.tasks.base import PromptAnswers

__all__ = ["peak", "run"]

REAL = "real/smollm2-135m"
LENGTHS = {32: "", 256: "", 1024: "<= 1.10", 3072: "<= 1.10", 4096: "", 8192: ""}
RIVALED = (32, 256, 1024, 4096)
HEADERS = {32: "", 256: "", 1024: "", 2000: ">= 8", 4096: ""}
OWN, QUESTIONS = 33, 64
GRIDS = {32: "", 256: "", 1024: ">= 50", 4096: ""}
ALPHAS = (0.5, 1.0, 2.0, 4.0, 8.0)
GRID_PROMPTS = 4
CONTINUED, NEW = (32, 256, 1024, 4096), 32


class Scene:
    """The model twice, and how long everything is; tiny ones have the lengths over 32."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.hf = plain(options.tiny)
        self.model = model_of(self.hf)
        self.shape = "tiny Llama" if options.tiny else "SmolLM2-135M"

    def length(self, tokens: int) -> int:
        return max(2, tokens // 32) if self.options.tiny else tokens

    def some(self, lengths: Iterable[int]) -> list[int]:
        """All lengths; of a tiny model two."""
        return list(lengths)[2:4] if self.options.tiny else list(lengths)

    def prompts(self, lengths: list[int], name: int = 0) -> mm.PromptSet:
        return prompts_of(texts(self.options, lengths, self.hf.config.vocab_size, name))

    def ids(self, prompts: mm.PromptSet) -> list[Tensor]:
        return [torch.tensor([item.ids]) for item in self.model.tokenize(prompts)]

    @torch.no_grad()
    def trunk(self, ids: list[Tensor]) -> None:
        for row in ids:
            self.hf.model(row, use_cache=False)

    @torch.no_grad()
    def states(self, ids: list[Tensor]) -> Tensor:
        """Every layer's last-token state but the last one's, which transformers gives normed."""
        found = (self.hf.model(row, use_cache=False, output_hidden_states=True) for row in ids)
        return torch.stack(
            [torch.stack([h[0, -1] for h in out.hidden_states[1:-1]]) for out in found]
        )

    def ours(self, prompts: mm.PromptSet) -> Tensor:
        return mm.cache_activations(self.model, prompts, sites="resid_post").values


def plain(tiny: bool) -> Any:
    """The model in transformers, with the attention that it takes by itself."""
    if not tiny:
        return AutoModelForCausalLM.from_pretrained(shipped_folder(REAL)).eval()
    config = LlamaConfig(
        num_hidden_layers=2, hidden_size=32, intermediate_size=48, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=200, max_position_embeddings=256,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def run(options: Options) -> list[dict[str, Any]]:
    scene = Scene(options)
    assert scene.hf.config._attn_implementation == "sdpa"
    rows = [*_states(scene), *_memory(scene)]
    rows += [_header(scene, tokens, HEADERS[tokens]) for tokens in scene.some(HEADERS)]
    rows += [_grid(scene, tokens, GRIDS[tokens]) for tokens in scene.some(GRIDS)]
    return rows + [row for tokens in scene.some(CONTINUED) for row in _generation(scene, tokens)]


def _states(scene: Scene) -> Iterator[dict[str, Any]]:
    for tokens in scene.some(LENGTHS):
        prompts = scene.prompts([scene.length(tokens)], tokens)
        ids = scene.ids(prompts)
        ways = {"floor": lambda ids=ids: scene.trunk(ids), "ours": lambda p=prompts: scene.ours(p)}
        timing = paired(ways, min(scene.options.rounds, 5 if tokens < 3000 else 2))
        got = scene.ours(prompts)
        off, own = gap(got[:, :-1], scene.states(ids)), timing.ratio("ours", "floor")
        yield result(
            "last-token states of one long prompt, seconds over the bare trunk's",
            f"{scene.shape}, {ids[0].shape[1]:,} tokens",
            own,
            LENGTHS[tokens],
            equality=f"states equal transformers' own to {off:.1e}",
            equal=off <= 1e-4,
            note=f"{timing.median('ours'):.2f} s; {timing.spread('ours', 'floor')}",
        )
        if scene.options.rivals and tokens in RIVALED:
            yield from _rivals(scene, prompts, got, own)


def _rivals(
    scene: Scene, prompts: mm.PromptSet, ours: Tensor, own: float
) -> Iterator[dict[str, Any]]:
    said = [prompt.text for prompt in prompts]
    found = Rivals.measure(scene.hf, said, 2, names=("nnsight", "interp-engine"))
    for name, one in found.items():
        off = gap(one.states, ours[:, one.layers])
        yield result(
            f"times faster than {name}",
            f"{scene.shape}, last-token states of one prompt of {len(said[0].split()):,} tokens",
            one.ratio / own,
            equality=f"states equal to {off:.1e}",
            equal=off <= 1e-3,
            note=f"{one.ratio:.2f} times the bare trunk in its own environment ({one.versions})",
        )


def _memory(scene: Scene) -> Iterator[dict[str, Any]]:
    for tokens in (1024, 3072):
        most = {
            who: _alone(scene.options.tiny, who, scene.length(tokens)) for who in ("floor", "ours")
        }
        yield result(
            "peak resident memory of that, over transformers'",
            f"{scene.shape}, {scene.length(tokens):,} tokens, weights included",
            most["ours"] / most["floor"],
            "<= 1.25",
            equality="as above",
            note=f"{most['ours']:.0f} over {most['floor']:.0f} MB, each in a process of its own",
        )


def _alone(tiny: bool, who: str, tokens: int) -> float:
    code = f"from benchmarks.bench_length import peak; peak({tiny}, {who!r}, {tokens})"
    path = os.pathsep.join(part for part in sys.path if part)
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    return float(json.loads(done.stdout.splitlines()[-1]))


def peak(tiny: bool, who: str, tokens: int) -> None:
    """Print the most memory, in MB, that this process has held from the loaded model on."""
    torch.set_num_threads(1)
    hf = plain(tiny)
    prompts = prompts_of(texts(Options(tiny), [tokens], hf.config.vocab_size))
    if who == "ours":
        model = mm.load_model(hf, tokenizer=tokenizer_of(hf), consume=True)
        del hf
        mm.cache_activations(model, prompts_of(texts(Options(tiny), [4], 200)), sites="resid_post")
    reset = Path("/proc/self/clear_refs")
    if reset.exists():  # from here on the peak is that of the pass
        reset.write_text("5")
    if who == "ours":
        mm.cache_activations(model, prompts, sites="resid_post")
    else:
        ids = torch.tensor([tokenizer_of(hf)(prompts[0].text).input_ids])
        with torch.no_grad():
            hf.model(ids, use_cache=False)
    print(json.dumps(_peak()))


def _header(scene: Scene, tokens: int, target: str) -> dict[str, Any]:
    header, own = scene.length(tokens), scene.length(OWN)
    count = 4 if scene.options.tiny else QUESTIONS
    (begin,) = texts(scene.options, [header], scene.hf.config.vocab_size, name=1)
    ends = texts(scene.options, [own] * count, scene.hf.config.vocab_size, name=2)
    prompts = prompts_of([f"{begin} {end}" for end in ends])
    ids = scene.ids(prompts)[:2]
    timing = paired(
        {"bare": lambda: scene.trunk(ids), "shared": lambda: scene.ours(prompts)},
        min(2, scene.options.rounds),
    )
    off = gap(scene.ours(prompts)[:2, :-1], scene.states(ids))
    return result(
        "a few-shot header shared by all questions, times faster than the bare trunk",
        f"{scene.shape}, {count} questions of {own} tokens after {header:,}",
        timing.ratio("bare", "shared") * count / 2,
        target,
        equality=f"states of two equal transformers' own on whole prompts to {off:.1e}",
        equal=off <= 1e-4,
        note="the trunk on whole prompts, timed on two and multiplied; all questions in "
        f"{timing.median('shared'):.1f} s",
    )


def _grid(scene: Scene, tokens: int, target: str) -> dict[str, Any]:
    prompts = scene.prompts([scene.length(tokens)] * GRID_PROMPTS, 5)
    ids, layers = scene.ids(prompts), scene.model.n_layers
    others = mm.PromptSet(
        replace(prompt, id=f"other {prompt.id}", group=f"other {prompt.group}")
        for prompt in scene.prompts([4] * 8, 6)
    )
    acts = mm.cache_activations(scene.model, others, sites="resid_post")
    r = mm.difference_of_means(acts, toward="generalized")
    task = PromptAnswers("behavior")
    task.max_new_tokens = 1
    cells = [(layer, alpha) for layer in range(layers) for alpha in ALPHAS]
    sample = [cells[len(cells) // 3]]

    def edits(chosen: list[tuple[int, float]]) -> list[mm.AddDirection]:
        return [mm.AddDirection(r["resid_post", k], alpha=a, positions="last") for k, a in chosen]

    @torch.no_grad()
    def loop() -> Tensor:
        out = []
        for layer, alpha in sample:
            vector = (r["resid_post", layer].vector * alpha).float()
            with _added(scene.hf.model.layers[layer], vector, "last"):
                found = [scene.hf(row, logits_to_keep=1).logits[:, -1] for row in ids]
            out.append(torch.cat(found))
        return torch.stack(out)

    def ours() -> object:
        return evaluate_each(scene.model, prompts, edits(cells), task=task, margins=False)

    timing = paired({"loop": loop, "ours": ours}, 1)
    with patched_each(scene.model, edits(sample)) as views:
        tokenized = scene.model.tokenize(prompts)
        got = many_logits(scene.model.backend, tokenized, [view.interventions for view in views])
    own = loop()
    off = float(((got - own).abs().amax(-1) / (own.amax(-1) - own.amin(-1))).max())
    return result(
        "a grid of edits at the last position of long prompts, times faster than a user's loop",
        f"{scene.shape}, {layers} layers x {len(ALPHAS)} alphas, {len(ids)} prompts of "
        f"{ids[0].shape[1]:,} tokens",
        timing.ratio("loop", "ours") * len(cells) / len(sample),
        target,
        equality=f"logits equal to {off:.1e} of their spread",
        equal=off <= 1e-4,
        note=f"all {len(cells)} cells in {timing.median('ours'):.1f} s; the loop timed on one of "
        "them and multiplied, its logits those of the last token only",
    )


def _generation(scene: Scene, tokens: int) -> Iterator[dict[str, Any]]:
    """Greedy text after two long prompts; steered by a direction at every layer, and plain."""
    prompts, new = scene.prompts([scene.length(tokens)] * 2, 7), 4 if scene.options.tiny else NEW
    ids, model = torch.cat(scene.ids(prompts)), scene.model
    acts = mm.cache_activations(model, scene.prompts([4] * 8, 6), sites="resid_post")
    r = mm.difference_of_means(acts, toward="generalized")
    adds = [mm.AddDirection(r["resid_post", k], alpha=0.5) for k in range(model.n_layers)]

    @torch.no_grad()
    def floor() -> list[list[int]]:
        out: Tensor = scene.hf.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False,
            num_beams=1, repetition_penalty=1.0, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        return [_until(row, model.eos_ids) for row in out[:, ids.shape[1] :].tolist()]

    def plain() -> list[list[int]]:
        return [done.ids for done in model.complete(prompts, new)]

    def steered() -> list[list[int]]:
        with mm.patched(model, adds) as view:
            return [done.ids for done in view.complete(prompts, new)]

    timing = paired({"floor": floor, "plain": plain, "steered": steered}, 2)
    equal = plain() == floor()
    for name, about in (("plain", "without edits"), ("steered", "steered at every layer")):
        yield result(
            f"generation {about}, tokens/s over hf.generate's",
            f"{scene.shape}, {len(ids)} prompts of {ids.shape[1]:,} tokens, {new} new ones",
            timing.ratio("floor", name),
            equality=f"texts without edits {'equal' if equal else 'UNEQUAL'} to hf.generate's",
            equal=equal,
            note=f"{timing.median(name):.2f} s; {timing.spread('floor', name)}",
        )


def _until(ids: list[int], ends: Collection[int]) -> list[int]:
    return next((ids[:k] for k, token in enumerate(ids) if token in ends), ids)
