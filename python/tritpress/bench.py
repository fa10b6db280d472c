"""What `tritpress bench` measures: the kernels beside this machine's own limits and beside torch.

Every figure is measured in the run that prints it. Competitors take turns, some calls each, so that a busy
machine slows all of them alike; a row gives the median and the spread (lower and upper quartile). What needs
more than a quarter of a second runs by itself before, up to three times.
"""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tritpress import _core
from tritpress.bench_ggml import products as ggml_products
from tritpress.bench_pack import bench_pack
from tritpress.bench_rows import Row, Runners, race, summary, whole
from tritpress.bench_start import bench_start
from tritpress.errors import UsageError

SHAPES = [(2560, 2560), (6912, 2560), (2560, 6912), (4096, 4096), (14336, 4096), (4096, 14336)]
"""(rows, cols) of the layers of models from 3 to 8 billion parameters."""

MATMUL_SHAPES = [(2560, 2560), (4096, 4096)]
TOKENS = [2, 4, 8, 16, 32, 64, 128]
MORE_TOKENS = [3, 5, 6, 9, 12, 17, 24, 65]
"""Numbers between powers of two and just beyond where kernels change, for the first of `MATMUL_SHAPES`."""

KINDS: list[tuple[int, Any, int]] = [(64, "2bit", 1), (0, "2bit", 1), (64, "1.6bit", 1), (0, "1.6bit", 1)]
"""Group size (0: one scale a row), format and planes of every shape of `matvec`."""

TWO_PLANES = [(2560, 2560), (4096, 4096)]
"""The shapes that `matvec` measures with two planes too."""

REFERENCE_TOKENS, REFERENCE_TEXTS = 32, 5
"""Tokens of a text that `generate` has the built-in model write, and how often."""

MEMORY_BYTES = 256 << 20
"""This much at least is read between two readings of a copy, so that none of it is still in the cache."""


