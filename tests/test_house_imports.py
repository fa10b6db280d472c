"""The house rules: imports go down only, and the base install alone carries `import tritpress`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import tritpress

PACKAGE = Path(tritpress.__file__).parent

# Rooms from the top of the house to its foundations: a room may import from rooms on a lower floor only.
FLOORS: dict[str, int] = {
    "__main__": 18,
    "cli": 17,
    "runs_report": 16,
    "console": 15,
    "dashboard": 15,
    "client": 13,
    "phase4": 15,
    "api": 14,
    "invocation": 13,
    "runs": 12,
    "pipeline": 11,
    "steps": 10,
    "report": 9,
    "press": 8,
    "finetune": 8,
    "plan": 7,
    "evaluate": 7,
    "generate": 7,
    "bench": 8,
    "costs": 6,
    "knapsack": 5,
    "bench_generate": 6,
    "bench_ggml": 0,
    "bench_pack": 1,
    "bench_start": 1,
    "bench_rows": 0,
    "decoder": 5,
    "inspect": 5,
    "loading": 5,
    "text": 5,
    "formats": 4,
    "ternarize": 3,
    "nn": 2,
    "ops": 1,
    "_core": 0,
    # beside all: anyone may import these, they import only each other
    "allocator": -1,
    "events": -1,
    "config": -1,
    "errors": -1,
    "devices": -1,
    "program": -1,
    "reference": -1,
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
    rooms = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    return sorted(rooms - {"__init__"})


@pytest.mark.parametrize("room", [room for room in FLOORS if room not in ("_core",)])
def test_imports_go_down_only(room: str) -> None:
    for path in _files(room):
        for module in _imports(path):
            parts = module.split(".")
            if parts[0] != "tritpress" or len(parts) == 1 or parts[1] == room:
                continue
            other = parts[1]
            if other not in FLOORS:  # a public name of the package itself, or the version
                continue
            lower = FLOORS[other] < FLOORS[room] or FLOORS[other] == -1
            assert lower, f"{path.relative_to(PACKAGE)} imports {module}: {room} may not reach up to {other}"


@pytest.mark.parametrize("room", ["events", "config", "errors", "client"])
def test_events_and_config_import_neither_torch_nor_panel(room: str) -> None:
    for path in _files(room):
        heavy = {"torch", "transformers", "panel", "bokeh", "holoviews"} & {
            m.split(".")[0] for m in _imports(path)
        }
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
        if name.split(".")[0] in {"torch", "transformers", "tokenizers", "panel", "bokeh", "holoviews"}:
            raise ImportError(f"the base install has no {name}")

sys.meta_path.insert(0, Refuse())
started = time.process_time()
import tritpress
print(time.process_time() - started)
for name in tritpress.__all__:
    if name not in {"load", "ternarize_", "TernaryLinear", "BitLinear"}:
        getattr(tritpress, name)
"""


def test_import_with_the_base_install_alone() -> None:
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", BASE_ONLY], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        seconds.append(float(done.stdout))
    assert min(seconds) < 0.3, "`import tritpress`, numpy included, takes too much processor time"


def test_every_room_has_a_floor() -> None:
    unknown = [room for room in _python_rooms() if room not in FLOORS]
    assert not unknown, f"give these rooms a floor in this test: {unknown}"


def test_no_public_name_is_hidden_by_a_module_of_that_name() -> None:
    for name in tritpress.__all__:
        module = PACKAGE / f"{name}.py"
        assert not module.exists(), f"{module.name} would hide tritpress.{name} once it is imported"
