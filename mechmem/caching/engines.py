"""Other processes that make the shards of a folder: actors on a Ray cluster.

Each loads a model of its own, is told one missing shard after the other, reads the prompts from the
folder and writes to it: no tensor travels.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mechmem.caching.parts import parts_of
from mechmem.caching.shards import Engine, Job, make_here
from mechmem.errors import ArtifactError, ModelError
from mechmem.models.loading import load_model
from mechmem.models.model import Model, ModelInfo
from mechmem.models.quiet import quiet_transformers
from mechmem.progress import Progress, told
from mechmem.tasks.prompts import PromptSet


def engine_for(again: Callable[..., Any], given: Mapping[str, Any]) -> Engine | None:
    """What makes the shards of ``again``, by its arguments; ``None`` for this process.

    Raises:
        ModelError: For an unknown engine, without Ray, and for a model that only this process has.
    """
    engine, model = given["engine"], given["model"]
    if engine == "process" or callable(engine):
        return engine if callable(engine) else None
    if engine != "ray":
        raise ModelError(f"{engine!r:.80} is not an engine; there are 'process' and 'ray'.")
    ray = imported_ray()
    if not model.loaded or model.interventions or model.tokens.truncate:
        raise ModelError(
            f"{model.name!r} is not a model that another process can load: it came from memory, is "
            "edited or cuts prompts. Save it and its tokenizer with save_pretrained(folder) and "
            "take mm.load_model(folder), or engine='process'."
        )
    own = ("engine", "model", "prompts", "folder", "rank", "world", "progress")
    same = partial(again, **{name: given[name] for name in given if name not in own})
    return partial(_over_ray, ray=ray, model=model, again=same, progress=given["progress"])


def imported_ray() -> Any:
    """The package, or a `ModelError` that says how to get it."""
    try:
        import ray.util
    except ImportError:
        raise ModelError("engine='ray' needs Ray: pip install 'mechmem[ray]'.") from None
    return ray


def _over_ray(jobs: Sequence[Job], ray: Any, model: Model, again: Any, progress: Progress) -> None:
    left = {str(job.path().absolute()): job for job in jobs if job.missing()}
    if not left:
        return
    rows = {name: sum(len(work.rows) for work in job.works) for name, job in left.items()}
    gpus = len({p.device for p in model.tl.parameters() if p.device.type == "cuda"})
    cpus = 1 if gpus else torch.get_num_threads()
    about = (model.loaded, model.info, again, torch.get_num_threads())
    with ExitStack() as stack, told(progress, sum(rows.values()), "extracting") as tell:
        if not ray.is_initialized():
            _connect(ray)
            stack.callback(ray.shutdown)
        kind = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=3, max_task_retries=3)(_Worker)
        workers = [kind.remote(*about) for _ in range(min(_room(ray, cpus, gpus), len(left)))]
        for worker in workers:
            stack.callback(ray.kill, worker)
        pool = ray.util.ActorPool(workers)
        try:
            for name in pool.map_unordered(lambda worker, shard: worker.make.remote(shard), left):
                tell(rows[name], sum(work.computed for work in left[name].works))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayActorError as error:
            why = " ".join(str(error).split())
            raise ModelError(f"A worker died four times: {why:.300} Run it again.") from error


def _connect(ray: Any) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="warning")
    except (OSError, RuntimeError, ValueError) as error:
        at = os.environ.get("RAY_ADDRESS", "here")
        raise ModelError(f"{at!r} is not a Ray cluster to join: {error!s:.300}") from error


def _room(ray: Any, cpus: int, gpus: int) -> int:
    """For how many workers there is room; 1 where all is taken and will be free again."""

    def fitting(there: Mapping[str, float]) -> float:
        most = there.get("CPU", 0) // cpus
        return min(most, there.get("GPU", 0) // gpus) if gpus else most

    room = sum(fitting(node["Resources"]) for node in ray.nodes() if node["Alive"])
    if not room:
        raise ModelError(
            f"No machine of the cluster has the {cpus} cores and {gpus} GPUs that this process "
            "computes on; call torch.set_num_threads, or load the model on another device."
        )
    return int(max(1, min(room, fitting(ray.available_resources()))))


@dataclass
class _Worker:
    """An actor: what it loads, and the shards that it can make."""

    loaded: Mapping[str, Any]
    info: ModelInfo
    again: Callable[..., Any]
    threads: int
    jobs: dict[str, Job] | None = None

    def make(self, shard: str) -> str:
        """Make a shard, unless it is there by now."""
        if self.jobs is None:  # what fails before the first call, Ray tells in its own words
            self.jobs = self._planned(Path(shard).parents[1])
        make_here([self.jobs[shard]] if shard in self.jobs else [])
        return shard

    def _planned(self, folder: Path) -> dict[str, Job]:
        if not (parts := parts_of(folder)):
            raise ArtifactError(
                f"{folder} is not a folder that {socket.gethostname()} sees; choose one on a file "
                "system that all machines of the cluster share."
            )
        torch.set_num_threads(self.threads)  # sums that are cut otherwise differ in their last bits
        with quiet_transformers():
            model = replace(load_model(**self.loaded), name=self.info.name)
        if model.info != self.info:
            raise ModelError(
                f"{model.name!r} is not the same model when a worker loads it; its weights or its "
                "tokenizer were changed since."
            )
        jobs: list[Job] = []
        prompts = PromptSet(prompt for part in parts for prompt in part.prompts)
        self.again(model, prompts, folder, engine=jobs.extend, rank=0, world=1, progress=False)
        return {str(job.path().absolute()): job for job in jobs}
