"""Every row of docs/faults.csv, done for real: the class, the words, and that nothing is lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import helpers
import pytest
from fault_scene import Exited, Fault, Scene, all_as_before
from write_faults import TABLE, every_fault, table

FAULTS = every_fault()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.does)
def test_the_fault_is_named_and_nothing_is_lost(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch)
    with all_as_before(scene), helpers.as_users_run_it():
        if fault.error is None:
            fault.trigger(scene)
        else:
            with pytest.raises(fault.error) as caught:
                fault.trigger(scene)
        monkeypatch.undo()
    if fault.error is not None:
        assert caught.type is fault.error
        message = " ".join(str(caught.value).split())
        assert [part for part in fault.parts if part not in message] == [], message
        assert len(message) < 1200
    if fault.error is Exited:
        assert caught.value.status == 1
        assert message.rsplit("mechmem: ", 1)[-1].count("mechmem: ") == 0


def test_the_table_lists_exactly_these_faults() -> None:
    written = TABLE.read_text(encoding="utf-8")
    assert written == table(), "run: python tests/faults/write_faults.py"


def test_there_are_at_least_eighty_and_none_is_listed_twice() -> None:
    assert len(FAULTS) >= 80
    assert max(Counter(fault.does for fault in FAULTS).values()) == 1


def test_every_refusal_by_mechmem_says_a_way_out() -> None:
    ours = [f for f in FAULTS if f.error is not None and f.error.__module__ == "mechmem.errors"]
    assert [fault.does for fault in ours if not fault.way_out] == []
