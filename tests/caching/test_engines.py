"""Shards made by actors on a Ray cluster of two, one of which dies: the bytes of one process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import as_users_run_it, bench, contrast_set, tiny_gpt2, word_tokenizer
from test_store import hashes

import mechmem as mm
from mechmem.caching import engines

OPTIONS = {"token_budget": 14, "shard_rows": 4}
STATS = {**OPTIONS, "by": "behavior", "bootstrap": 8, "covariance": ("resid_post", 1)}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_gpt2().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def moments(model: mm.Model, folder: Path, **options) -> mm.Moments | None:
    return mm.extract_moments(model, contrast_set(), folder, **{**STATS, **options})


class TestWhatIsRefused:
    @pytest.fixture
    def there(self, monkeypatch) -> None:
        monkeypatch.setattr(engines, "imported_ray", lambda: None)

    @pytest.mark.parametrize("engine", ["rya", 3, None], ids=str)
    def test_an_unknown_engine(self, tmp_path, engine) -> None:
        text = f"{engine!r} is not an engine; there are 'process' and 'ray'"
        with as_users_run_it(), pytest.raises(mm.ModelError, match=text):
            moments(bench().model, tmp_path / "out", engine=engine)
        assert not (tmp_path / "out").exists()

    def test_without_ray(self, tmp_path, saved, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(mm.ModelError, match=r"needs Ray: pip install 'mechmem\[ray\]'"):
            moments(mm.load_model(saved), tmp_path / "out", engine="ray")
        assert not (tmp_path / "out").exists()

    @pytest.mark.usefixtures("there")
    def test_no_folder(self, saved) -> None:
        for engine in ("process", "ray"):
            with pytest.raises(mm.MechmemError, match="folder must be text or Path, got None"):
                mm.extract_moments(
                    mm.load_model(saved), contrast_set(), None, by="label", engine=engine
                )

    @pytest.mark.usefixtures("there")
    def test_a_model_that_only_this_process_has(self, tmp_path, saved) -> None:
        model = mm.load_model(saved)
        acts = mm.cache_activations(model, contrast_set())
        r = mm.difference_of_means(acts, toward="generalized")
        with mm.patched(model, mm.AddDirection(r["resid_post", 1], alpha=1.0)) as edited:
            for one in (bench().model, edited, model.truncating("left")):
                with pytest.raises(
                    mm.ModelError, match=r"another process can load.*save_pretrained"
                ):
                    moments(one, tmp_path / "out", engine="ray")
        assert not (tmp_path / "out").exists()


def begun(model: mm.Model, folder: Path) -> list[Path]:
    """A folder with its plan and no shard: their files."""
    jobs = []
    assert moments(model, folder, engine=jobs.extend) is None
    return [job.path() for job in jobs]


def worker(model: mm.Model) -> engines._Worker:
    again = partial(mm.extract_moments, **STATS)
    return engines._Worker(model.loaded, model.info, again, torch.get_num_threads())


class TestAWorkerByItself:
    def test_it_makes_the_shard_that_it_is_told_and_no_other(self, tmp_path, saved) -> None:
        model = mm.load_model(saved)
        moments(model, tmp_path / "one")
        shards = begun(model, tmp_path / "out")
        hand = worker(model)
        for name in (str(shards[2]), str(shards[2]), str(shards[0])):
            assert hand.make(name) == name
        assert [path.is_file() for path in shards] == [k in (0, 2) for k in range(len(shards))]
        there = hashes(tmp_path / "out")
        assert there.items() <= hashes(tmp_path / "one").items()

    def test_a_model_that_was_changed_since_it_was_loaded(self, tmp_path, saved) -> None:
        model = mm.load_model(saved)
        with torch.no_grad():
            next(model.tl.parameters()).mul_(2)
        shards = begun(model, tmp_path / "out")
        with pytest.raises(mm.ModelError, match="is not the same model when a worker loads it"):
            worker(model).make(str(shards[0]))

    def test_a_folder_that_its_machine_does_not_see(self, tmp_path, saved) -> None:
        elsewhere = tmp_path / "elsewhere" / "part-0000" / "shard-00000.safetensors"
        with pytest.raises(mm.ArtifactError, match=r"elsewhere is not a folder that .* sees"):
            worker(mm.load_model(saved)).make(str(elsewhere))
        assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("machines", "free", "needs", "workers"),
    [
        ([{"CPU": 8}, {"CPU": 5}], {"CPU": 13}, (4, 0), 3),
        ([{"CPU": 8}, {"CPU": 5}], {"CPU": 9}, (4, 0), 2),
        ([{"CPU": 8}, {"CPU": 5}], {"CPU": 2}, (4, 0), 1),
        ([{"CPU": 64, "GPU": 8}, {"CPU": 64}], {"CPU": 128, "GPU": 8}, (1, 2), 4),
        ([{"CPU": 3}, {"CPU": 3}], {"CPU": 6}, (4, 0), None),
        ([{"CPU": 8}], {"CPU": 8}, (1, 1), None),
    ],
    ids=str,
)
def test_as_many_workers_as_there_is_room_for(machines, free, needs, workers) -> None:
    nodes = [{"Alive": True, "Resources": one} for one in machines]
    nodes.append({"Alive": False, "Resources": {"CPU": 99, "GPU": 99}})
    ray = SimpleNamespace(nodes=lambda: nodes, available_resources=lambda: free)
    if workers is None:
        text = f"No machine of the cluster has the {needs[0]} cores and {needs[1]} GPUs"
        with pytest.raises(mm.ModelError, match=text):
            engines._room(ray, *needs)
    else:
        assert engines._room(ray, *needs) == workers


class TestTheModelKnowsItsName:
    def test_it_is_made_again_from_what_it_was_made_from(self, saved, monkeypatch) -> None:
        monkeypatch.chdir(saved.parent)
        model = mm.load_model(saved.name, dtype="bfloat16", prepend_bos=False)
        assert model.loaded == {"source": str(saved), "dtype": "bfloat16", "prepend_bos": False}
        monkeypatch.chdir(saved.root)
        again = mm.load_model(**model.loaded)
        assert (again.info.fingerprint, again.info.tokenizer) == (
            model.info.fingerprint, model.info.tokenizer
        )  # fmt: skip
        assert mm.load_model("lab/addition-cued").loaded == {"source": "lab/addition-cued"}
        assert not bench().model.loaded


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch) -> Iterator[Callable[[int], Path]]:
    """Starts a cluster of two, whose workers die at the third shard, the first so many times; a
    folder says who loaded the model and who made what."""
    import ray

    log = tmp_path / "log"
    log.mkdir()

    def start(deaths: int) -> Path:
        def watched() -> None:  # in every process of Ray, before its work
            import os

            from mechmem.caching import engines
            from mechmem.caching.parts import Part

            load, write = engines.load_model, Part.write

            def say(what: str) -> None:
                with (log / what).open("a") as file:
                    file.write(f"{os.getpid()}\n")

            def loading(**options: object) -> mm.Model:
                say("loaded")
                return load(**options)

            def writing(part: Part, shard: int, tensors: dict) -> None:
                died = log / "died"
                if shard == 2 and (len(died.read_text().split()) if died.exists() else 0) < deaths:
                    say("died")
                    os._exit(1)
                say(f"shard-{shard}")
                write(part, shard, tensors)

            engines.load_model, Part.write = loading, writing

        ray.init(
            "local", num_cpus=2, include_dashboard=False, log_to_driver=False,
            logging_level="warning", runtime_env={"worker_process_setup_hook": watched},
        )  # fmt: skip
        return log

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    yield start
    ray.shutdown()


def said(log: Path, what: str) -> list[str]:
    return [line for file in log.glob(what) for line in file.read_text().split()]


def wait_until(happens: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not happens() and time.monotonic() < end:
        time.sleep(0.1)
    return happens()


@pytest.mark.ray
@pytest.mark.slow
class TestTwoWorkers:
    def test_one_dies_and_the_bytes_are_those_of_one_process(
        self, tmp_path, saved, cluster
    ) -> None:
        import ray

        log = cluster(deaths=1)
        model, heard = mm.load_model(saved), []
        one = moments(model, tmp_path / "one")
        found = moments(model, tmp_path / "two", engine="ray", progress=heard.append)
        assert hashes(tmp_path / "two") == hashes(tmp_path / "one")
        assert all(torch.equal(found.tensors()[k], value) for k, value in one.tensors().items())
        shards = len(list((tmp_path / "two").rglob("shard-*")))
        assert len(heard) == shards > 4
        assert sum(heard) == len(contrast_set())
        # One model each for the two and for the one that came after the dead one; no shard twice.
        (dead,), loaded, made = said(log, "died"), said(log, "loaded"), said(log, "shard-*")
        assert len(loaded) == len(set(loaded)) == 3
        assert len(made) == shards
        assert set(made) | {dead} == set(loaded)
        # States go on in the same way; what is there already is left alone.
        mm.extract_activations(model, contrast_set(), tmp_path / "whole", **OPTIONS)
        mm.extract_activations(model, contrast_set(), tmp_path / "rest", **OPTIONS)
        for shard in (1, 4):
            (tmp_path / "rest" / "part-0000" / f"shard-{shard:05d}.safetensors").unlink()
        again = mm.extract_activations(
            model, contrast_set(), tmp_path / "rest", engine="ray", **OPTIONS
        )
        assert again.complete
        assert hashes(tmp_path / "rest") == hashes(tmp_path / "whole")
        assert Counter(said(log, "shard-*")).total() == shards + 2
        # The caller's cluster is left as it was: running, with nobody at work.
        assert wait_until(lambda: ray.available_resources().get("CPU") == 2)

    def test_what_cannot_be_made_is_an_error_and_what_was_made_stays(
        self, tmp_path, saved, cluster, monkeypatch
    ) -> None:
        log = cluster(deaths=9)
        model = mm.load_model(saved)
        with pytest.raises(mm.ModelError, match=r"A worker died four times: .* Run it again"):
            moments(model, tmp_path / "out", engine="ray")
        assert len(said(log, "died")) == 4
        assert {"0", "1"} <= {path.name[-1] for path in log.glob("shard-*")}
        # What a worker raises is raised here, in its own words.
        with torch.no_grad():
            next(model.tl.parameters()).mul_(2)
        with pytest.raises(mm.ModelError, match=r"^'.*' is not the same model when a worker"):
            moments(model, tmp_path / "changed", engine="ray")
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        with pytest.raises(mm.ModelError, match="No machine of the cluster has the 3 cores"):
            moments(mm.load_model(saved), tmp_path / "wide", engine="ray")


@pytest.mark.ray
@pytest.mark.slow
def test_the_command_starts_a_cluster_and_leaves_none(tmp_path, saved) -> None:
    """In a process of its own."""
    prompts = contrast_set().to_jsonl(tmp_path / "prompts.jsonl")
    common = ["extract", str(saved), str(prompts), "--by", "label", "--out"]
    for more in (["one"], ["ray", "--engine", "ray", "--address", "local"]):
        done = subprocess.run(
            [sys.executable, "-m", "mechmem", *common, *more], cwd=tmp_path, capture_output=True,
            text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "12" in done.stdout
    files = [
        {name: digest for name, digest in hashes(tmp_path / folder).items() if "part" in name}
        for folder in ("one", "ray")
    ]
    assert files[0] == files[1]


def test_an_address_is_for_ray(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mechmem", "extract", "lab/none", "none.jsonl", "--out",
         str(tmp_path), "--address", "here:1"], capture_output=True, text=True, timeout=300,
        env={**os.environ, "COLUMNS": "200"}, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "only --engine ray has a cluster" in done.stderr