def run(name: str, threads: int | None = None, torch: bool = True) -> dict[str, Any]:
    """Run one benchmark: "matvec", "matmul", "pack" or "generate".

    threads: measure with this many threads; None measures one and all.
    torch: whether products have torch's beside them, where torch is installed. ggml's (one scale for 256
    weights) stand there where llama-cpp-python is installed.
    Returns {"machine": limits measured first, "rows": [...]}, numbers in the units of their names
    (us microseconds, gb_s 10^9 bytes a second, gop_s 10^9 operations a second: a product and a sum are two).
    Every row has all keys of `bench_rows.KEYS`, null where one has no meaning: packing has no tokens (n), no
    gop_s and nothing of torch's beside it, a whole model no rows, cols and where. ratio_floor is us over
    floor_us, ratio_torch torch_us over us. floor_us is what the limits leave, the best of their measurement
    (for "pack" a plain copy in the same turns, see `bench_pack`); reading_us the median time of reading the
    same bytes in turns with the products, so that ratio_reading compares like with like on any machine. The
    first row of "matvec" is of the op "start", see `bench_start`.
    Raises `UsageError` for an unknown name or a bad thread count.
    """
    benches: dict[str, Callable[..., list[Row]]] = {
        "matvec": partial(_matvec, torch=torch),
        "matmul": partial(_matmul, torch=torch),
        "pack": lambda count, limits: bench_pack(count),
        "generate": _generate,
    }
    if name not in benches:
        raise UsageError(f"bench must be one of {', '.join(benches)}, not {name!r}")
    if threads is not None and not 1 <= threads <= 1024:
        raise UsageError(f"threads must be from 1 to 1024, not {threads}")
    every = _core.default_threads()
    counts = sorted({1, every}) if threads is None else [threads]
    limits: dict[int, Any] = {count: _core.machine_limits(count) for count in counts}
    machine = {"cpu": _cpu_name(), "isa": _core.isa(), "isas": _core.available_isas(), "threads": every}
    for count, found in limits.items():
        machine |= {f"{key}_{count}t": round(float(value), 1) for key, value in found.items()}
    rows = [row for count in counts for row in benches[name](count, limits[count])]
    return {"machine": machine, "rows": rows}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _arrays(rows: int, cols: int, group_size: int, planes: int) -> tuple[np.ndarray, np.ndarray]:
    """Random codes (0, 1, 2) and scales."""
    rng = np.random.default_rng(0)
    codes = _core.pack((rng.integers(0, 3, (planes, rows, cols), dtype=np.int8) - 1).astype(np.int8))
    groups = -(-cols // group_size) if group_size else 1
    scales = (rng.random((planes, rows, groups)) * 0.1 + 0.01).astype(np.float16)
    return codes, scales


def _torch_runners(rows: int, cols: int, n: int, copies: int, threads: int) -> Runners:
    """torch's own products at this shape: float32, bfloat16 and dynamic int8, where torch is installed."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(threads)
    x = torch.randn(n, cols)
    runners: Runners = {}
    for name, dtype in {"torch_fp32": torch.float32, "torch_bf16": torch.bfloat16}.items():
        weights = [torch.randn(rows, cols, dtype=dtype) for _ in range(copies)]
        inputs = x.to(dtype)

        def product(i: int, weights: list = weights, inputs: Any = inputs) -> object:
            with torch.inference_mode():
                return torch.nn.functional.linear(inputs, weights[i % len(weights)])

        runners[name] = product
    try:
        dynamic = torch.ao.nn.quantized.dynamic.Linear
        quantized = [dynamic.from_float(_dynamic_source(torch, rows, cols)) for _ in range(copies)]

        def int8(i: int) -> object:
            with torch.inference_mode():
                return quantized[i % len(quantized)](x)

        int8(0)
        runners["torch_int8"] = int8
    except (AttributeError, RuntimeError, NotImplementedError):
        pass  # this torch has no dynamic int8 product
    return runners


def _ggml(rows: int, cols: int, x: np.ndarray, copies: int, threads: int) -> dict[str, list[float]]:
    """ggml's TQ2_0 product, right after ours and not in turns: its idle threads spin for a while."""
    with ggml_products((rows, cols), x, copies, threads) as run:
        return {} if run is None else race({"ggml": run})


def _dynamic_source(torch: Any, rows: int, cols: int) -> Any:
    layer = torch.nn.Linear(cols, rows, bias=False)
    layer.qconfig = torch.ao.quantization.default_dynamic_qconfig
    return layer


def _slow(runners: Runners) -> dict[str, list[float]]:
    """Up to three times (us) of each that needs more than a quarter of a second, as bfloat16 on a processor
    without instructions for it: many turns would take too long.
    """

    def took(run: Callable[[int], object], i: int) -> float:
        start = time.perf_counter()
        run(i)
        return (time.perf_counter() - start) * 1e6

    found = {}
    for name, run in runners.items():
        run(0)
        first = took(run, 1)
        if first > 250_000:
            found[name] = [first, *(took(run, i) for i in (2, 3) if first < 2e6)]
    return found


def _row(
    op: str, matrix: Any, n: int, threads: int, where: str, times: dict[str, list[float]], floor: float
) -> Row:
    us, spread = summary(times["tritpress"])
    rows, cols = matrix.shape
    row = whole({
        "op": op, "rows": rows, "cols": cols, "n": n, "threads": threads, "where": where,
        "isa": matrix.isa_for(n),
        "format": matrix.format, "group_size": matrix.group_size, "planes": matrix.planes, "us": us,
        "us_spread": spread, "us_least": round(min(times["tritpress"]), 2),
        "gb_s": round(matrix.nbytes / us / 1e3, 2), "gop_s": round(_operations(matrix, n) / us / 1e3, 1),
        "floor_us": round(floor, 2), "ratio_floor": round(us / floor, 3),
    })  # fmt: skip
    others = {name: summary(values)[0] for name, values in times.items() if name != "tritpress"}
    row["ggml_us"] = others.pop("ggml", None)
    row["ratio_ggml"] = round(row["ggml_us"] / us, 2) if row["ggml_us"] else None
    for name in ("torch_fp32", "torch_bf16", "torch_int8"):
        row[f"{name}_us"] = others.get(name)
    row["torch_us"] = min(others.values()) if others else None
    row["ratio_torch"] = round(row["torch_us"] / us, 2) if others else None
    return row


def _operations(matrix: Any, n: int) -> float:
    """A product and a sum for each token and weight of each plane."""
    rows, cols = matrix.shape
    return 2.0 * n * rows * cols * matrix.planes


def _matvec(threads: int, limits: Any, torch: bool) -> list[Row]:
    """One token at every shape, from memory and from cache, in every format and beside torch; some shapes
    with two planes. First what a process takes until its first product.
    """
    out = [bench_start(threads)]
    rng = np.random.default_rng(1)
    for shape in SHAPES:
        x = rng.standard_normal((1, shape[1])).astype(np.float32)
        for group_size, format, planes in KINDS + [(64, "2bit", 2)] * (shape in TWO_PLANES):
            matrices = _copies(shape, group_size, format, planes)
            first = matrices[0]
            for where in ("memory", "cache"):
                used = matrices if where == "memory" else matrices[:1]
                turn = itertools.cycle(used)  # shared: each reads what has been left alone longest

                def ours(i: int, turn: Any = turn, x: np.ndarray = x[0]) -> object:
                    return next(turn).matvec(x, threads)

                best = _of_memory(limits) if where == "memory" else _core.read_again(first.nbytes, threads)
                way = best["streams"], best["ahead"]

                def reading(i: int, turn: Any = turn, way: tuple[int, int] = way) -> object:
                    _core.read_once(next(turn), *way, threads)
                    return None

                runners: Runners = {"tritpress": ours, "reading": reading}
                times = _beside_others(runners, first, x, len(used), threads, torch)
                operations = _operations(first, 1) / limits["unpack_gop_s"] / 1e3
                read, _ = summary(times.pop("reading"))
                floor = max(first.nbytes / best["gb_s"] / 1e3, operations)
                row = _row("matvec", first, 1, threads, where, times, floor)
                row |= {"reading_us": read, "ratio_reading": round(row["us"] / max(read, operations), 3)}
                out.append(row)
    return out


def _copies(shape: tuple[int, int], group_size: int, format: Any, planes: int = 1) -> list[Any]:
    """One matrix so many times that each is out of the cache when its turn comes again."""
    codes, scales = _arrays(*shape, group_size, planes)
    first = _core.PackedMatrix(codes, scales, group_size, shape, format)
    more = -(-MEMORY_BYTES // first.nbytes)
    return [first] + [_core.PackedMatrix(codes, scales, group_size, shape, format) for _ in range(more)]


def _beside_others(
    runners: Runners, matrix: Any, x: np.ndarray, copies: int, threads: int, torch: bool
) -> dict[str, list[float]]:
    """Times of our own runners in turns with torch's, of torch's slow ones before them and of ggml's after
    them, for the same inputs.
    """
    rows, cols = matrix.shape
    slow: dict[str, list[float]] = {}
    if torch and (matrix.group_size, matrix.format, matrix.planes) == (64, "2bit", 1):  # once for each shape
        torch_copies = -(-MEMORY_BYTES // (4 * rows * cols)) + 1 if copies > 1 else 1
        torchs = _torch_runners(rows, cols, len(x), torch_copies, threads)
        slow = _slow(torchs)
        runners = runners | {name: run for name, run in torchs.items() if name not in slow}
    times = race(runners) | slow
    if (matrix.format, matrix.planes) != ("2bit", 1):
        return times
    return times | _ggml(rows, cols, x, copies, threads)


def _of_memory(limits: Any) -> Any:
    return {
        "gb_s": limits["memory_gb_s"],
        "streams": limits["memory_streams"],
        "ahead": limits["memory_ahead"],
    }


def _matmul(threads: int, limits: Any, torch: bool) -> list[Row]:
    """Many tokens, from memory and from cache; the floor is the multiply-add peak alone."""
    out = []
    rng = np.random.default_rng(1)
    for shape in MATMUL_SHAPES:
        for group_size, format in ((64, "2bit"), (0, "2bit"), (64, "1.6bit")):
            matrices = _copies(shape, group_size, format)
            for where in ("memory", "cache"):
                used = matrices if where == "memory" else matrices[:1]
                turn = itertools.cycle(used)
                for n in sorted(TOKENS + MORE_TOKENS * (shape == MATMUL_SHAPES[0])):
                    x = rng.standard_normal((n, shape[1])).astype(np.float32)

                    def ours(i: int, turn: Any = turn, x: np.ndarray = x) -> object:
                        return next(turn).matmul(x, threads)

                    def single(i: int, turn: Any = turn, x: np.ndarray = x) -> object:
                        return next(turn).matvec(x[0], threads)

                    runners: Runners = {"tritpress": ours, "single": single}
                    times = _beside_others(runners, matrices[0], x, len(used), threads, torch)
                    one, _ = summary(times.pop("single"))
                    operations = _operations(matrices[0], n) / 1e3
                    floor = operations / limits["multiply_gop_s"]
                    row = _row("matmul", matrices[0], n, threads, where, times, floor)
                    unit = limits.get("matrix_gop_s")
                    row["ratio_matrix_unit"] = round(row["us"] / operations * unit, 3) if unit else None
                    row["ratio_matvecs"] = round(one * n / row["us"], 2)
                    out.append(row)
    return out


def _generate(threads: int, limits: Any) -> list[Row]:
    """The built-in model beside torch, where that is installed; then the package's own decoder on random
    packed models.
    """
    from tritpress.bench_generate import bench_generate

    return [*_reference(threads), *bench_generate(threads, unpack_gop_s=limits["unpack_gop_s"])]


def _reference(threads: int) -> list[Row]:
    """The built-in model, ternarized with one plane, beside the original in float32: us for each of the new
    tokens of one text, the prompt included. What torch does in both is neither counted nor bounded: gb_s,
    gop_s and floor_us are null. No row where torch or transformers is not installed.
    """
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        return []
    import tritpress as tp
    from tritpress.config import make_config
    from tritpress.formats.huggingface import load_tokenizer
    from tritpress.generate import generate_with
    from tritpress.loading import load
    from tritpress.ops.linear import get_threads, set_threads, use_threads
    from tritpress.reference import reference_model_path

    path = reference_model_path()
    tokenizer = load_tokenizer(path)
    original, ternary = load(path), load(path)
    config = make_config({"planes": 1})
    tp.ternarize_(ternary, config)
    models = {"tritpress": ternary, "torch_fp32": original}
    rates: dict[str, list[float]] = {name: [] for name in models}
    before = get_threads()
    use_threads(threads)
    try:
        for _ in range(REFERENCE_TEXTS):
            for name, model in models.items():
                found = generate_with(model, tokenizer, "def main():\n", REFERENCE_TOKENS)
                rates[name].append(float(found["tokens_per_s"]))
    finally:
        set_threads(before)
    ours, theirs = (float(np.median(values)) for values in rates.values())
    row: Row = {
        "op": "generate", "n": 1, "threads": threads, "isa": _core.isa_for(1), "format": "2bit",
        "group_size": config.base_group_size, "us": round(1e6 / ours, 1), "torch_us": round(1e6 / theirs, 1),
        "ratio_torch": round(ours / theirs, 2), "model": "reference", "tokens": REFERENCE_TOKENS,
        "tritpress_tokens_s": round(ours, 2), "torch_fp32_tokens_s": round(theirs, 2),
    }  # fmt: skip
    return [whole(row)]
