"""The seven steps, each a function of one `Work`: returns None when it worked, or why it was skipped."""

from tritpress.formats.output import write_atomically
from tritpress.steps.finish import outputs, publish_report, validation
from tritpress.steps.places import both_lie_there, drop_unasked
from tritpress.steps.prepare import baseline, calibration, load
from tritpress.steps.press import fine_tuning, recall, ternarization
from tritpress.steps.work import RunFolder, Work

__all__ = [
    "RunFolder",
    "Work",
    "baseline",
    "both_lie_there",
    "calibration",
    "drop_unasked",
    "fine_tuning",
    "load",
    "outputs",
    "publish_report",
    "recall",
    "ternarization",
    "validation",
    "write_atomically",
]
