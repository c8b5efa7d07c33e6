"""Shards made by actors on a Ray cluster of two, one of which dies: the bytes of one process."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import as_users_run_it, bench, contrast_set, tiny_gpt2, word_tokenizer
from test_store import hashes

import mechmem as mm
from mechmem.caching import engines

OPTIONS = {"token_budget": 14, "shard_rows": 4}
STATS = {**OPTIONS, "by": "behavior", "bootstrap": 8, "covariance": ("resid_post", 1)}
on_ray = pytest.mark.ray


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
        hint = r" Did you mean 'ray'\?" if engine == "rya" else ""
        text = f"{engine!r} is not an engine; there are 'process' and 'ray'.{hint}$"
        with as_users_run_it(), pytest.raises(mm.ModelError, match=text):
            moments(bench().model, tmp_path / "out", engine=engine)
        assert not (tmp_path / "out").exists()

    def test_without_ray(self, tmp_path, saved, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(mm.ModelError, match=r"needs Ray: pip install 'mechmem\[ray\]'"):
            moments(mm.load_model(saved), tmp_path / "out", engine="ray")
        assert not (tmp_path / "out").exists()

    def test_no_folder(self, saved) -> None:
        for engine in ("process", "ray"):
            with pytest.raises(mm.MechmemError, match="folder must be text or Path, got None"):
                mm.extract_moments(mm.load_model(saved), contrast_set(), None, by="label", engine=engine)

    @pytest.mark.usefixtures("there")
    def test_a_model_that_only_this_process_has(self, tmp_path, saved) -> None:
        model = mm.load_model(saved)
        acts = mm.cache_activations(model, contrast_set())
        r = mm.difference_of_means(acts, toward="generalized")
        with mm.patched(model, mm.AddDirection(r["resid_post", 1], alpha=1.0)) as edited:
            for one in (bench().model, edited, model.truncating("left")):
                with pytest.raises(mm.ModelError, match=r"another process can load.*save_pretrained"):
                    moments(one, tmp_path / "out", engine="ray")
        assert not (tmp_path / "out").exists()


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
def cluster(tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> Iterator[Path]:
    """Two workers. The first to make the third shard dies at it; a folder says who did what."""
    ray = pytest.importorskip("ray")
    log = tmp_path_factory.mktemp("log")

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
            if shard == 2 and not (log / "died").exists():
                say("died")
                os._exit(1)
            say(f"shard-{shard}")
            write(part, shard, tensors)

        engines.load_model, Part.write = loading, writing

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False,
        logging_level="warning", runtime_env={"worker_process_setup_hook": watched},
    )  # fmt: skip
    yield log
    ray.shutdown()


def said(log: Path, what: str) -> list[str]:
    return sorted(line for file in log.glob(what) for line in file.read_text().split())


@on_ray
class TestTwoWorkers:
    def test_one_dies_and_the_bytes_are_those_of_one_process(self, tmp_path, saved, cluster) -> None:
        import ray

        model, heard = mm.load_model(saved), []
        one = moments(model, tmp_path / "one")
        found = moments(model, tmp_path / "ray", engine="ray", progress=heard.append)
        assert hashes(tmp_path / "ray") == hashes(tmp_path / "one")
        assert sum(heard) == len(contrast_set())
        shards = len(list((tmp_path / "ray").rglob("shard-*")))
        assert len(heard) == shards > 4
        assert {k: v.tolist() for k, v in found.tensors().items()} == {
            k: v.tolist() for k, v in one.tensors().items()
        }
        # A model for each of two, and one more for the one that came after the dead one; every
        # shard once, by all of them.
        loaded, (dead,) = said(cluster, "loaded"), said(cluster, "died")
        assert len(loaded) == len(set(loaded)) == 3
        assert dead in loaded
        made = Counter(said(cluster, "shard-*"))
        assert sum(made.values()) == shards
        assert set(made) | {dead} == set(loaded)
        assert ray.is_initialized()
        assert ray.available_resources()["CPU"] == 2

