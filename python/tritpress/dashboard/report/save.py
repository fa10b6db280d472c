"""A run's report as a file: HTML, JSON or a zip of charts and tables, written whole or not at all."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

from tritpress.dashboard.report.bundle import bundle, report_json
from tritpress.dashboard.report.facts import Facts
from tritpress.dashboard.report.page import report_html
from tritpress.errors import InputError, UsageError

KINDS = ("html", "json", "zip")
SUFFIXES = {".html": "html", ".htm": "html", ".json": "json", ".zip": "zip"}


def kind_of(path: Path, kind: str | None) -> str:
    """The format asked for: `kind`, or by the file's ending. Raises `UsageError` when neither tells it."""
    if kind is not None:
        if kind not in KINDS:
            raise UsageError(f"--format takes html, json or zip, not {kind!r}")
        return kind
    found = SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise UsageError(
            f"{path.name!r} does not tell the format: end it in .html, .json or .zip, or give --format"
        )
    return found


def report_bytes(facts: Facts, kind: str) -> bytes:
    """The report as the bytes of its file.

    Raises `InputError` for "json" when the run has not finished: `report.json` is written by its last step.
    """
    if kind == "html":
        return report_html(facts).encode()
    if kind == "zip":
        return _zip(facts)
    text = report_json(facts)
    if text is None:
        raise InputError(
            f"run {facts.id} has no report.json: {_why_no_json(facts)} (an HTML report can be made)"
        )
    return text.encode()


def save(content: bytes, path: Path, replace: bool = False) -> None:
    """Write the file under a temporary name, flush it and rename it. The folder must be there.

    Raises `InputError` when `path` is taken (and `replace` is not given), is a folder, or cannot be written.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file")
    if path.exists() and not replace:
        raise InputError(f"{path} is there already: give another name, or --overwrite")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} is not there: make it first, or give another name")
    beside = path.with_name(f".{path.name[:100]}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        beside.unlink(missing_ok=True)


def _why_no_json(facts: Facts) -> str:
    status = facts.state["status"]
    if status == "finished":
        return "its file is missing or damaged"
    if facts.lost:
        return "nothing more is heard of it" if facts.remote else "its worker is gone"
    words = {"failed": "it failed", "stopped": "it was stopped", "created": "it has not begun",
             "queued": "it has not begun"}  # fmt: skip
    return words.get(status, "it is still at work")


def _zip(facts: Facts) -> bytes:
    """Charts as SVG, tables as CSV, both reports."""
    made, file = bundle(facts), io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in made.files:
            archive.writestr(path, text)
        for path, svg in made.drawings:
            archive.writestr(f"{path}.svg", svg)
    return file.getvalue()
