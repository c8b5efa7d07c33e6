"""Figures on disk: offline, whole or not at all, and a clear word where something is missing."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io
import pytest
from pages import open_page

from mechmem import plotting
from mechmem.errors import ArtifactError


@pytest.fixture
def fig() -> go.Figure:
    table = pd.DataFrame(
        {
            "set": ["all", "all"],
            "outcome": ["memorized", "generalized"],
            "share": [0.75, 0.25],
            "share_low": [0.5, 0.125],
            "share_high": [0.875, 0.5],
            "n": 8,
            "groups": 4,
        }
    )
    return plotting.behavior_mix(table)


def test_an_inline_page_holds_everything(fig: go.Figure, tmp_path: Path) -> None:
    text = plotting.save_figure(fig, tmp_path / "a.html").read_text(encoding="utf-8")
    assert len(text) > 3_000_000
    assert "<script src=" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_the_same_figure_is_the_same_file(fig: go.Figure, tmp_path: Path) -> None:
    one, two = (plotting.save_figure(fig, tmp_path / f"{k}.html").read_bytes() for k in "ab")
    assert one == two


def test_shared_pages_use_one_library_beside_them(fig: go.Figure, tmp_path: Path) -> None:
    for name in "ab":
        plotting.save_figure(fig, tmp_path / f"{name}.html", plotlyjs="shared")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html", "plotly.min.js"]
    assert (tmp_path / "a.html").stat().st_size < 60_000
    with pytest.raises(ArtifactError, match=r"'inline', 'shared'.*'cdn'"):
        plotting.save_figure(fig, tmp_path / "c.html", plotlyjs="cdn")


@pytest.mark.parametrize("plotlyjs", ["inline", "shared"])
def test_pages_draw_without_a_network(
    fig: go.Figure, tmp_path: Path, chromium: str, plotlyjs: str
) -> None:
    page = open_page(chromium, plotting.save_figure(fig, tmp_path / "a.html", plotlyjs=plotlyjs))
    assert page.console == []
    assert page.requests == []
    assert "75.0 %" in page.dom


def test_json_comes_back_as_the_same_figure(fig: go.Figure, tmp_path: Path) -> None:
    path = plotting.save_figure(fig, tmp_path / "a.json")
    assert json.loads(plotly.io.read_json(path).to_json()) == json.loads(fig.to_json())


def test_csv_holds_the_numbers_that_are_drawn(fig: go.Figure, tmp_path: Path) -> None:
    path = plotting.save_figure(fig, tmp_path / "deep" / "a.csv")
    table = pd.read_csv(path)
    assert table["trace"].tolist() == ["memorized", "generalized"]
    assert table["y"].tolist() == [0.75, 0.25]
    np.testing.assert_allclose(table["low"], [0.5, 0.125])
    np.testing.assert_allclose(table["high"], [0.875, 0.5])


def test_csv_of_a_map_names_every_cell(tmp_path: Path) -> None:
    fig = plotting.token_projection(["a", "b"], [[1.0, 2.0], [3.0, 4.0]], rows=["r", "s"])
    table = pd.read_csv(io.StringIO(plotting.figure_data(fig).to_csv()))
    assert table["y"].tolist() == ["r", "r", "s", "s"]
    assert table["value"].tolist() == [-1.0, -2.0, -3.0, -4.0]


def test_pictures_need_a_browser_and_say_so(
    fig: go.Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise RuntimeError("Kaleido requires Google Chrome to be installed.\n\nMore words.")

    monkeypatch.setattr(plotly.io, "write_images", refuse)
    (tmp_path / "a.png").write_bytes(b"earlier")
    with pytest.raises(ArtifactError) as caught:
        plotting.save_figure(fig, tmp_path / "a.png")
    for part in ("requires Google Chrome", "pip install 'mechmem[figures]'", "plotly_get_chrome"):
        assert part in str(caught.value)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"earlier"]


@pytest.mark.filterwarnings("ignore")
def test_pictures_are_drawn_in_one_batch(fig: go.Figure, tmp_path: Path, chromium: str) -> None:
    pytest.importorskip("kaleido", reason="pictures need kaleido: pip install 'mechmem[figures]'")
    paths = plotting.save_figures({"a": fig, "b": fig}, tmp_path, "png", scale=1)
    assert [path.name for path in paths] == ["a.png", "b.png"]
    for path in paths:
        head = path.read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(head[16:20], "big") == 900
        assert int.from_bytes(head[20:24], "big") == fig.layout.height


def test_several_figures_share_the_library(fig: go.Figure, tmp_path: Path) -> None:
    plotting.save_figures({"a": fig, "b": fig}, tmp_path, "html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html", "plotly.min.js"]


def test_an_unknown_ending_is_refused_by_name(fig: go.Figure, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"'a\.gif'.*'\.html'"):
        plotting.save_figure(fig, tmp_path / "a.gif")


@pytest.mark.parametrize("ending", ["html", "json", "csv", "png"])
def test_a_folder_that_cannot_be_written_is_named(
    fig: go.Figure, tmp_path: Path, ending: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="Cannot write"):
        plotting.save_figure(fig, tmp_path / "file" / f"a.{ending}")
    assert (tmp_path / "file").read_text() == "in the way"


HOSTILE = (
    "</script><script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"
)


@pytest.mark.parametrize("plotlyjs", ["inline", "shared"])
def test_a_page_runs_its_own_scripts_and_no_other(chromium, tmp_path, plotlyjs) -> None:
    fig = go.Figure(go.Bar(x=[HOSTILE], y=[1], name=HOSTILE), layout={"title": {"text": HOSTILE}})
    page = plotting.save_figure(fig, tmp_path / "a.html", plotlyjs=plotlyjs)
    seen = open_page(chromium, page)
    assert 'class="main-svg"' in seen.dom  # plotly drew it
    assert "<title>ran" not in seen.dom
    assert seen.console == []
    added = page.read_text(encoding="utf-8").replace("</body>", f"{HOSTILE}</body>")
    (tmp_path / "b.html").write_text(added, encoding="utf-8")
    seen = open_page(chromium, tmp_path / "b.html")
    assert 'class="main-svg"' in seen.dom
    assert "<title>ran" not in seen.dom
    assert any("Content Security Policy" in line for line in seen.console)
