"""What is set on the screen, as data: from it come the link and the lines of Python."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from mechmem.errors import MechmemError, listed

if TYPE_CHECKING:
    import pandas as pd

MOST_WORDINGS = 8
STRONGEST = 3.0
EDITS: Mapping[str, str] = {
    "add": "add the direction",
    "add where": "add it only where the state is on the other side",
    "set": "set the projection to the class's mean",
    "remove": "remove the direction",
    "neurons": "shift the top fifth of its neurons",
}
"""Kinds of edit: how the page calls them."""
DOSED = ("add", "add where", "neurons")
"""Kinds that have a strength."""
POSITIONS = ("each_step", "last", "prompt", "all")
MAPS = ("projection", "margin")


@dataclass(frozen=True)
class View:
    """Everything that a window shows is computed from this.

    Attributes:
        texts: The wordings, at most eight; empty ones and repeated ones are left out.
        memorized, generalized: The two possible answers; empty where there are none.
        shown: Which wording the map is of.
        map: ``"projection"`` or ``"margin"``.
        site: Where to edit, as ``stream.layer``.
        kind: One of `EDITS`.
        toward: The class to steer to.
        strength: In distances between the classes, -3 to 3.
        positions: Words of `POSITIONS`, or the number of a token.
        live: Whether the model was asked for.
    """

    texts: tuple[str, ...] = ()
    memorized: str = ""
    generalized: str = ""
    shown: int = 0
    map: str = "projection"
    site: str = ""
    kind: str = "add"
    toward: str = ""
    strength: float = 1.0
    positions: str = "each_step"
    live: bool = False

    def __post_init__(self) -> None:
        texts = tuple(dict.fromkeys(text for text in self.texts if text))
        object.__setattr__(self, "texts", texts)
        for name, allowed in (("kind", EDITS), ("map", MAPS)):
            if getattr(self, name) not in allowed:
                raise MechmemError(
                    f"{name} is {getattr(self, name)!r:.60}; there are {listed(allowed)}."
                )
        if not -STRONGEST <= self.strength <= STRONGEST:
            raise MechmemError(f"strength is {self.strength}; it goes from -3 to 3.")
        stream, _, layer = self.site.rpartition(".")
        if self.site and not (stream and layer.isdecimal()):
            raise MechmemError(f"site is {self.site!r:.60}; one is written like 'resid_post.3'.")
        if self.shown < 0:
            raise MechmemError(f"shown is {self.shown}; the first wording is 0.")
        if len(self.texts) > MOST_WORDINGS:
            raise MechmemError(
                f"{len(self.texts)} wordings are too many; at most {MOST_WORDINGS} are shown."
            )

    @property
    def where(self) -> str | int:
        """Positions as the library takes them."""
        number = self.positions.removeprefix("-")
        return int(self.positions) if number.isdecimal() and number.isascii() else self.positions

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "texts": list(self.texts)}

    @classmethod
    def from_dict(cls, found: Any) -> View:
        """The inverse of `as_dict`, of whatever somebody sent.

        Raises:
            MechmemError: For something that is not a view.
        """
        kinds = {field.name: type(field.default) for field in fields(cls)}
        if not isinstance(found, dict) or not set(found) <= set(kinds):
            raise MechmemError(f"This is not a view: {found!r:.80}. Copy the whole link.")
        texts = found.get("texts", ())
        if not isinstance(texts, (list, tuple)) or not all(isinstance(one, str) for one in texts):
            raise MechmemError(f"texts must be a list of texts, got {texts!r:.80}.")
        for name, value in found.items():
            wanted = (int, float) if kinds[name] is float else kinds[name]
            if name != "texts" and not isinstance(value, wanted):
                raise MechmemError(
                    f"{name} of a view cannot be {value!r:.60}. Copy the link again."
                )
        return cls(**{**found, "texts": tuple(texts)})

    def link(self) -> str:
        """What follows the address: kept behind ``#``, so that no server's log holds a prompt."""
        text = json.dumps(self.as_dict(), ensure_ascii=False, separators=(",", ":"))
        return "#view=" + base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode()

    @classmethod
    def from_link(cls, link: str) -> View:
        """The inverse of `link`.

        Raises:
            MechmemError: For a link that was cut off or is none.
        """
        _, _, packed = link.partition("#view=")
        try:
            text = base64.urlsafe_b64decode(packed.encode("ascii"))
            found = json.loads(text.decode("utf-8", "surrogatepass"))
        except (ValueError, binascii.Error, RecursionError) as error:
            raise MechmemError(f"The link was cut off: {link!r:.60}. Copy all of it.") from error
        return cls.from_dict(found)


def at_last(rows: pd.DataFrame) -> pd.DataFrame:
    """The last prompt token's rows of a map; ``beyond``: farther out than random directions."""
    last = rows[rows["position"] == rows["position"].max()]
    out = (last["value"] < last["band_low"]) | (last["value"] > last["band_high"])
    marked: pd.DataFrame = last.assign(beyond=out)
    return marked
