"""What is known of a run, read from its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritpress.dashboard.views.status import State
from tritpress.runs.directory import REMOTE, RunDirectory
from tritpress.runs.history import run_state
from tritpress.runs.labels import Labels, load_labels


@dataclass(frozen=True)
class Facts:
    """A run: what its events fold to, its `report.json` where there is one, its `run.json`, its labels."""

    id: str
    path: Path
    state: State
    lost: bool = False
    report: dict[str, Any] | None = None
    record: dict[str, Any] = field(default_factory=dict)
    labels: Labels = field(default_factory=Labels)

    @property
    def name(self) -> str:
        """What people call the run."""
        return self.labels.name or self.record.get("name") or self.state.get("name") or self.id

    @property
    def config(self) -> dict[str, Any]:
        """What the run was asked to do."""
        return self.state.get("config") or self.record.get("config") or {}

    @property
    def remote(self) -> bool:
        """Whether the run is worked on elsewhere and only told of here."""
        return self.record.get("origin") == REMOTE

    @property
    def file_name(self) -> str:
        """The run's id as the beginning of a file's name."""
        return file_name(self.id)


def file_name(text: str) -> str:
    """`text` as the beginning of a file's name."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text)
    return kept.lstrip(".-")[:100] or "run"


def read_facts(path: str | Path, state: State | None = None, lost: bool | None = None) -> Facts:
    """All that a run's folder tells; `state` and `lost` from who has read the log already."""
    directory = RunDirectory(path)
    record = _object(directory.run_json)
    found = run_state(directory) if state is None else state
    if lost is None:
        lost = found["status"] == "died"
    if found["status"] == "died":
        found = {**found, "status": "running"}  # what its events say; `lost` says the rest
    report = _object(directory.report_path) if found["status"] == "finished" else {}
    return Facts(
        directory.id, directory.path, found, lost, report or None, record, load_labels(directory.path)
    )


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
