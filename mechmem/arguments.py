"""Arguments of the wrong kind are refused by their names: swapped ones are the commonest slip."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import cache, wraps
from typing import Any, TypeVar

from mechmem.errors import MechmemError

F = TypeVar("F", bound=Callable[..., Any])

WAYS = {
    "Activations": "acts = mm.cache_activations(model, prompts)",
    "DataFrame": "a table that was saved, pd.read_csv(...)",
    "Direction": "directions['resid_post', 3]",
    "Directions": "directions = mm.fit_directions(acts, toward=...)",
    "Edit": "edit = mm.AddDirection(direction, alpha=2.0)",
    "Figure": "fig = mm.plotting.neuron_map(scores)",
    "Model": "model = mm.load_model(...)",
    "Moments": "mm.cache_moments(model, prompts, by='behavior')",
    "NeuronScores": "scores = mm.neuron_mean_difference(acts)",
    "NeuronSet": "scores.top(0.05)",
    "Observations": "seen = mm.observe(model, prompts)",
    "Prompt": "mm.Prompt(id='q1', text='...')",
    "PromptSet": "prompts = mm.PromptSet([...])",
    "Rates": "rates = mm.evaluate(model, prompts)",
    "ShiftNeurons": "mm.ShiftNeurons(scores)",
    "Study": "study = mm.run_study(model, task=task)",
    "Task": "task = mm.get_task('addition-cued')",
}
"""How one gets what a function takes, by the name of its class."""


def names_its_arguments(room: dict[str, Any]) -> None:
    """Make every public function and class of a room refuse arguments of the wrong kind by name.

    Args:
        room: The ``globals()`` of the room's ``__init__``, ``__all__`` in it.
    """
    for name in room["__all__"]:
        room[name] = naming_its_arguments(room[name], room["__name__"])


def naming_its_arguments(one: Any, room: str) -> Any:
    """The same for one function or class, of the room with this module name."""
    if inspect.isfunction(one) and one.__module__ != room:
        made: Any = refusing(one, one)
        made.__module__ = room
        return made
    if inspect.isclass(one):
        own = vars(one).get("__init__")
        if own is not None:
            one.__init__ = refusing(own, one)  # type: ignore[method-assign]
        for kind in one.__mro__:
            if _ours(kind) and not getattr(kind, "_is_protocol", False):
                _name_in_methods(kind)
    return one


def _name_in_methods(kind: type) -> None:
    """Public methods are called as they are: arguments are looked at when one has failed."""
    for name, held in list(vars(kind).items()):
        own = held.__func__ if isinstance(held, (classmethod, staticmethod)) else held
        plain = inspect.isfunction(own) and not getattr(own, "names_its_arguments", False)
        if not plain or (name.startswith("_") and name not in ("__add__", "__getitem__")):
            continue
        made = explaining(own)
        setattr(kind, name, type(held)(made) if own is not held else made)


def explaining(function: F) -> F:
    """The same function; where it ends in an error that is not ours, the argument is named."""
    switches = any("bool" in str(kind) for kind in function.__annotations__.values())

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if switches:
            _refuse_half_true(function, args, kwargs)
        try:
            return function(*args, **kwargs)
        except MechmemError:
            raise
        except Exception as error:
            try:
                signature = inspect.signature(function)
                given = signature.bind(*args, **kwargs).arguments
                said = _explained(function, signature, given)
            except (TypeError, NameError):  # a missing or unknown argument: Python says which
                said = None
            if said is None:
                raise
            raise said from error

    called.names_its_arguments = True  # type: ignore[attr-defined]
    return typing.cast(F, called)


def refusing(function: F, named: Callable[..., Any]) -> F:
    """The same function, or the ``__init__`` of a class, which looks at its arguments first."""
    signature = inspect.signature(function)

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # a missing or unknown argument: Python says which
            return function(*args, **kwargs)
        _refuse_switches(named, signature, given)
        wrong = _wrong(named, signature, given)
        if wrong is not None and _foreign(given[wrong]):
            raise _refusal(named, signature, given, wrong)
        try:  # a text, a number, a list, a setting: the function may have better words for it
            out = function(*args, **kwargs)
        except MechmemError:
            raise
        except Exception as error:
            said = _explained(named, signature, given)
            if said is None:
                raise
            raise said from error
        if wrong is None:
            return out
        setting = signature.parameters[wrong].default is not inspect.Parameter.empty
        if inspect.isclass(named) and (not setting or _takes_ours(named, wrong)):
            raise _refusal(named, signature, given, wrong)
        return out

    return typing.cast(F, called)


def _refuse_half_true(function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> None:
    signature = inspect.signature(function)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:  # the call says which
        return
    _refuse_switches(function, signature, given)


def _refuse_switches(
    named: Callable[..., Any], signature: inspect.Signature, given: Mapping[str, Any]
) -> None:
    """A switch is True or False: of anything else, "no" among it, Python would make True."""
    for name, value in given.items():
        hint = hints_of(named).get(name, Any)
        either = typing.get_origin(hint) in (typing.Union, types.UnionType)
        kinds = typing.get_args(hint) if either else (hint,)
        if bool in kinds and not fits(value, hint):
            allowed = ["True", "False", *(_said(kind) for kind in kinds if kind is not bool)]
            numpys = "; bool(...) makes it one" if type(value).__name__.startswith("bool") else ""
            raise MechmemError(
                f"{name} must be {', '.join(allowed[:-1])} or {allowed[-1]}, got "
                f"{value!r:.80}{numpys}."
            )


@cache
def hints_of(named: Callable[..., Any]) -> dict[str, Any]:
    """The kinds that the arguments of a function or a class are annotated with."""
    if inspect.isclass(named):
        own = inspect.unwrap(named.__init__)
        fields = typing.get_type_hints(named) if dataclasses.is_dataclass(named) else {}
        return fields or typing.get_type_hints(own)
    return typing.get_type_hints(inspect.unwrap(named))


def _explained(
    named: Callable[..., Any], signature: inspect.Signature, given: Mapping[str, Any]
) -> MechmemError | None:
    """Why a call may have failed: an argument or a setting of the wrong kind, or an empty one."""
    wrong = _wrong(named, signature, given, settings=True)
    if wrong is not None:
        return _refusal(named, signature, given, wrong)
    for name, value in given.items():
        if isinstance(value, float) and hints_of(named).get(name) is int:  # 2.0: some can take it
            return _refusal(named, signature, given, name)
        holds = isinstance(value, (Mapping, Sequence, Set)) and not isinstance(value, str)
        needed = signature.parameters[name].default is inspect.Parameter.empty
        if holds and needed and name not in ("self", "cls") and not value:
            return MechmemError(f"{name} is empty; {named.__name__} needs at least one.")
    return None


def _wrong(
    named: Callable[..., Any],
    signature: inspect.Signature,
    given: Mapping[str, Any],
    *,
    settings: bool = False,
) -> str | None:
    """The first argument of the wrong kind; of settings only those of our own kinds, or all."""
    hints = hints_of(named)
    for name, parameter in signature.parameters.items():
        if name not in given or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        hint = hints.get(name, Any)
        free = parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
        if free and not settings and not _takes_ours(named, name):
            continue  # a setting, whose function knows better what to say of it
        if not fits(given[name], hint):
            return name
    return None


def _takes_ours(named: Callable[..., Any], name: str) -> bool:
    return any(_ours(kind) for kind in _kinds(hints_of(named).get(name, Any)))


def _foreign(value: Any) -> bool:
    """Whether it is an object of some class, and no text, number or plain container."""
    return type(value).__module__ != "builtins"


def _refusal(
    named: Callable[..., Any], signature: inspect.Signature, given: Mapping[str, Any], wrong: str
) -> MechmemError:
    hints = hints_of(named)
    hint = hints[wrong]
    way = next((WAYS[kind.__name__] for kind in _kinds(hint) if kind.__name__ in WAYS), None)
    other = next((n for n, v in given.items() if n != wrong and _swapped(n, v, hints, hint)), "")
    takes = ", ".join(name for name in signature.parameters if name not in ("self", "cls"))
    value = given[wrong]
    plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    return MechmemError(
        f"{wrong} must be {_said(hint)}, got {type(value).__name__}"
        f"{f' {value!r:.40}' if plain and way is None else ''}"
        f"{f'; for example {way}' if way else ''}."
        f"{f' It seems to be swapped with {other}.' if other else ''} "
        f"{named.__name__} takes {takes}."
    )


def _swapped(name: str, value: Any, hints: Mapping[str, Any], wanted: Any) -> bool:
    return not fits(value, hints.get(name, Any)) and fits(value, wanted)


def fits(value: Any, hint: Any) -> bool:
    """Whether the value may be meant; what is inside of containers is the function's to check."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint is None:
        return value is None
    kind = getattr(hint, "array_type", origin or hint)
    if kind is Any or not isinstance(kind, type):
        return True
    if getattr(kind, "_is_protocol", False):
        return callable(value) or "__call__" not in vars(kind)
    if kind in (float, int):
        fraction = isinstance(value, float) and kind is int and not value.is_integer()
        return not fraction and (hasattr(value, "__float__") or hasattr(value, "__index__"))
    if issubclass(kind, Mapping):
        inside = typing.get_args(hint)
        return isinstance(value, Mapping) and (
            len(inside) < 2 or all(fits(item, inside[1]) for item in value.values())
        )
    if kind is not str and issubclass(kind, Iterable) and kind.__module__ in _PLAIN:
        return isinstance(value, Iterable) and _items_fit(value, typing.get_args(hint))
    return isinstance(value, kind)


