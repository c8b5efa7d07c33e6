"""A window of the open page without a browser: the app's own callbacks, run through its server."""

from __future__ import annotations

import time
from typing import Any

from mechmem.app.page import Page
from mechmem.app.serve import make_app


def flat(given: Any) -> list[Any]:
    return [one for part in given for one in (flat(part) if isinstance(part, list) else [part])]


class Window:
    """What every control and part says, and what the server says to a change.

    Attributes:
        props: Value of ``(id, property)``.
        asked: Outputs of the callbacks that ran since it was last emptied.
        told: What came back from them, in order: ``{id: {property: value}}``.
    """

    def __init__(self, page: Page) -> None:
        self.page, self.client = page, make_app(page).server.test_client()
        self.props: dict[tuple[str, str], Any] = {}
        self._read(self.client.get("/_dash-layout").json)
        self.calls = self.client.get("/_dash-dependencies").json
        self.asked: list[str] = []
        self.told: list[dict[str, Any]] = []
        for call in self.calls:
            if call["prevent_initial_call"] is not True:
                self._run(call, [])

    def _read(self, part: Any) -> None:
        if isinstance(part, list):
            for one in part:
                self._read(one)
        elif isinstance(part, dict) and "props" in part:
            name = part["props"].get("id")
            self.props |= {(name, key): value for key, value in part["props"].items() if name}
            self._read(part["props"].get("children"))

    def get(self, name: str, prop: str = "value") -> Any:
        return self.props.get((name, prop))

    def set(self, name: str, value: Any, prop: str = "value") -> None:
        """Somebody moves a control; everything that follows from it is run."""
        self.props[name, prop] = value
        self._follow([f"{name}.{prop}"])

    def type(self, **values: Any) -> None:
        """Somebody writes into fields that nothing listens to until it is asked."""
        self.props |= {(name.replace("_", "-"), "value"): value for name, value in values.items()}

    def click(self, name: str) -> None:
        self.set(name, (self.get(name, "n_clicks") or 0) + 1, "n_clicks")

    def settle(self, seconds: float = 120.0) -> None:
        """Let the clock tick until every part shows what is set."""
        for _ in range(int(seconds / 0.2)):
            self.set("tick", (self.get("tick", "n_intervals") or 0) + 1, "n_intervals")
            if self.get("tick", "interval") > 1000:
                return
            time.sleep(0.2)
        raise AssertionError(self.get("status", "children"))

    def text(self, name: str) -> str:
        """Everything that is written in a part."""

        def words(part: Any) -> str:
            if isinstance(part, list):
                return " ".join(words(one) for one in part)
            if isinstance(part, dict):
                return words(part.get("props", {}).get("children"))
            return "" if part is None else str(part)

        return words(self.get(name, "children"))

    def _follow(self, changed: list[str]) -> None:
        for call in self.calls:
            own = {f"{one['id']}.{one['property']}" for one in call["inputs"]}
            if own & set(changed):
                self._run(call, [one for one in changed if one in own])

    def _run(self, call: Any, changed: list[str]) -> None:
        output = call["output"]
        names = output.strip(".").split("...") if output.startswith("..") else [output]
        outputs = [dict(zip(("id", "property"), one.split("."), strict=True)) for one in names]

        def given(kind: str) -> list[dict[str, Any]]:
            return [
                {**one, "value": self.props.get((one["id"], one["property"]))}
                for one in flat(call[kind])
            ]

        body = {
            "output": output, "outputs": outputs if output.startswith("..") else outputs[0],
            "inputs": given("inputs"), "state": given("state"), "changedPropIds": changed,
        }  # fmt: skip
        answer = self.client.post("/_dash-update-component", json=body)
        assert answer.status_code in (200, 204), answer.get_data(as_text=True)
        self.asked.append(output)
        if answer.status_code == 204:
            return
        told = answer.json["response"]
        self.told.append(told)
        new = []
        for name, props in told.items():
            for prop, value in props.items():
                self.props[name, prop] = value
                new.append(f"{name}.{prop}")
        own = {f"{one['id']}.{one['property']}" for one in call["inputs"]}
        self._follow([one for one in new if one not in own])
