"""Settings from one file, and the ones that counted, saved beside the result."""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import tomllib
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args, get_type_hints

import typer

Command = TypeVar("Command", bound=Callable[..., Any])

_effective: ContextVar[dict[str, Any]] = ContextVar("effective")


def configured(function: Command) -> Command:
    """The command with ``--config FILE``; what is typed goes before what the file says."""
    hints = get_type_hints(function, include_extras=True)
    hints["config"] = Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            is_eager=True,
            callback=_read_config,
            help="YAML or TOML with any of these settings by name; what is typed here wins.",
        ),
    ]
    shape = inspect.signature(function)
    plain = [item.replace(annotation=hints[item.name]) for item in shape.parameters.values()]
    last = inspect.Parameter(
        "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hints["config"]
    )

    @functools.wraps(function)
    def run(**settings: Any) -> Any:
        del settings["config"]
        given = {_flag(hints[k]) or k: v for k, v in settings.items() if v is not None}
        _effective.set({"command": function.__name__, **given})
        return function(**settings)

    run.__annotations__ = hints
    run.__signature__ = shape.replace(parameters=[*plain, last])  # type: ignore[attr-defined]
    return cast(Command, run)


def save_config(where: Path) -> Path:
    """Write the settings of the command that runs, defaults included, as YAML.

    Args:
        where: The folder of the result, or its file: then the name goes before ``.config.yaml``.
    """
    import yaml

    from mechmem.artifacts import write_text

    plain = json.loads(json.dumps(_effective.get(), default=str))
    file = where / "config.yaml" if where.is_dir() else where.with_name(f"{where.name}.config.yaml")
    return write_text(file, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def _read_config(ctx: Any, value: str | None) -> str | None:
    if value is None:
        return None
    settings = _parsed(Path(value))
    command = settings.pop("command", ctx.info_name)
    if command != ctx.info_name:
        raise _wrong(f"{value} is for `mechmem {command}`, not `mechmem {ctx.info_name}`")
    known = {}
    for item in ctx.command.params:
        flags = [flag.removeprefix("--") for flag in item.opts if flag.startswith("--")]
        known[flags[0] if flags else str(item.name)] = str(item.name)
    known = {flag: name for flag, name in known.items() if flag not in ("help", "config")}
    found = {}
    for key, setting in settings.items():
        flag = str(key).replace("_", "-")
        if flag not in known:
            close = difflib.get_close_matches(flag, known)
            hint = (
                f"did you mean {' or '.join(close)}?" if close else f"allowed: {', '.join(known)}"
            )
            raise _wrong(f"{value} has an unknown key {key!r}; {hint}")
        found[known[flag]] = setting
    ctx.default_map = found
    return value


def _flag(hint: Any) -> str:
    """How an option is typed where that is not the name of its argument."""
    for note in get_args(hint)[1:]:
        # typer files the first name of an option under `default` until it builds the command.
        for name in (getattr(note, "default", None), *(getattr(note, "param_decls", None) or ())):
            if isinstance(name, str) and name.startswith("--"):
                return name.removeprefix("--")
    return ""


def _parsed(file: Path) -> dict[str, Any]:
    import yaml

    from mechmem.errors import ArtifactError
    from mechmem.manifests import LARGEST, regular

    try:
        text = regular(file, LARGEST).read_text(encoding="utf-8")
        if file.suffix == ".toml":
            held: Any = tomllib.loads(text)
        elif file.suffix in (".yaml", ".yml"):
            held = yaml.safe_load(text)
        else:
            raise _wrong(f"{file} must end in .yaml, .yml or .toml")
    except (OSError, UnicodeDecodeError, ArtifactError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _wrong(f"{file} cannot be read: {reason}") from error
    except RecursionError as error:
        raise _wrong(f"{file} cannot be read: it is nested too deeply") from error
    except (ValueError, yaml.YAMLError) as error:  # yaml's dates and numbers raise plain ones
        raise _wrong(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(held, dict):
        raise _wrong(f"{file} must hold names and values, for example `seed: 1`")
    return held


def _wrong(text: str) -> typer.BadParameter:
    return typer.BadParameter(text, param_hint="--config")
