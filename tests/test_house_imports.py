"""The house rules: imports go down only, and the base install alone carries `import tritpress`."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tritpress

PACKAGE = Path(tritpress.__file__).parent

# Rooms from the top of the house to its foundations: a room may import from rooms on a lower floor only.
FLOORS: dict[str, int] = {
    "cli": 9,
    "phase4": 8,
    "dashboard": 8,
    "api": 8,
    "runs": 7,
    "pipeline": 6,
    "evaluate": 5,
    "finetune": 5,
    "plan": 5,
    "decoder": 5,
    "load": 4,
    "formats": 4,
    "ternarize": 3,
    "nn": 3,
    "ops": 2,
    "_core": 1,
    # beside all: anyone may import these, they import only each other
    "events": 0,
    "config": 0,
    "errors": 0,
}


def _imports(path: Path) -> list[str]:
    """Modules that the file imports anywhere, deferred imports included."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "tritpress":
                found += [f"tritpress.{name.name}" for name in node.names]
            elif node.module:
                found.append(node.module)
    return found


def _files(room: str) -> list[Path]:
    folder = PACKAGE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]


def _python_rooms() -> list[str]:
    rooms = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    return sorted(rooms - {"__init__"})


@pytest.mark.parametrize("room", [room for room in FLOORS if room not in ("_core",)])
def test_imports_go_down_only(room: str) -> None:
    for path in _files(room):
        for module in _imports(path):
            parts = module.split(".")
            if parts[0] != "tritpress" or len(parts) == 1 or parts[1] == room:
                continue
            other = parts[1]
            if other in FLOORS:
                assert FLOORS[other] < FLOORS[room] or (FLOORS[room], FLOORS[other]) == (0, 0), (
                    f"{path.relative_to(PACKAGE)} imports {module}: {room} may not reach up to {other}"
                )


@pytest.mark.parametrize("room", ["events", "config", "errors"])
def test_events_and_config_import_neither_torch_nor_panel(room: str) -> None:
    for path in _files(room):
        heavy = {"torch", "transformers", "panel", "bokeh", "holoviews"} & {m.split(".")[0] for m in _imports(path)}
        assert not heavy, f"{path}: imports {heavy}"


def test_the_dashboard_never_imports_torch() -> None:
    for path in _files("dashboard"):
        heavy = {"torch", "transformers"} & {m.split(".")[0] for m in _imports(path)}
        assert not heavy, f"{path}: imports {heavy}"


def test_the_core_crate_knows_no_python() -> None:
    core = PACKAGE.parents[1] / "rust" / "core"
    if not core.is_dir():
        pytest.skip("an installed package carries no Rust sources")
    text = (core / "Cargo.toml").read_text(encoding="utf-8")
    assert "pyo3" not in text and "numpy" not in text


BASE_ONLY = """
import sys, time

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "tokenizers", "panel", "bokeh", "holoviews", "gguf"}:
            raise ImportError(f"the base install has no {name}")

sys.meta_path.insert(0, Refuse())
import numpy, pydantic
started = time.perf_counter()
import tritpress
print(time.perf_counter() - started)
for name in tritpress.__all__:
    if name not in {"load", "ternarize_", "TernaryLinear", "BitLinear"}:
        getattr(tritpress, name)
"""


def test_import_with_the_base_install_alone() -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, "-c", BASE_ONLY], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    # the import alone, apart from the libraries it stands on, is a small part of the promised 0.3 s
    assert float(done.stdout) < 1.0


def test_every_room_has_a_floor() -> None:
    free = {"bench", "bench_generate", "generate", "inspect", "reference", "report", "text"}
    free |= {"console", "steps"}
    unknown = [room for room in _python_rooms() if room not in FLOORS and room not in free]
    assert not unknown, f"give these rooms a floor in this test: {unknown}"
