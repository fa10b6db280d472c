"""What lies at the paths that the sidebar asks for, said at once: the model's headers, the texts' files."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tritpress.config import SELF_TEXT
from tritpress.dashboard.folders import refusal
from tritpress.dashboard.views import figures as fig
from tritpress.errors import TritpressError

FILES_LOOKED_AT = 5000
"""A folder of more text files is not counted to its end while someone types."""

SECONDS = 0.15
"""How long folders of text are looked through at most."""


@dataclass(frozen=True)
class ModelCheck:
    """What lies at a path: `ok` when it can be pressed, else `lines` says in a sentence what is wrong."""

    ok: bool
    path: str
    lines: tuple[str, ...]
    default_ratio: float | None = None
    reference: bool = False


def check_model(path: str) -> ModelCheck:
    """Look at the headers of the model at `path`; reads no weights."""
    from tritpress.formats.source import open_source
    from tritpress.formats.targets import find_targets
    from tritpress.reference import is_reference_model

    text = path.strip()
    if not text:
        return ModelCheck(
            False, "", ("Give the folder of a Hugging Face model (config.json and safetensors).",)
        )
    full = text
    try:
        full = os.path.abspath(os.path.expanduser(text))
        if (why := refusal(full)) is not None:
            return ModelCheck(False, full, (why,))
        source = open_source(full)
        targets = find_targets(source)
        reference = is_reference_model(full)
    except (TritpressError, OSError, RuntimeError, ValueError, KeyError) as error:
        return ModelCheck(False, full, (str(error) or type(error).__name__,))
    layers = len({target.layer for target in targets})
    return ModelCheck(
        True,
        full,
        (
            f"{source.architecture} · {fig.large_count(source.parameters)} parameters"
            f" · {source.source_dtype}",
            f"{fig.plural(layers, 'layer')} · {fig.plural(len(targets), 'tensor')} to press · "
            f"{fig.size(source.bytes_on_disk)} on disk",
            f"Size class {source.size_class}: {fig.ratio(source.class_ratio)} unless chosen otherwise",
        ),
        source.class_ratio,
        reference,
    )


def unseen_model(path: str) -> ModelCheck:
    """The model of a run that is worked on elsewhere: its path says nothing of this machine's folders."""
    return ModelCheck(True, path, (f"{path} on the machine that works on this run",))


@dataclass(frozen=True)
class TextCheck:
    ok: bool
    words: str


def check_text(paths: Sequence[str], reference: bool) -> TextCheck:
    """Look for the texts; reads none. `reference`: the built-in model has a text of its own."""
    if not paths:
        if reference:
            return TextCheck(True, "The built-in text: the interpreter's standard library.")
        return TextCheck(
            True, "No text: nothing is calibrated, fine-tuned or measured; only the ratio can be judged."
        )
    if list(paths) == [SELF_TEXT]:
        return TextCheck(True, "The model writes its own text first.")
    files, size, whole = 0, 0, True
    until = time.monotonic() + SECONDS
    for path in paths:
        try:
            if (why := refusal(path)) is not None:
                return TextCheck(False, why)
            found = Path(path).expanduser()
            if not found.exists():
                return TextCheck(False, f"There is no text at {path}.")
            inside, all_seen = _text_files(found, until)
        except (OSError, RuntimeError, ValueError) as error:  # not readable here, a user that is not known
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            return TextCheck(False, f"The text at {path} cannot be looked at: {why.rstrip('.')}.")
        whole = whole and all_seen
        if not inside and all_seen:
            from tritpress.text import SUFFIXES

            *most, last = SUFFIXES
            return TextCheck(False, f"{path} holds no {', '.join(most)} or {last} file.")
        files += len(inside)
        size += sum(inside)
    if not whole and not files:
        return TextCheck(True, "Large folders: no text among the first files; the run looks through all.")
    more = "" if whole else "more than "
    return TextCheck(True, f"{more}{fig.plural(files, 'file')} · {fig.size(size)}")


def unseen_text(paths: Sequence[str]) -> TextCheck:
    """The texts of a run that is worked on elsewhere."""
    if not paths or list(paths) == [SELF_TEXT]:
        return check_text(paths, False)
    return TextCheck(True, f"{fig.plural(len(paths), 'text')} on that machine; Start looks for them here.")


def _text_files(root: Path, until: float) -> tuple[list[int], bool]:
    """Sizes of the text files below `root`, or of `root` itself; whether these are all. The server answers
    nobody meanwhile, so that it stops looking at `until`.
    """
    from tritpress.text import SUFFIXES

    if root.is_file():
        return [root.stat().st_size], True
    found: list[int] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                try:
                    found.append(os.stat(os.path.join(folder, name)).st_size)
                except OSError:
                    continue
        if len(found) >= FILES_LOOKED_AT or time.monotonic() > until:
            return found, False
    return found, True
