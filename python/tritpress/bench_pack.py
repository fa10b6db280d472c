"""What `tritpress bench pack` measures: weights to codes and back, in turns with plain copies."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

from tritpress import _core
from tritpress.bench_rows import Row, race, summary, whole

SHAPE = (4096, 4096)
STREAMS: list[tuple[str, float | None, int]] = [
    ("absmean", None, 64), ("exact", None, 64), ("exact", 0.44, 64), ("absmean", None, 0), ("exact", None, 0),
]  # fmt: skip
"""Fit, most zeros and group size (0: one scale a row) of what goes from file to file."""

REPACKS: list[tuple[int, Any]] = [(64, "2bit"), (0, "2bit"), (64, "1.6bit")]
BAND = 1 << 19
"""Bytes that the copy of a file reads at a time, as the stream does."""

Copy = Callable[[int], object]


def bench_pack(threads: int) -> list[Row]:
    """Rows of the ops "stream" (bfloat16 weights in a file to codes and scales in another), "ternarize",
    "pack", "unpack", "dequantize" and "repack" (codes and scales as in files to a `PackedMatrix`).

    gb_s is bytes of the input read (codes and scales where there are both), gb_s_thread its share of a
    thread. floor_us is the median of a plain copy in turns with the op, by as many threads, into memory that
    is there already; it moves as many bytes: half of what the op reads and writes is read, the other half
    written. For "stream" it reads and writes files band by band, as many bytes of each as the op. isa is the
    path of this process, which loops over lanes follow. null: n and gop_s (no tokens, no products), where
    (the same arrays each time, in whatever cache holds them), torch's keys (nothing of its is beside them).
    """
    rows, cols = SHAPE
    rng = np.random.default_rng(0)
    w = (rng.standard_normal(SHAPE) * 0.02).astype(np.float32)
    packed = {size: _core.ternarize(w, group_size=size, threads=threads) for size in (64, 0)}
    codes, scales = packed[64]
    trits = _core.unpack(codes[0], cols)
    common: Row = {"rows": rows, "cols": cols, "threads": threads, "isa": _core.isa(), "format": "2bit"}
    out = []

    def add(op: str, read: int, copy: Copy, call: Callable[[int], object], **extra: Any) -> None:
        times = race({op: call, "copy": copy})
        (us, spread), (floor, _) = summary(times[op]), summary(times["copy"])
        row = common | {"op": op, "us": us, "gb_s": round(read / us / 1e3, 3), "floor_us": floor} | extra
        row |= {"ratio_floor": round(us / floor, 3), "us_spread": spread}
        row["gb_s_thread"] = round(read / us / 1e3 / threads, 3)
        out.append(whole(row | {"weights_s": round(rows * cols / us * 1e6)}))

    with ThreadPoolExecutor(threads) as workers:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "weights.bin", Path(folder) / "packed.bin"
            source.write_bytes((w.view(np.uint32) >> 16).astype(np.uint16).tobytes())
            target.write_bytes(b"")
            for fit, ceiling, size in STREAMS:
                where: Any = (source, 0, "BF16", rows, cols, False, target, 0, codes.nbytes)
                options = {"fit": fit, "max_sparsity": ceiling, "group_size": size}

                def stream(i: int, where: Any = where, options: Any = options) -> object:
                    return _core.ternarize_stream(*where, **options, threads=threads)

                sizes = w.nbytes // 2, codes.nbytes + packed[size][1].nbytes
                with open(source, "rb") as from_, open(Path(folder) / "copy.bin", "wb") as to:
                    copy = _copy_of_files((from_.fileno(), to.fileno()), sizes, threads, workers)
                    add("stream", sizes[0], copy, stream, **options, dtype="BF16")

        def memory(read: int, written: int) -> Copy:
            return _copy_of_memory((read + written) // 2, threads, workers)

        small, large = codes.nbytes + scales.nbytes, w.nbytes
        add(
            "ternarize", large, memory(large, small), lambda i: _core.ternarize(w, threads=threads),
            fit="exact", group_size=64, dtype="F32",
        )  # fmt: skip
        moved = memory(trits.nbytes, codes.nbytes)
        add("pack", trits.nbytes, moved, lambda i: _core.pack(trits, threads=threads))
        add("unpack", codes.nbytes, moved, lambda i: _core.unpack(codes, cols, threads=threads))
        add(
            "dequantize", small, memory(small, large),
            lambda i: _core.dequantize(codes, scales, cols, 64, threads=threads), group_size=64,
        )  # fmt: skip
        for size, format in REPACKS:

            def repack(i: int, size: int = size, format: Any = format) -> _core.PackedMatrix:
                return _core.PackedMatrix(*packed[size], size, SHAPE, format, threads=threads)

            read = sum(array.nbytes for array in packed[size])
            add("repack", read, memory(read, repack(0).nbytes), repack, group_size=size, format=format)
    return out


def _copy_of_memory(nbytes: int, threads: int, workers: ThreadPoolExecutor) -> Copy:
    """A copy of so many bytes, each thread its part; both arrays have been written before."""
    source, target = np.full(nbytes, 1, np.uint8), np.full(nbytes, 2, np.uint8)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads)))

    def copy(i: int) -> None:
        others = [workers.submit(np.copyto, *part) for part in parts[1:]]
        np.copyto(*parts[0])
        wait(others)

    return copy


def _copy_of_files(
    files: tuple[int, int], sizes: tuple[int, int], threads: int, workers: ThreadPoolExecutor
) -> Copy:
    """Read the first file's `sizes[0]` bytes and write `sizes[1]` to the second, bands shared out evenly."""
    (source, target), (read, written) = files, sizes
    bands = -(-read // BAND)
    buffers = [bytearray(BAND) for _ in range(threads)]

    def some(thread: int) -> None:
        view = memoryview(buffers[thread])
        for band in range(thread, bands, threads):
            os.preadv(source, [view], band * BAND)
            start, stop = written * band // bands, written * (band + 1) // bands
            os.pwrite(target, view[: stop - start], start)

    def copy(i: int) -> None:
        others = [workers.submit(some, thread) for thread in range(1, threads)]
        some(0)
        wait(others)

    return copy
