"""Torch is loaded as any import would, garbage is collected afterwards as before, and what cannot be loaded
beforehand is left to the import."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHECK = """
import gc, sys
from tritpress.steps import torch_loading
{before}
torch_loading.load_torch()
assert gc.isenabled() and gc.get_freeze_count() > 100_000
frozen = gc.get_freeze_count()
torch_loading.load_torch()
assert gc.get_freeze_count() <= frozen
import torch
assert (torch.ones(3, 3) @ torch.ones(3)).sum() == 9 and "transformers" in sys.modules
"""


@pytest.mark.parametrize(
    "before",
    [
        "",
        "torch_loading.LIBRARIES = ('no such library.so', 'libtorch_cpu.so')",
        "from types import SimpleNamespace as N; torch_loading.ctypes = N(CDLL=lambda name: N())",
        "import torch",
    ],
)
def test_torch_works_and_garbage_is_collected(before: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK.format(before=before)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_process_that_collects_no_garbage_goes_on_without() -> None:
    code = "import gc; gc.disable()\nfrom tritpress.steps.torch_loading import load_torch\nload_torch()\n"
    code += "assert not gc.isenabled()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
