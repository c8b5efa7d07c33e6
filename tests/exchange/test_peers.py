"""The real steering-vectors and repeng do with an exported file what the edit does here.

They need transformers 4, so they run in an environment of their own: `make peers`.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import bench, close, contrast_set, differs, sentence

import mechmem as mm

pytestmark = [pytest.mark.peers, pytest.mark.slow]
PYTHON = os.environ.get("MECHMEM_PEERS", "")


@pytest.mark.skipif(not PYTHON, reason="MECHMEM_PEERS names no Python; run `make peers`")
@pytest.mark.parametrize(("tool", "suffix"), [("steering-vectors", ".pt"), ("repeng", ".gguf")])
def test_the_other_tool_adds_what_the_edit_adds(tool, suffix, tmp_path):
    case, text = bench(), sentence(7)
    acts = mm.cache_activations(case.model, contrast_set(), sites="resid_post")
    r = mm.difference_of_means(acts, toward="generalized")
    edits = [mm.AddDirection(r["resid_post", layer], alpha=2.0) for layer in (1, 2)]
    file = mm.export_vectors(edits, tmp_path / f"r{suffix}", model=case.model)
    case.hf.save_pretrained(tmp_path / "model")
    out = tmp_path / "logits.npy"
    ids = ",".join(map(str, case.ids(text)))
    script = Path(__file__).with_name("peer.py")
    done = subprocess.run(
        [PYTHON, str(script), tool, str(tmp_path / "model"), str(file), ids, str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    with mm.patched(case.model, edits) as view:
        close(np.load(out)[-1], view.logits([text])[0], 1e-4)
    differs(np.load(out)[-1], case.model.logits([text])[0])
    if tool == "repeng":
        said = {"model": case.model, "toward": "generalized"}
        back = mm.import_directions(tmp_path / "logits.npy.gguf", **said)
        close(back["resid_post", 1], 2 * np.asarray(r["resid_post", 1]), 1e-6)
