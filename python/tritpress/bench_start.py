"""How long a new process takes from `import tritpress` to its first product."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tritpress import _core
from tritpress.bench_rows import Row, summary, whole

SHAPE = (2560, 2560)
REPEATS = 7
AIM_S = 0.4

PRODUCT = """
import sys, time
rows, cols, threads = map(int, sys.argv[1:])
started = time.perf_counter()
import numpy as np
import tritpress as tp
imported = time.perf_counter()
codes = np.full((1, rows, -(-cols // 4)), 0x55, np.uint8)
scales = np.ones((1, rows, -(-cols // 64)), np.float16)
matrix = tp.PackedMatrix(codes, scales, group_size=64, shape=(rows, cols), threads=threads)
matrix.matvec(np.ones(cols, np.float32), threads)
print(imported - started, time.perf_counter() - started)
"""

NUMPY = """
import time
started = time.perf_counter()
import numpy
print(time.perf_counter() - started)
"""


def bench_start(threads: int) -> Row:
    """A row of the op "start": us from before `import tritpress` to the result of the first matvec of one
    matrix of zeros in groups of 64, which is laid out in between; medians over `REPEATS` new processes.

    seconds is the same in seconds, seconds_aim what it should not exceed, import_us the import's part;
    floor_us importing numpy alone, in new processes in turns. The interpreter's own start is in neither.
    null: where, gb_s, gop_s (most of it is no product), torch's keys.
    """
    rows, cols = SHAPE
    imports, totals, floors = [], [], []
    for repeat in range(REPEATS + 1):
        imported, total = _seconds(PRODUCT, rows, cols, threads)
        (numpy_alone,) = _seconds(NUMPY)
        if repeat:  # the first brings the files into the page cache
            imports.append(1e6 * imported)
            totals.append(1e6 * total)
            floors.append(1e6 * numpy_alone)
    (us, spread), (floor, _) = summary(totals), summary(floors)
    return whole({
        "op": "start", "rows": rows, "cols": cols, "n": 1, "threads": threads, "isa": _core.isa_for(1),
        "format": "2bit", "group_size": 64, "us": us, "us_spread": spread, "floor_us": floor,
        "ratio_floor": round(us / floor, 3), "import_us": summary(imports)[0], "seconds": round(us / 1e6, 4),
        "seconds_aim": AIM_S,
    })  # fmt: skip


def _seconds(code: str, *arguments: int) -> list[float]:
    """What a new process with this very package prints."""
    package = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(word) for word in done.stdout.split()]
