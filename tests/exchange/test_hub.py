"""Results on a hub: the real client, talking to a stand-in on this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import huggingface_hub
import numpy as np
import pytest
import torch
from exchange.stand_in import Hub, running
from helpers import bench, contrast_set, made_states

import mechmem as mm
from mechmem.reports import hub as ours


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with running() as found:
        yield found
    assert found.unknown == []


def states() -> mm.Activations:
    rng = np.random.default_rng(0)
    classes = ["memorized", "generalized"] * 6
    return made_states({("resid_post", 1): rng.normal(size=(12, 1, 48))}, classes)


def said(hub: Hub) -> dict[str, str]:
    return {"token": "hf_secret", "endpoint": hub.url}


def test_directions_come_back_from_a_hub_as_they_went(hub):
    r = mm.difference_of_means(states(), toward="generalized")
    where = mm.push_to_hub(r, "me/direction", **said(hub))
    assert where.startswith(f"{hub.url}/me/direction/commit/")
    assert set(hub.repos["me/direction"]) == {"README.md", "result.json", "result.safetensors"}
    assert "generalized" in hub.repos["me/direction"]["README.md"].decode()
    assert hub.private["me/direction"] is True
    assert hub.tokens == {"Bearer hf_secret"}
    back = mm.from_hub("me/direction", **said(hub))
    assert isinstance(back, mm.Directions)
    site = ("resid_post", 1)
    assert torch.equal(back[site].vector, r[site].vector)
    assert back[site].provenance == r[site].provenance


def test_every_kind_of_result_finds_its_own_class(hub):
    acts = states()
    made = {
        "scores": mm.neuron_mean_difference(acts),
        "acts": acts,
        "moments": mm.Moments.from_activations(acts, "behavior"),
        "prompts": contrast_set(),
    }
    for name, result in made.items():
        mm.push_to_hub(result, f"me/{name}", private=False, **said(hub))
        assert hub.private[f"me/{name}"] is False
        assert type(mm.from_hub(f"me/{name}", **said(hub))) is type(result)
    assert mm.from_hub("me/prompts", **said(hub)) == contrast_set()
    scores = mm.from_hub("me/scores", **said(hub))
    assert scores.table().equals(made["scores"].table())


def test_the_folder_of_a_study_goes_whole_and_without_anything_that_runs(hub, tmp_path):
    folder = tmp_path / "study"
    (folder / "tables").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "tables" / "test.csv").write_text("a\n1\n")
    (folder / "notes.pkl").write_bytes(b"\x80\x04.")
    mm.push_to_hub(folder, "me/study", **said(hub))
    assert set(hub.repos["me/study"]) == {"manifest.json", "tables/test.csv"}
    hub.repos["me/study"]["evil.py"] = b"raise SystemExit"
    back = mm.from_hub("me/study", folder=tmp_path / "here", **said(hub))
    assert (back / "tables" / "test.csv").read_text() == "a\n1\n"
    assert not (back / "evil.py").exists()


def test_a_new_push_to_the_same_repository_is_a_new_commit(hub):
    one = mm.push_to_hub(contrast_set(4), "me/prompts", **said(hub))
    commit = one.rpartition("/")[2]
    other = mm.push_to_hub(contrast_set(6), "me/prompts", **said(hub))
    assert one != other
    assert mm.from_hub("me/prompts", **said(hub)) == contrast_set(6)
    assert commit != other.rpartition("/")[2]


def test_what_cannot_be_pushed_or_fetched_is_said_in_words(hub, tmp_path):
    with pytest.raises(mm.ArtifactError, match="Model cannot be pushed"):
        mm.push_to_hub(bench().model, "me/model", **said(hub))
    with pytest.raises(mm.ArtifactError, match="holds no saved study"):
        mm.push_to_hub(tmp_path, "me/model", **said(hub))
    with pytest.raises(mm.ArtifactError, match=r"cannot be fetched from the hub.*hf auth login"):
        mm.from_hub("me/nothing", **said(hub))
    for name, files, words in [
        ("empty", {"README.md": b"hello"}, "holds no result"),
        ("odd", {"result.json": b'{"kind": "picture"}'}, "holds 'picture'"),
        ("cut", {"result.json": b'{"ki'}, "is not a manifest"),
        ("list", {"result.json": b'{"kind": ["x"]}'}, r"holds \['x'\]"),
    ]:
        hub.repos[f"me/{name}"] = files
        with pytest.raises(mm.ArtifactError, match=words):
            mm.from_hub(f"me/{name}", **said(hub))


class TestAHubThatIsSlow:
    @pytest.mark.parametrize(
        "drops", [b"", b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 60], ids=["silent", "dripping"]
    )
    @pytest.mark.parametrize(
        "ask",
        [
            lambda where: mm.push_to_hub(contrast_set(4), "me/slow", **where),
            lambda where: mm.from_hub("me/slow", **where),
        ],
        ids=["push", "fetch"],
    )
    def test_that_never_answers_is_given_up(self, hub, monkeypatch, drops, ask):
        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                for k in range(80):
                    connection.sendall(drops[k : k + 1])
                    time.sleep(0.1)

        monkeypatch.setattr(ours, "QUIET", 0.5)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=serve, daemon=True).start()
            where = {"token": "x", "endpoint": f"http://127.0.0.1:{listener.getsockname()[1]}"}
            began = time.monotonic()
            with pytest.raises(mm.ArtifactError, match=r"the hub: TimeoutError: no answer in"):
                ask(where)
            assert time.monotonic() - began < 6

    def test_that_drips_its_answer_to_a_push_is_given_up(self, hub, monkeypatch):
        monkeypatch.setattr(ours, "UPLOAD", 0.5)
        hub.pauses = (0.2,) * 40
        began = time.monotonic()
        with pytest.raises(mm.ArtifactError, match=r"no answer in .* it may have arrived all the"):
            mm.push_to_hub(contrast_set(4), "me/slow", **said(hub))
        assert time.monotonic() - began < 6

    def test_that_sends_its_files_slowly_is_waited_for(self, hub, monkeypatch):
        mm.push_to_hub(contrast_set(4), "me/slow", **said(hub))
        monkeypatch.setattr(ours, "QUIET", 2.0)
        hub.pauses = (0.5,) * 6
        assert mm.from_hub("me/slow", **said(hub)) == contrast_set(4)
