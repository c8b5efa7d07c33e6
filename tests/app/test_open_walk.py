"""A walk through the open page in headless Chromium, with no network, in two windows at once."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from app_scene import saved
from browser import Browser, Tab

from mechmem.app import open_page
from mechmem.app.serve import OpenPage
from mechmem.app.view import View

PROMPTS = ("3 + 4 + 5 + 6 \n Now Alice says Target:", "9 + 1 + 2 + 6 \n Now Alice says Target:")
THREE = "document.querySelectorAll('#columns .three section').length === 3"
READY = "document.getElementById('status').innerText.includes('Ready')"


@pytest.fixture
def browser(chromium: str, tmp_path: Path) -> Iterator[Browser]:
    made = Browser(chromium, tmp_path)
    yield made
    made.close()


@pytest.fixture
def opened() -> Iterator[OpenPage]:
    page = open_page(saved(), port=0).start()
    yield page
    page.close()


def ask(tab: Tab, prompt: str, first: str, second: str) -> None:
    tab.until("document.querySelectorAll('#columns *').length > 0")
    tab.click("own")
    tab.until("document.querySelectorAll('.row:not([hidden])').length === 1")
    for name, text in (("wording-0", prompt), ("memorized", first), ("generalized", second)):
        tab.type(name, text)
    tab.click("ask")


def linked(tab: Tab, told: Callable[[View], bool], seconds: float = 60.0) -> View:
    """What the page's link says, which is told with the next look at the line."""
    end = time.time() + seconds
    while time.time() < end:
        said = tab.text("link")
        if said and told(view := View.from_link(said)):
            return view
        time.sleep(0.05)
    raise AssertionError(f"the link still says {said}")


def test_a_walk_through_the_page(browser: Browser, opened: OpenPage, tmp_path: Path) -> None:
    tab = Tab(browser, opened.url)
    tab.until("!!document.getElementById('main')")
    assert opened.page.source.verdict in tab.js("document.body.innerText")
    ask(tab, PROMPTS[0], "17", "18")
    tab.until(THREE)
    tab.until("document.getElementById('shares').innerText.includes('Of 1 wording')")
    tab.until("!!document.querySelector('#map-figure .nsewdrag')")
    tab.until("!!document.querySelector('#dose-figure .main-svg')")
    tab.until(READY)
    # the map: a click in its second row and third column
    where = "{block: 'center', behavior: 'instant'}"
    tab.js(f"document.getElementById('map-figure').scrollIntoView({where})")
    time.sleep(0.3)
    x, y, wide, high = tab.js(
        "(() => {const b = document.querySelector('#map-figure .nsewdrag').getBoundingClientRect();"
        "return [b.x, b.y, b.width, b.height]})()"
    )
    tokens = len(opened.page.tokens(linked(tab, lambda view: view.texts == PROMPTS[:1])))
    rows = len(opened.page.source.sites)
    tab.mouse(x + wide * 2.5 / tokens, y + high * (1 - 1.5 / rows))
    tab.until("document.getElementById('lines').innerText.includes('positions=2')")
    tab.until(READY)
    # the slide, by keyboard
    before = tab.text("columns")
    tab.js("document.getElementById('strength').focus()")
    for _ in range(3):
        tab.press("ArrowRight", 39)
    now = float(tab.js("document.getElementById('strength').value"))
    tab.until(f"document.getElementById('strength-said').innerText === '{now:g}'")
    tab.until(f"document.getElementById('lines').innerText.includes('alpha={now}')")
    said = f"at strength {now:g} the edit lies"
    tab.until(f"document.getElementById('columns').innerText.includes('{said}')")
    tab.until(READY)
    assert tab.text("columns") != before
    view = linked(tab, lambda view: view.strength == now)
    turned = opened.page.done("turn", view)
    heads = tab.js("[...document.querySelectorAll('.three h3')].map(one => one.innerText)")
    assert heads == ["Unedited", "Edited", f"Control: {turned.name}, same size, one draw"]
    for k, seen in enumerate((turned.before, turned.edit, turned.control)):
        column = tab.js(f"document.querySelectorAll('.three section')[{k}].innerText")
        assert f"{abs(seen.margins[0]):.2f} nats toward" in column
    # what is kept
    tab.click("save-csv")
    tab.until("document.getElementById('saved').innerText.includes('bytes')")
    packed = tmp_path / "mechmem-view.zip"
    end = time.time() + 20
    while not (packed.exists() and zipfile.is_zipfile(packed)) and time.time() < end:
        time.sleep(0.1)
    with zipfile.ZipFile(packed) as files:
        assert View.from_dict(json.loads(files.read("view.json"))) == view
    assert tab.picture(tmp_path / "page.png").stat().st_size > 20_000
    # a screen reader finds a name for everything that can be worked
    roles = {"button", "textbox", "slider", "combobox", "radio", "radiogroup", "listbox", "link"}
    tree = tab.do("Accessibility.getFullAXTree")["nodes"]
    worked = [n for n in tree if not n["ignored"] and n.get("role", {}).get("value") in roles]
    assert len(worked) > 20
    assert [n for n in worked if not n.get("name", {}).get("value")] == []
    asked = [one["request"]["url"] for one in tab.seen("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith((opened.url, "data:", "blob:"))] == []
    assert tab.seen("Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed") == []


def test_two_windows_at_once_show_each_its_own(browser: Browser, opened: OpenPage) -> None:
    tabs = [Tab(browser, opened.url) for _ in PROMPTS]
    for tab, prompt, right in zip(tabs, PROMPTS, ("18", "18"), strict=True):
        ask(tab, prompt, "17", right)
    for tab in tabs:
        tab.until(THREE)
        tab.until(READY)
    margins = []
    for tab, prompt in zip(tabs, PROMPTS, strict=True):
        view = linked(tab, lambda view, prompt=prompt: view.texts == (prompt,))
        own = opened.page.done("ask", view)[0].margins[0]
        assert f"{abs(own):.2f} nats toward" in tab.text("said-0")
        assert tab.seen("Runtime.exceptionThrown", "Log.entryAdded") == []
        margins.append(own)
    assert margins[0] != margins[1]