_PLAIN = ("builtins", "collections.abc")


def _items_fit(value: Iterable[Any], inside: tuple[Any, ...]) -> bool:
    """Looks at the first of many; a generator is left alone, its items are there once."""
    if len(inside) > 1 and Ellipsis not in inside and isinstance(value, (list, tuple)):
        return len(value) == len(inside) and all(map(fits, value, inside))
    if not inside or not (isinstance(value, (list, tuple)) or _ours(type(value))):
        return True
    return all(fits(item, inside[0]) for item in itertools.islice(value, 1))


def _kinds(hint: Any) -> list[type]:
    """The classes that a hint names, those inside of mappings and sequences last."""
    parts = [part for part in typing.get_args(hint) if part is not Ellipsis]
    origin = typing.get_origin(hint)
    if isinstance(hint, type) and origin is None:
        return [hint]
    own = [origin] if isinstance(origin, type) and origin is not types.UnionType else []
    return own + [kind for part in parts for kind in _kinds(part)]


def _ours(kind: type) -> bool:
    return kind.__module__.startswith("mechmem.")


def _said(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(map(repr, parts))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_said(part) for part in parts if part is not type(None))
    if isinstance(origin, type) and issubclass(origin, Mapping) and len(parts) == 2:
        return f"a mapping from {_said(parts[0])} to {_said(parts[1])}"
    if origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Iterable)):
        inside = [_said(part) for part in parts if part is not Ellipsis]
        return f"a sequence of {' and '.join(inside)}"
    if isinstance(origin, type) and issubclass(origin, Callable):  # type: ignore[arg-type]
        return "a function"
    names = {str: "text", int: "a whole number", float: "a number", type(None): "None"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
