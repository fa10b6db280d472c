"""What every room of the pipeline gets in order to report and to obey."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class RunContext(Protocol):
    """Reports events and obeys commands. The worker's own one is `tritpress.runs.control.WorkerContext`."""

    def emit(self, type: str, /, **fields: Any) -> None:
        """Append one event of that type. Raises OSError when the log cannot be written."""

    def check(self) -> None:
        """Call between tensors, training steps and evaluation batches.

        Blocks while the run is paused and raises `StopRequested` once it is to stop.
        """


class NullContext:
    """For work outside a run: reports to nobody, never pauses, never stops."""

    def emit(self, type: str, /, **fields: Any) -> None:
        return None

    def check(self) -> None:
        return None
