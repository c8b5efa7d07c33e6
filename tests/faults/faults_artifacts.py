"""States and results in memory and on disk."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from fault_scene import SITE, Fault, Scene, other_model, wide_directions
from safetensors.torch import load_file, save_file

import mechmem as mm
from mechmem import artifacts
from mechmem.analysis import Directions
from mechmem.manifests import sealed


def kept(s: Scene) -> Path:
    """Directions on disk."""
    s.directions.save(s.folder / "r")
    s.settled()
    return s.folder / "r"


def changed(**about: Any):
    """Load directions whose manifest says something else; ``None`` leaves a key out."""

    def trigger(s: Scene) -> None:
        kept(s)
        told = {**json.loads((s.folder / "r.json").read_text()), **about}
        told = {key: value for key, value in told.items() if value is not None}
        s.file("r.json", json.dumps(told))
        Directions.load(s.folder / "r")

    return trigger


def resealed(**about: Any):
    """Load directions whose manifest says something else, with digests that fit."""

    def trigger(s: Scene) -> None:
        kept(s)
        path = s.folder / "r.safetensors"
        tensors = load_file(path)
        told = {**json.loads(bytes(tensors.pop(artifacts.MANIFEST).tolist())), **about}
        told = {key: value for key, value in told.items() if value is not None}
        artifacts.write_tensors(path, tensors, json.dumps(sealed(told)))
        s.settled()
        Directions.load(s.folder / "r")

    return trigger


def with_manifest(text: str):
    def trigger(s: Scene) -> None:
        kept(s)
        s.file("r.json", text)
        Directions.load(s.folder / "r")

    return trigger


def cut_off(s: Scene) -> None:
    kept(s)
    s.file("r.safetensors", (s.folder / "r.safetensors").read_bytes()[:-40])
    Directions.load(s.folder / "r")


def one_missing(s: Scene) -> None:
    kept(s)
    (s.folder / "r.safetensors").unlink()
    s.settled()
    Directions.load(s.folder / "r")


def mixed(s: Scene) -> None:
    """The tensors of one save beside the copy of another's manifest, as after a kill in between."""
    kept(s)
    mm.difference_of_means(s.acts, toward="memorized").save(s.folder / "other")
    s.file("r.safetensors", (s.folder / "other.safetensors").read_bytes())
    assert next(iter(Directions.load(s.folder / "r"))).toward == "memorized"


class Trap:
    def __reduce__(self) -> Any:
        return (Path.write_text, (Path("trapped"), "ran"))


def pickled(s: Scene) -> None:
    s.patch.chdir(s.folder)
    kept(s)
    s.file("r.safetensors", pickle.dumps(Trap()))
    Directions.load(s.folder / "r")


def lacking_tensor(s: Scene) -> None:
    s.acts.save(s.folder / "acts")
    tensors = load_file(s.folder / "acts.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if k != "resid_pre.1"}, s.folder / "acts.safetensors"
    )
    s.settled()
    mm.Activations.load(s.folder / "acts")


def of_others(s: Scene) -> None:
    save_file({"resid_pre.0": torch.zeros(16)}, s.folder / "r.safetensors")
    s.settled()
    Directions.load(s.folder / "r")


def on_other_model(s: Scene) -> None:
    with mm.patched(other_model(), mm.ProjectOut(s.direction)):
        raise AssertionError


def on_other_dtype(s: Scene) -> None:
    with mm.patched(s.fresh(dtype="bfloat16"), mm.ProjectOut(s.direction)):
        raise AssertionError


def forced(s: Scene) -> None:
    with mm.patched(other_model(), mm.ProjectOut(s.direction, force=True)) as view:
        view.logits(s.others)
    assert view.edit_report().table()["tokens"].sum() > 0


def at_other_width(s: Scene) -> None:
    edit = mm.AddDirection(wide_directions()["mlp_post", 0], at=SITE)
    with mm.patched(s.model, edit) as view:
        view.logits(s.others)


def stored(s: Scene) -> Path:
    folder = s.folder / "store"
    mm.extract_activations(s.model, s.prompts, folder, sites=[SITE])
    s.settled()
    return folder


def store_cut_off(s: Scene) -> None:
    folder = stored(s)
    (shard,) = list(folder.rglob("*.safetensors"))[:1]
    name = str(shard.relative_to(s.folder))
    s.file(name, shard.read_bytes()[:-40])
    mm.ActivationStore(folder).load()


