"""Settings under a name: those that come with tritpress, and the reader's own in `RUNS/presets.toml`."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tritpress.config import UNSAFE_OVER_API, make_config, without_unused
from tritpress.dashboard.views.form import Form, chosen, fill_form
from tritpress.errors import TritpressError, UsageError

FILE = "presets.toml"
NAME_LENGTH = 60
MOST = 100

BUILT_IN: dict[str, dict[str, Any]] = {
    "Default for this size": {},
    "Smallest (1.58-bit)": {"planes": 1},
    "Most accurate (2 planes)": {"planes": 2},
    "Fast, no text": {"method": "fast", "finetune": False},
}
"""Name -> the settings that differ from the default."""


def load_presets(runs_dir: Path) -> dict[str, dict[str, Any]]:
    """The reader's own presets by name. Raises `UsageError` when the file is no TOML of that kind."""
    path = runs_dir / FILE
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"the presets in {path} cannot be read: {error}") from None
    presets = {}
    for name, settings in found.items():
        if not isinstance(settings, dict):
            raise UsageError(f'{path} has {name!r} outside a preset: it holds tables ["name"] of settings')
        make_config(without_unused(settings), source=str(path))
        presets[name] = {key: value for key, value in settings.items() if key not in UNSAFE_OVER_API}
    return presets


def save_preset(runs_dir: Path, name: str, form: Form) -> str:
    """Keep what `form` says, its model apart, under that name; an own preset of that name is replaced.

    Returns the name as it is kept. Raises `UsageError` for a name that cannot be or settings that do not fit.
    """
    name = " ".join(name.split())
    if not name or len(name) > NAME_LENGTH or not name.isprintable():
        raise UsageError(f"give the preset a name of 1 to {NAME_LENGTH} characters")
    if name in BUILT_IN:
        raise UsageError(f"{name!r} comes with tritpress: choose another name")
    presets = load_presets(runs_dir)
    if name not in presets and len(presets) >= MOST:
        raise UsageError(f"there are {MOST} presets: delete one first")
    presets[name] = chosen(form)
    _write(runs_dir / FILE, presets)
    return name


def delete_preset(runs_dir: Path, name: str) -> None:
    """Forget an own preset. Raises `UsageError` when there is none of that name."""
    presets = load_presets(runs_dir)
    if name not in presets:
        raise UsageError(f"there is no own preset {name!r}")
    del presets[name]
    _write(runs_dir / FILE, presets)


def apply_preset(form: Form, settings: Mapping[str, Any], default: Form) -> Form:
    """`form`'s model with those settings, everything else at its default."""
    empty = Form(model=form.model, budget=default.budget, amount=default.amount)
    return fill_form(empty, settings)


def _write(path: Path, presets: Mapping[str, Mapping[str, Any]]) -> None:
    lines = []
    for name, settings in presets.items():
        lines.append(f"[{json.dumps(name, ensure_ascii=False)}]")
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
        lines.append("")
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("\n".join(lines), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TritpressError(f"cannot write {path}: {error.strerror}") from None
