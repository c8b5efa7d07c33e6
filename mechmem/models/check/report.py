"""`check_model`: are the sites of a model what their names say, and do edits there act?"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from mechmem.models.check.invariants import Finding
from mechmem.models.check.site_check import check_stream
from mechmem.models.model import Model, ModelInfo
from mechmem.models.sites import STREAMS, Site


@dataclass(frozen=True)
class CheckReport:
    """What `check_model` found.

    Attributes:
        model: The model that was checked.
        findings: One for every stream and layer.
    """

    model: ModelInfo
    findings: tuple[Finding, ...]

    @property
    def refused(self) -> tuple[Site, ...]:
        """Sites that cannot be read or edited truthfully; using one raises `SiteError`."""
        return tuple(found.site for found in self.findings if found.reason)

    @property
    def streams(self) -> tuple[str, ...]:
        """Streams that hold at every layer."""
        lost = {site.stream for site in self.refused}
        return tuple(stream for stream in STREAMS if stream not in lost)

    def table(self) -> pd.DataFrame:
        """One row per stream and layer.

        Columns: ``stream``, ``layer``, ``read_error`` (in units of the tensor's length),
        ``edit_error`` (in units of the change the edit should make), ``effect`` (change of the
        logits in units of their length), ``verdict`` (``"holds"`` or ``"refused"``), ``reason``.
        """
        return pd.DataFrame(
            [
                {
                    "stream": found.site.stream,
                    "layer": found.site.layer,
                    "read_error": found.read_error,
                    "edit_error": found.edit_error,
                    "effect": found.effect,
                    "verdict": "refused" if found.reason else "holds",
                    "reason": found.reason,
                }
                for found in self.findings
            ]
        )

    def __str__(self) -> str:
        holding = ", ".join(self.streams) or "none"
        lines = [f"{self.model.name}: streams that hold at every layer: {holding}"]
        reasons: dict[str, list[str]] = {}
        for found in self.findings:
            if found.reason:
                reasons.setdefault(found.reason, []).append(str(found.site))
        lines += [f"refused {', '.join(sites)}: {reason}" for reason, sites in reasons.items()]
        return "\n".join(lines)


def check_model(model: Model) -> CheckReport:
    """Prove every stream and layer by numbers, on random tokens.

    What each hook reads is compared with what the model's own modules are handed: the residual
    stream with what the blocks read, the branches with what the stream gains, hidden units and
    heads with what their output weights make of them. An edit at each site must change what follows
    by exactly what it should, and the logits at all. The same prompt is run with padding before it.

    It shows that names mean what they say on this model; it says nothing about what the model
    computes there. Users' hooks are set aside meanwhile, and nothing is changed.

    Args:
        model: From `load_model`.

    Raises:
        ModelError: When the model is in train mode.
    """
    findings: list[Finding] = []
    for stream in STREAMS:
        found = check_stream(model.backend, stream)
        model.backend.findings.update({item.site: item for item in found})
        findings += found
    return CheckReport(model.info, tuple(findings))
