"""Taking up, before each tensor, what the run was told to change of those not begun yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tritpress.events.context import RunContext
from tritpress.plan import Plan


class SteeredContext:
    """A run's context for step 4: when a tensor begins, changes asked for meanwhile go into the plan.

    The plan on disk is changed before the first tensor that is pressed by it. A context without `begin` (no
    worker behind it) changes nothing.
    """

    def __init__(self, context: RunContext, plan: Plan, path: Path) -> None:
        self._context, self._plan, self._path = context, plan, path

    def emit(self, type: str, /, **fields: Any) -> None:
        if type == "layer.started":
            self._settle(str(fields["name"]))
        self._context.emit(type, **fields)

    def check(self) -> None:
        self._context.check()

    def _settle(self, tensor: str) -> None:
        begin = getattr(self._context, "begin", None)
        changes = begin(tensor) if begin is not None else {}
        changed = False
        for name, setting in changes.items():
            planned = self._plan.tensors.get(name)
            new = {**setting, "max_sparsity": None}
            if planned is not None and any(getattr(planned, key) != value for key, value in new.items()):
                for key, value in new.items():
                    setattr(planned, key, value)
                changed = True
        if changed:
            self._plan.save(self._path)
