"""A negative control that fails does not take the finished study with it."""

from __future__ import annotations

import pytest

import mechmem as mm
from mechmem.reports.saved import load_study


class Broken(mm.Task):
    """The same task, on a machine that has no memory left."""

    name = "addition-cued"
    max_new_tokens = 1

    def pairs(self, n, seed=0):
        raise RuntimeError("CUDA out of memory.\nTried to allocate 20.00 MiB.")

    def classify(self, prompt, completion):
        return "other"


def one_family(fit):
    return {"one direction": [mm.AddDirection(fit.directions["resid_post", 1], alpha=2.0)]}


def test_the_control_is_read_as_the_study_is(lab_model, lab_task, tmp_path):
    study = mm.run_study(
        lab_model, task=lab_task, n=100, grid=one_family, refine={}, shuffles=0, draws=2, doses=(),
        negative=(lab_model, lab_task), reading=mm.Choice(within=0.25),
    )  # fmt: skip
    assert study.negative.sweep.before.choice == study.sweep.before.choice == mm.Choice(0.25)
    saved = load_study(mm.write_report(study, tmp_path / "study").parent)
    assert saved.manifest["choice"] == {"within": 0.25, "length": "sum"}
    assert "closer than 0.25 nats is" in (tmp_path / "study" / "report.html").read_text("utf-8")


def test_the_study_is_saved_first_and_says_that_its_control_failed(lab_model, lab_task, tmp_path):
    saved = []

    def finished(study: mm.Study) -> None:
        saved.append(study.save(tmp_path / "study"))
        assert study.negative is None

    with pytest.warns(mm.MechmemWarning, match=r"negative control failed \(RuntimeError: CUDA out"):
        study = mm.run_study(
            lab_model, task=lab_task, n=100, grid=one_family, refine={}, shuffles=0, draws=2,
            doses=(), negative=(lab_model, Broken()), finished=finished,
        )  # fmt: skip
    told = (
        "The negative control failed and has no result (RuntimeError: CUDA out of memory. Tried to "
        "allocate 20.00 MiB.); run it as a study of its own."
    )
    assert study.notes()[-1] == told
    assert "No negative control model was studied beside this one." in study.limits()
    (folder,) = saved
    first, rates = load_study(folder), study.tables()["test"]
    assert first.table("test")["memorized"].tolist() == pytest.approx(rates["memorized"].tolist())
    mm.write_report(study, folder)
    assert load_study(folder).notes()[-1] == told


class Stopped(Broken):
    def pairs(self, n, seed=0):
        raise KeyboardInterrupt


def test_neither_a_key_nor_a_full_disk_takes_the_study(lab_model, lab_task):
    def full(study: mm.Study) -> None:
        raise mm.ArtifactError("Cannot write out: No space left on device.")

    with pytest.warns(mm.MechmemWarning) as told:
        study = mm.run_study(
            lab_model, task=lab_task, n=100, grid=one_family, refine={}, shuffles=0, draws=2,
            doses=(), negative=(lab_model, Stopped()), finished=full,
        )  # fmt: skip
    said = " ".join(str(one.message) for one in told)
    assert "Saving the study failed (ArtifactError: Cannot write out" in said
    assert "The negative control failed (KeyboardInterrupt" in said
    assert study.tables()["test"] is not None
