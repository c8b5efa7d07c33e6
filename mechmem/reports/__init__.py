"""Floor 9: a report is a page over a study."""

from mechmem.kinds import names_its_arguments
from mechmem.reports.hub import from_hub, push_to_hub
from mechmem.reports.report import write_report

__all__ = ["from_hub", "push_to_hub", "write_report"]

names_its_arguments(globals())
