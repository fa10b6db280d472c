"""What people write beside a run: a name, tags and a note, in `labels.json`.

The file is the reader's, never the worker's: what a run computes and reports does not depend on it. Its name
wins over the one in `run.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tritpress.errors import UsageError
from tritpress.runs.directory import write_json

FILE = "labels.json"
NAME_LENGTH, TAG_LENGTH, TAGS, NOTE_LENGTH = 200, 40, 20, 10_000


@dataclass(frozen=True)
class Labels:
    """`name` None: the run keeps the name it was started with."""

    name: str | None = None
    tags: tuple[str, ...] = ()
    note: str = ""


def load_labels(run_path: str | Path) -> Labels:
    """The labels of the run at `run_path`; none where the file is missing or damaged."""
    try:
        found = json.loads((Path(run_path) / FILE).read_bytes())
    except (OSError, ValueError):
        return Labels()
    if not isinstance(found, dict):
        return Labels()
    name, tags, note = found.get("name"), found.get("tags"), found.get("note")
    return Labels(
        name[:NAME_LENGTH] if isinstance(name, str) and name.strip() else None,
        tuple(tag[:TAG_LENGTH] for tag in tags if isinstance(tag, str))[:TAGS]
        if isinstance(tags, list)
        else (),
        note[:NOTE_LENGTH] if isinstance(note, str) else "",
    )


def edit_labels(
    run_path: str | Path,
    *,
    name: str | None = None,
    tags: Iterable[str] | None = None,
    note: str | None = None,
) -> Labels:
    """Change what is not None and return all. Raises `UsageError` for what cannot be a name, tag or note.

    An empty name gives the run back the one it was started with.
    """
    labels = load_labels(run_path)
    if name is not None:
        labels = replace(labels, name=_line(name, "name", NAME_LENGTH) or None)
    if tags is not None:
        labels = replace(labels, tags=parse_tags(tags))
    if note is not None:
        text = note.strip()
        if len(text) > NOTE_LENGTH:
            raise UsageError(f"the note has {len(text):,} characters: it may have {NOTE_LENGTH:,}")
        labels = replace(labels, note=text)
    write_json(Path(run_path) / FILE, {**asdict(labels), "tags": list(labels.tags)})
    return labels


def parse_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags in order, each once; one text may hold several with commas between. Raises `UsageError`."""
    parts = [_line(part, "tag", TAG_LENGTH) for text in tags for part in text.split(",")]
    found = tuple(dict.fromkeys(part for part in parts if part))
    if len(found) > TAGS:
        raise UsageError(f"{len(found)} tags: a run may have {TAGS}")
    return found


def _line(text: str, what: str, length: int) -> str:
    text = text.strip()
    if len(text) > length:
        raise UsageError(f"the {what} {text[:20]!r}… has {len(text)} characters: it may have {length}")
    if not text.isprintable():
        raise UsageError(f"the {what} {text!r} must be one line of printable characters")
    return text