FAULTS = [
    Fault(
        "ask for states that were not cached",
        lambda s: s.acts["mlp_out", 0],
        mm.SiteError,
        "No states of ('mlp_out', 0) here; there are 'resid_pre[0]'",
        "Ask for it when caching: sites=[...].",
    ),
    Fault(
        "ask for a position that was not cached",
        lambda s: s.acts.at("lst"),
        mm.PositionError,
        "No position 'lst' here; there are 'last'.",
        "Did you mean 'last'?",
    ),
    Fault(
        "stack sites of several widths",
        lambda s: mm.cache_activations(s.model, s.prompts, sites=[SITE, ("mlp_post", 0)]).values,
        mm.SiteError,
        "`values` needs one position and one width",
        "Use acts[stream, layer].",
    ),
    Fault(
        "select states of prompts that were not cached",
        lambda s: s.acts.select(s.others),
        mm.PromptError,
        "No states of prompts 'og0.0'",
        "Cache them too",
    ),
    Fault(
        "load an artifact that does not exist",
        lambda s: Directions.load(s.folder / "none"),
        mm.ArtifactError,
        "none.safetensors is missing",
        "an artifact is two files, none.safetensors and none.json",
    ),
    Fault(
        "load an artifact of which one file is missing",
        one_missing,
        mm.ArtifactError,
        "r.safetensors",
        "an artifact is two files, r.safetensors and r.json",
    ),
    Fault(
        "load truncated safetensors",
        cut_off,
        mm.ArtifactError,
        "cannot be read, it may be cut off",
        "Save it again",
    ),
    Fault(
        "load a manifest that is cut off",
        with_manifest('{"format": 1, "kind": "dire'),
        mm.ArtifactError,
        "r.json cannot be read as a manifest, it may be cut off: Unterminated string",
        "Save it again",
    ),
    Fault(
        "load a manifest that is a list",
        with_manifest("[1, 2]"),
        mm.ArtifactError,
        "r.json was changed: it holds a list, not a manifest",
        "Save it again, or delete it: r.safetensors holds everything.",
    ),
    Fault(
        "load an artifact of another kind",
        lambda s: mm.Activations.load(kept(s)),
        mm.ArtifactError,
        "r.safetensors holds 'directions', not 'activations'",
        "load it as what it is",
    ),
    Fault(
        "load an artifact of another format",
        resealed(format=99),
        mm.ArtifactError,
        "r.safetensors has format 99; this mechmem reads format 2",
        "use the mechmem that wrote it",
    ),
    Fault(
        "load a manifest that lacks an entry",
        resealed(means=None),
        mm.ArtifactError,
        "r.safetensors has no 'means'",
        "Save it again",
    ),
    Fault(
        "load a manifest with an entry of another kind",
        resealed(toward=3),
        mm.ArtifactError,
        "r.safetensors: toward must be text, got 3",
        "save it again",
    ),
    Fault(
        "load a manifest that somebody has edited",
        changed(toward="memorized"),
        mm.ArtifactError,
        "r.json was changed at 'toward'",
        "Save it again, or delete it: r.safetensors holds everything.",
    ),
    Fault(
        "load tensors of which one is lacking",
        lacking_tensor,
        mm.ArtifactError,
        "acts.safetensors was changed: 'resid_pre.1' is in the file or in its manifest",
        "Save it again",
    ),
    Fault(
        "load the tensors of one save beside the readable manifest of another",
        mixed,
        None,
        "the tensors carry their own manifest, and that counts",
    ),
    Fault(
        "load tensors that another program wrote",
        of_others,
        mm.ArtifactError,
        "r.safetensors has no manifest in it",
        "read it with mm.import_directions",
    ),
    Fault(
        "load a pickle named .safetensors",
        pickled,
        mm.ArtifactError,
        "cannot be read",
        "Nothing is ever unpickled",
    ),
    Fault(
        "save where a file blocks the folder",
        lambda s: s.acts.save(s.blocked() / "acts"),
        mm.ArtifactError,
        "Cannot write …acts.json",
        "Choose a folder you can write to.",
    ),
    Fault(
        "use a direction on another model",
        on_other_model,
        mm.ModelError,
        "ProjectOut was made on model 'GPT2LMHeadModel' (fingerprint …but is used on",
        "Make it again on this model, or pass force=True if the two are meant to be comparable.",
    ),
    Fault(
        "use a direction on the same model in another dtype",
        on_other_dtype,
        mm.ModelError,
        "raw, float32) but is used on …raw, bfloat16)",
        "pass force=True",
    ),
    Fault(
        "force a direction onto another model of its width",
        forced,
        None,
        "the edit acts, and is reported",
    ),
    Fault(
        "use a direction at a site of another width",
        at_other_width,
        mm.EditError,
        "The direction comes from mlp_post[0] and has width 64, but the activation edited has "
        "width 16",
        "edit a stream of the same width",
    ),
    Fault(
        "open a folder that is no store",
        lambda s: mm.ActivationStore(s.folder),
        mm.ArtifactError,
        "holds no stored activations",
        "make them with mm.extract_activations(model, prompts, folder).",
    ),
    Fault(
        "ask a store for a site that it lacks",
        lambda s: mm.ActivationStore(stored(s))["resid_pre", 0],
        mm.SiteError,
        "No states of ('resid_pre', 0) here; there are 'resid_post[1]'",
        "Ask for it when extracting: sites=[...].",
    ),
    Fault(
        "continue a store with other settings",
        lambda s: mm.extract_activations(s.model, s.prompts, stored(s), sites="resid_pre"),
        mm.ArtifactError,
        "was begun with other settings",
        "Use the same ones, or another folder.",
    ),
    Fault(
        "read a store of which a shard is cut off",
        store_cut_off,
        mm.ArtifactError,
        "cannot be read",
        "remove it and run the extraction again",
    ),
]
