"""The server of the open page: who is answered, what is loaded, what is left when it is closed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import pytest
from app_scene import saved

import mechmem as mm
from mechmem.app import open_page
from mechmem.app.page import Page
from mechmem.app.serve import OpenPage, guard, make_app
from mechmem.app.source import Source
from mechmem.errors import MechmemError
from mechmem.reports.saved import load_study

ROOT = Path(__file__).resolve().parents[2]
OPENED = """
import sys, time
began = time.process_time()
from mechmem.app import open_page
page = open_page({folder!r}, port=0)
client = page.page
from mechmem.app.serve import make_app
app = make_app(client).server.test_client()
assert app.get("/").status_code == 200
layout = app.get("/_dash-layout").get_data(as_text=True)
assert client.source.verdict[:20] in layout
first = client.source.first_view()
client.words(first, "w"), client.map(first, "w", "dark"), client.turn(first, "w")
client.dose(first, "w", "light")
print([m for m in ("torch", "transformers", "transformer_lens") if m in sys.modules])
print(time.process_time() - began)
page.close()
"""


def test_a_saved_study_is_open_in_less_than_three_seconds_and_without_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPENED.format(folder=str(saved()))],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded, seconds = done.stdout.strip().splitlines()[-2:]
    assert loaded == "[]"
    assert float(seconds) < 3.0


@pytest.fixture(scope="module")
def opened():
    page = open_page(saved(), port=0).start()
    yield page
    page.close()


def fetched(url: str, **headers: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            policy = str(answer.headers["Content-Security-Policy"])
            return answer.status, answer.read().decode(), policy
    except urllib.error.HTTPError as error:
        return error.code, "", ""


def test_it_answers_on_this_machine_and_names_nothing_outside(opened: OpenPage) -> None:
    assert opened.url.startswith("http://127.0.0.1:")
    status, text, policy = fetched(opened.url)
    assert status == 200
    assert "http://" not in text.replace(opened.url, "")
    assert "https://" not in text
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe-eval" not in policy
    assert opened.url in opened._repr_html_()


def test_another_site_cannot_ask_it(opened: OpenPage) -> None:
    assert fetched(opened.url, Origin="http://evil.example")[0] == 403
    assert fetched(opened.url, Host="evil.example")[0] == 403
    assert fetched(opened.url, Origin=opened.url.rstrip("/"))[0] == 200


def test_another_address_wants_its_token() -> None:
    app = make_app(Page(Source(load_study(saved()))))
    guard(app, "0.0.0.0", 1, "secret")
    client = app.server.test_client()
    assert client.get("/").status_code == 403
    assert client.get("/?token=wrong").status_code == 403
    assert client.get("/?token=secret").status_code == 200
    assert client.get("/").status_code == 200  # by its cookie
    page = open_page(saved(), host="0.0.0.0", port=0)
    assert "?token=" in page.url
    page.close()


def test_two_pages_of_one_address_keep_their_own_tokens() -> None:
    apps = [make_app(Page(Source(load_study(saved())))) for _ in range(2)]
    cookies = []
    for port, app in enumerate(apps):
        guard(app, "0.0.0.0", port, f"secret-{port}")
        answer = app.server.test_client().get(f"/?token=secret-{port}")
        cookies.append(answer.headers["Set-Cookie"].partition(";")[0])
    both = {"Cookie": "; ".join(cookies)}
    for app in apps:
        client = app.server.test_client(use_cookies=False)
        assert client.get("/", headers=both).status_code == 200
    assert cookies[0].partition("=")[0] != cookies[1].partition("=")[0]


def test_an_address_of_six_groups_stands_in_brackets() -> None:
    try:
        page = open_page(saved(), host="::1", port=0)
    except MechmemError as error:
        pytest.skip(str(error))
    with contextlib.closing(page.start()):
        assert page.url.startswith("http://[::1]:")
        assert fetched(page.url)[0] == 200


def test_a_port_that_is_taken_is_refused_or_another_one_found(opened: OpenPage) -> None:
    taken = int(opened.url.rsplit(":", 1)[1].strip("/"))
    with pytest.raises(MechmemError, match=f"{taken} cannot be served on"):
        open_page(saved(), port=taken)


def test_closing_leaves_no_thread_and_no_hook() -> None:
    model, others = mm.load_model("lab/addition-cued"), set(threading.enumerate())
    page = mm.open(saved(), model=model)
    view = page.page.source.first_view()
    job = page.page.job("dose", view, "w", 0.0)
    time.sleep(0.5)
    page.close()
    assert job.done.wait(30)
    mine = [one for one in set(threading.enumerate()) - others if one.name == "mechmem page"]
    for thread in mine:
        thread.join(30)
    assert not any(thread.is_alive() for thread in mine)
    hooks = [p for p in model.tl.hook_dict.values() if p.fwd_hooks]
    assert hooks == []
    assert not _alive(page.url)


def _alive(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(("ended", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, -15)])
def test_ctrl_c_ends_the_command_and_leaves_no_process(ended: signal.Signals, status: int) -> None:
    command = [sys.executable, "-m", "mechmem", "open", str(saved()), "--no-browser"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert _alive(url)
    process.send_signal(ended)
    _, said = process.communicate(timeout=300)
    assert process.returncode == status
    assert "Traceback" not in said
    assert not _alive(url)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_without_a_study_and_a_model_the_command_says_what_it_needs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mechmem", "open"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "give the folder of a study, or --model, or both" in done.stderr


def test_without_dash_the_way_out_is_named() -> None:
    code = (
        "import sys; sys.modules['dash'] = None; import mechmem as mm\n"
        "try: mm.open(model='lab/addition-cued')\n"
        "except mm.MechmemError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "pip install 'mechmem[app]'" in done.stdout
