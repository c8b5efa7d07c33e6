"""Results on the Hugging Face hub: a repository holds one result, or the folder of a study."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

from mechmem.analysis.directions import Directions
from mechmem.analysis.neurons import NeuronScores
from mechmem.artifacts import write_text
from mechmem.caching.activations import Activations
from mechmem.caching.moments import Moments
from mechmem.errors import ArtifactError, listed
from mechmem.manifests import read_json
from mechmem.reports.report import write_report
from mechmem.tasks.prompts import PromptSet

ARTIFACT_CLASSES: dict[str, Any] = {
    "activations": Activations,
    "directions": Directions,
    "moments": Moments,
    "neuron-scores": NeuronScores,
}
NAME = "result"
PROMPTS = "prompts.jsonl"
FILES = ["*.json", "*.jsonl", "*.safetensors", "*.csv", "*.html", "*.md"]
"""What is fetched: no format that can run code."""
QUIET = 60.0
"""Seconds in which a hub says what it has, or makes a repository."""
UPLOAD, SLOWEST = 300.0, 20_000
"""Seconds that an upload may take, and besides as many as it takes at so many bytes a second."""


def push_to_hub(
    what: Any,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
    message: str = "mechmem result",
) -> str:
    """Upload a result to a model repository, which is made if it is not there.

    Args:
        what: `Directions`, `NeuronScores`, `Activations`, `Moments`, a `PromptSet`, a `Study`, or
            the folder of a saved study.
        repo_id: ``"name/repository"``.
        private: Visibility of a new repository; one that is there keeps its own.
        token: Default the one that `hf auth login` stored.
        endpoint: Another hub than huggingface.co.
        message: Of the commit.

    Returns:
        The address of the commit.

    Raises:
        ArtifactError: When there is nothing to upload, or the hub refuses or does not answer.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if isinstance(what, (str, Path)):
            folder = Path(what)
            if not (folder / "manifest.json").is_file():
                raise ArtifactError(
                    f"{folder} holds no saved study (no manifest.json). Push a result object, or "
                    "the folder that study.save() wrote."
                )
        else:
            folder = Path(scratch)
            _lay_out(what, folder)
        api = _hub("HfApi")(token=token, endpoint=endpoint)
        try:
            _in_time(lambda: api.create_repo(repo_id, private=private, exist_ok=True), QUIET)
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            done = _in_time(
                lambda: api.upload_folder(
                    repo_id=repo_id,
                    folder_path=folder,
                    commit_message=message,
                    allow_patterns=FILES,
                ),
                UPLOAD + size / SLOWEST,
                but="; it may have arrived all the same",
            )
        except Exception as error:  # the client raises its own and httpx's errors
            raise ArtifactError(_refused("pushed to", repo_id, error)) from error
    return str(done.commit_url)


def from_hub(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    folder: str | Path | None = None,
) -> Any:
    """Load what `push_to_hub` uploaded. Nothing is ever unpickled.

    Args:
        repo_id: ``"name/repository"``.
        revision: Branch, tag or commit; name a commit where it must not change.
        token: Default the one that `hf auth login` stored.
        endpoint: Another hub than huggingface.co.
        folder: Where to keep the files, default the hub's own cache.

    Returns:
        The result, or the `Path` of the folder of a study.

    Raises:
        ArtifactError: When it cannot be fetched, or holds no result of mechmem.
    """
    fetch, begun = _hub("snapshot_download"), Event()
    try:
        found = Path(
            _in_time(
                lambda: fetch(
                    repo_id,
                    revision=revision,
                    token=token,
                    endpoint=endpoint,
                    local_dir=folder,
                    allow_patterns=FILES,
                    tqdm_class=_telling_bar(begun),
                ),
                QUIET,
                begun=begun,
            )
        )
    except ArtifactError:
        raise
    except Exception as error:
        raise ArtifactError(_refused("fetched from", repo_id, error)) from error
    if (found / PROMPTS).is_file():
        return PromptSet.from_jsonl(found / PROMPTS)
    note = found / f"{NAME}.json"
    if note.is_file():
        try:
            kind = read_json(note)["kind"]
        except (ArtifactError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{repo_id}: {note.name} is not a manifest. Push it again."
            ) from error
        if not isinstance(kind, str) or kind not in ARTIFACT_CLASSES:
            raise ArtifactError(
                f"{repo_id} holds {kind!r}, which this mechmem does not know; it knows "
                f"{listed(ARTIFACT_CLASSES)}."
            )
        return ARTIFACT_CLASSES[kind].load(found / NAME)
    if (found / "manifest.json").is_file():
        return found
    raise ArtifactError(
        f"{repo_id} holds no result of mechmem ({NAME}.json, {PROMPTS} or manifest.json)."
    )


def _lay_out(what: Any, folder: Path) -> None:
    """The files of a repository: the result, and a card that says what it is."""
    if isinstance(what, PromptSet):
        what.to_jsonl(folder / PROMPTS)
        card = f"{len(what):,} prompts in {len(set(what.groups)):,} groups."
    elif type(what) in ARTIFACT_CLASSES.values():
        what.save(folder / NAME)
        about = read_json(folder / f"{NAME}.json")
        made = about.get("provenance", {}).get("model", {})
        facts = {
            "kind": about["kind"],
            "made on": f"{made.get('name')} (fingerprint {made.get('fingerprint')})",
            "toward": about.get("toward"),
            "away": about.get("away"),
        }
        card = "\n".join(f"- {name}: {fact}" for name, fact in facts.items() if fact)
    elif callable(getattr(what, "save", None)) and hasattr(what, "manifest"):
        write_report(what, folder)
        card = "The folder of a study; open `report.html`."
    else:
        raise ArtifactError(
            f"A {type(what).__name__} cannot be pushed; push one of "
            f"{listed(ARTIFACT_CLASSES)}, prompts, or a study."
        )
    write_text(
        folder / "README.md",
        f"---\nlibrary_name: mechmem\ntags: [mechmem]\n---\n\n{card}\n\nLoad it with "
        "`mechmem.from_hub`.\n",
    )


def _in_time(
    work: Callable[[], Any], seconds: float, *, begun: Event | None = None, but: str = ""
) -> Any:
    """What the work returns or raises: the hub's client waits for an answer for ever.

    It is done in a thread, which goes on when it is given up.

    Raises:
        TimeoutError: When it is neither over in time nor ``begun``, from where the client has
            limits of its own.
    """
    ended: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            ended.put((work(), None))
        except BaseException as error:
            ended.put((None, error))

    Thread(target=run, daemon=True).start()
    try:
        result, error = ended.get(timeout=seconds)
    except Empty:
        if begun is None or not begun.is_set():
            raise TimeoutError(f"no answer in {seconds:.0f} seconds{but}.") from None
        result, error = ended.get()
    if error is not None:
        raise error
    return result


def _telling_bar(begun: Event) -> Any:
    """The client's progress bar, which is there once it knows what to fetch."""
    own = _hub("utils").tqdm

    def begin(bar: Any, *given: Any, **options: Any) -> None:
        begun.set()
        own.__init__(bar, *given, **options)

    return type("Bar", (own,), {"__init__": begin})


def _hub(name: str) -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ArtifactError("The hub needs huggingface_hub: pip install 'mechmem[hub]'.") from error
    return getattr(huggingface_hub, name)


def _refused(done: str, repo_id: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [""])[0]
    return (
        f"{repo_id!r} cannot be {done} the hub: {type(error).__name__}: {reason:.300} Look at the "
        "name, the network and your token (`hf auth login`), or save to a folder instead."
    )
