"""What `set` changes of tensors that a run has not begun yet: kept in run.json, taken up before each one."""

from __future__ import annotations

import math
import threading
from typing import Any

from tritpress.runs.directory import RunDirectory

KEY = "settings"
"""Key of run.json: tensor name -> {threshold, sparsity}, of which one is None."""


class TensorSettings:
    """Shared by the thread that hears commands and the one that presses.

    A change is kept in run.json before it is acknowledged, for exactly those tensors that have not begun: a
    run that is killed and taken up again presses with the same settings as one that never was.
    """

    def __init__(self, run: RunDirectory, state: dict[str, Any]) -> None:
        self._run, self._state = run, state
        self._lock = threading.Lock()
        self._begun: set[str] = set(state["layers"])
        kept = run.read_run().get(KEY) if run.run_json.is_file() else None
        self._kept: dict[str, dict[str, float | None]] = dict(kept or {})
        self._fresh = dict(self._kept)

    def begin(self, tensor: str) -> dict[str, dict[str, float | None]]:
        """From now on `tensor` is fixed. Returns what was changed since the last call, by tensor."""
        with self._lock:
            self._begun.add(tensor)
            fresh, self._fresh = self._fresh, {}
            return fresh

    def take(self, arguments: dict[str, Any]) -> tuple[bool, str]:
        """Obey `set`: {tensors: names or "all", threshold: number} or {.., sparsity: share}; (ok, detail)."""
        setting = _setting(arguments)
        if isinstance(setting, str):
            return False, setting
        if (self._state.get("config") or {}).get("fit") == "bitnet":
            return False, "the fit bitnet sets its own zeros: a new run with another fit can have them set"
        known = [str(target["name"]) for target in self._state["targets"]]
        if not known:
            return False, "the model has not been read yet: ask again when step 1 is over"
        asked = known if arguments.get("tensors") == "all" else arguments.get("tensors")
        if not isinstance(asked, list) or not asked:
            return False, 'tensors is to be "all" or a list of names'
        unknown = sorted(set(map(str, asked)) - set(known))
        if unknown:
            return False, f"{unknown[0]} is no tensor that this run presses"
        with self._lock:
            left = [name for name in dict.fromkeys(asked) if name not in self._begun]
            if not left:
                return False, "every one of these tensors is pressed already: a new run can press them anew"
            changed = dict.fromkeys(left, setting)
            self._run.update_run(**{KEY: {**self._kept, **changed}})
            self._kept |= changed
            self._fresh |= changed
        what = next(f"{key} {value:g}" for key, value in setting.items() if value is not None)
        rest = len(set(asked)) - len(left)
        beside = f"; {rest} pressed already or at work left as planned" if rest else ""
        return True, f"{len(left)} tensor{'' if len(left) == 1 else 's'} will be pressed with {what}{beside}"


def _setting(arguments: dict[str, Any]) -> dict[str, float | None] | str:
    """The setting, or what is wrong with it."""
    given = arguments.keys() - {"tensors"}
    if given not in ({"threshold"}, {"sparsity"}):
        return (
            "a run at work takes a new name, or a threshold or a sparsity for tensors that it has not begun; "
            "all else is fixed at its start"
        )
    (key,) = given
    value = arguments[key]
    top = 4.0 if key == "threshold" else 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return f"{key} is to be a number"
    if not 0.0 <= value <= top or (key == "sparsity" and value == top):
        return f"{key} is to be from 0 to {'4' if key == 'threshold' else 'below 1'} (given: {value:g})"
    return {"threshold": None, "sparsity": None, key: float(value)}
