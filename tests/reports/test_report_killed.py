"""A process that is killed while it saves a study over an earlier one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from mechmem.errors import ArtifactError
from mechmem.reports.saved import load_study
from mechmem.studies import saving as report

FIRST, SECOND = ("a.csv", "old.csv", "z.csv"), ("a.csv", "b.csv", "z.csv")
MOVES = 7  # away: manifest, a, old, z; in: a, b, z; the last one is the new manifest's


class Killed(BaseException):
    """Nothing of the process runs after it."""


def save(folder: Path, *names: str) -> None:
    """A study whose files all hold the same text, which is its answer as well."""

    def parts(draft: Path) -> None:
        for name in names:
            (draft / name).write_text(" ".join(names))
        about = {"model": {"name": "m"}, "task": "t", "seed": 0, "verdict": "v"}
        report.write_manifest({**about, "answer": " ".join(names)}, draft)

    report.write_whole(parts, folder)


def killed(folder: Path, names: tuple[str, ...], after: int) -> int:
    """Save, but be killed after so many moved files; how many moves were begun."""
    begun = 0

    def replace(source: Path, there: Path) -> None:
        nonlocal begun
        begun += 1
        if begun > after:
            raise Killed
        os.replace(source, there)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "os", SimpleNamespace(replace=replace))
        patch.setattr("mechmem.writing._remove", lambda path: None)
        with suppress(Killed):
            save(folder, *names)
    return begun


@pytest.mark.parametrize("after", range(MOVES + 2))
def test_the_folder_is_the_earlier_study_the_new_one_or_refused(tmp_path: Path, after: int) -> None:
    save(tmp_path, *FIRST)
    (tmp_path / "mine.txt").write_text("mine")
    begun = killed(tmp_path, SECOND, after)
    assert begun == min(after, MOVES) + 1
    if 0 < after <= MOVES:
        with pytest.raises(ArtifactError, match=r"manifest\.json is missing"):
            load_study(tmp_path)
    else:
        whole = FIRST if after == 0 else SECOND
        assert load_study(tmp_path).answer() == " ".join(whole)
        assert all((tmp_path / name).read_text() == " ".join(whole) for name in whole)

    save(tmp_path, "a.csv")  # whole again, with nothing left of the two before
    assert load_study(tmp_path).answer() == (tmp_path / "a.csv").read_text() == "a.csv"
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a.csv", "manifest.json", "mine.txt"}
