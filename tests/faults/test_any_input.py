"""Whatever is handed over: a result, or an error of the family."""

from __future__ import annotations

import helpers
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mechmem as mm
from mechmem.artifacts import load_artifact, save_artifact
from mechmem.models.positions import Positions
from mechmem.models.sites import STREAMS, Site, parse_sites

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.floats(), st.text(max_size=8), st.binary(),
    st.sampled_from([*STREAMS, "last", "mean", "all"]), st.just(object()),
)  # fmt: skip
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=2),
    ),
    max_leaves=5,
)


@given(spec=ANYTHING)
@settings(max_examples=200, deadline=None)
def test_any_site_is_sites_of_the_model_or_refused(spec) -> None:
    with helpers.as_users_run_it():
        try:
            found = parse_sites(spec, 3)
        except mm.SiteError:
            return
    assert found
    assert all(isinstance(site, Site) for site in found)
    assert all(site.stream in STREAMS and 0 <= site.layer < 3 for site in found)
    assert len(set(found)) == len(found)


@given(spec=ANYTHING, length=st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_any_position_is_tokens_of_the_prompt_or_refused(spec, length) -> None:
    with helpers.as_users_run_it():
        try:
            columns = Positions.parse(spec).columns(helpers.tokenized(length))
        except mm.PositionError:
            return
    assert all(0 <= index < length for _, index in columns)


@given(prompts=ANYTHING)
@settings(max_examples=100, deadline=None)
def test_any_prompts_are_read_or_refused(prompts) -> None:
    with helpers.as_users_run_it():
        try:
            found = helpers.bench().model.tokenize(prompts)
        except mm.PromptError:
            return
    assert all(item.ids for item in found)


@given(
    text=st.text(st.characters(), max_size=20), name=st.sampled_from(["a.json", "a.safetensors"]),
    share=st.floats(0, 1),
)  # fmt: skip
@example(text="\ud800", name="a.json", share=1.0)
@settings(max_examples=60, deadline=None)
def test_an_artifact_comes_back_whole_and_any_part_of_it_is_refused(
    tmp_path_factory, text, name, share
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    save_artifact(folder / "a", "note", {"x": torch.arange(5.0)}, {"text": text})
    tensors, about = load_artifact(folder / "a", "note")
    assert about["text"] == text
    assert tensors["x"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    whole = (folder / name).read_bytes()
    keep = min(int(share * len(whole)), len(whole) - 2)  # the manifest ends with a line end
    (folder / name).write_bytes(whole[:keep])
    with pytest.raises(mm.ArtifactError, match="it may be cut off"):
        load_artifact(folder / "a", "note")
