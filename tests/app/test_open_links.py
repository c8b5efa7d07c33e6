"""Views and links: what is none is refused, in words that stay; a wording stands there once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from app_scene import page
from window import Window

from mechmem.app.callbacks import step
from mechmem.app.view import View
from mechmem.errors import MechmemError

OTHER = ("1 + 2 + 3 + 4 \n Now Alice says Target:", "9 + 2 + 3 + 4 \n Now Alice says Target:")


@pytest.fixture
def view() -> View:
    return replace(page().source.first_view(), live=True)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"kind": "explode"}, "kind is 'explode'; there are 'add'"),
        ({"strength": 9.0}, "strength is 9.0; it goes from -3 to 3"),
        ({"texts": list("abcdefghi")}, "9 wordings are too many"),
        ({"texts": [1]}, "texts must be a list of texts"),
        ({"site": 3}, "site of a view cannot be 3"),
        ({"site": "garbage"}, "site is 'garbage'; one is written like 'resid_post.3'"),
        ({"site": "resid_post.x"}, "one is written like"),
        ({"shown": -1}, "shown is -1; the first wording is 0"),
        ({"other": 1}, "This is not a view"),
        ("x", "This is not a view"),
    ],
)
def test_a_view_that_is_none_is_refused(found, words) -> None:
    with pytest.raises(MechmemError, match=words):
        View.from_dict(found)


def test_a_link_that_was_cut_off_is_refused(view) -> None:
    with pytest.raises(MechmemError, match="cut off"):
        View.from_link(view.link()[:-7])


@pytest.mark.parametrize(
    ("other", "words"),
    [({"site": "resid_post.77"}, "site is 'resid_post.77'"), ({"toward": "memory"}, "'memory'")],
)
def test_a_link_of_another_study_is_refused(view, other, words) -> None:
    link = {"address": replace(view, **other).link()}
    with pytest.raises(MechmemError, match=f"The link is of another study: .*{words}"):
        step(page().source, view, "address", link)


def test_repeated_wordings_are_asked_once_and_the_map_is_of_the_one_that_is_named(view) -> None:
    again = replace(view, texts=(OTHER[0], "", OTHER[0], OTHER[1]), shown=1)
    assert again.texts == OTHER
    mapped = page().job("map", again, "test", 300.0).value.rows.drop_duplicates("position")["token"]
    assert "".join(mapped).removeprefix("<bos>").strip() == again.texts[1]


def test_a_link_that_is_refused_stays_said_until_something_else_is_done() -> None:
    window = Window(page())
    window.set("address", "#view=abc", "hash")
    window.settle()
    assert "The link was cut off" in window.text("refused")
    assert "Ready." in window.text("status")
    window.set("strength", 0.7)
    assert window.text("refused") == ""
