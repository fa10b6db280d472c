"""What `tritpress bench` measures: the kernels beside this machine's own limits and beside torch.

Every figure is measured in the run that prints it. Competitors take turns within each repeat, so that a busy
machine slows all of them alike; a row gives the median and the spread (lower and upper quartile).
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tritpress import _core
from tritpress.bench_ggml import products as ggml_products
from tritpress.errors import UsageError

SHAPES = [(2560, 2560), (6912, 2560), (2560, 6912), (4096, 4096), (14336, 4096), (4096, 14336)]
"""(rows, cols) of the layers of models from 3 to 8 billion parameters."""

MATMUL_SHAPES = [(2560, 2560), (4096, 4096)]
TOKENS = [2, 4, 8, 16, 32, 64, 128]
MEMORY_BYTES = 256 << 20
"""Copies that are read in turn amount to this much, so that none is still in the cache."""

Row = dict[str, Any]
Runners = dict[str, Callable[[int], object]]


def run(name: str, threads: int | None = None, torch: bool = True) -> dict[str, Any]:
    """Run one benchmark: "matvec", "matmul", "pack" or "generate".

    threads: measure with this many threads; None measures one and all.
    torch: whether products have torch's beside them, where torch is installed. ggml's (one scale for 256
    weights) stand there where llama-cpp-python is installed.
    Returns {"machine": limits measured first, "rows": [...]}, numbers in the units of their names
    (us microseconds, gb_s 10^9 bytes a second, gop_s 10^9 operations a second: a product and a sum are two).
    floor_us is what the limits leave, the best of their measurement; reading_us the median time of reading
    the same bytes in turns with the products, so that ratio_reading compares like with like on any machine.
    Raises `UsageError` for an unknown name or a bad thread count.
    """
    benches: dict[str, Callable[..., list[Row]]] = {
        "matvec": partial(_matvec, torch=torch),
        "matmul": partial(_matmul, torch=torch),
        "pack": _pack,
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


def _race(runners: Runners, seconds: float = 0.25, warm: bool = False) -> dict[str, list[float]]:
    """Microseconds of each runner over interleaved repeats; a runner is called with the repeat's number.

    `warm` calls each once untimed before it is timed, so that it finds its own data in the cache and not
    what the one before it left there.
    """
    times: dict[str, list[float]] = {name: [] for name in runners}
    for runner in runners.values():
        runner(0)
    start, repeat = time.perf_counter(), 0
    while repeat < 5 or (time.perf_counter() - start < seconds * len(runners) and repeat < 400):
        repeat += 1
        for name, runner in runners.items():
            if warm:
                runner(repeat)
            before = time.perf_counter_ns()
            runner(repeat)
            times[name].append((time.perf_counter_ns() - before) / 1e3)
    return times


def _summary(times: list[float]) -> tuple[float, list[float]]:
    low, middle, high = np.percentile(times, [25, 50, 75])
    return round(float(middle), 2), [round(float(low), 2), round(float(high), 2)]


def _arrays(rows: int, cols: int, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random codes (0, 1, 2) and scales of one plane."""
    rng = np.random.default_rng(0)
    codes = _core.pack((rng.integers(0, 3, (1, rows, cols), dtype=np.int8) - 1).astype(np.int8))
    groups = -(-cols // group_size) if group_size else 1
    scales = (rng.random((1, rows, groups)) * 0.1 + 0.01).astype(np.float16)
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

        if name == "torch_bf16" and _slower_than(lambda: product(0), 0.25):
            continue  # a CPU without bfloat16 units: the design says why it is no competitor
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


def _ggml(
    rows: int, cols: int, x: np.ndarray, copies: int, threads: int, warm: bool
) -> dict[str, list[float]]:
    """ggml's TQ2_0 product, right after ours and not in turns: its idle threads spin for a while."""
    with ggml_products((rows, cols), x, copies, threads) as run:
        return {} if run is None else _race({"ggml": run}, warm=warm)


def _dynamic_source(torch: Any, rows: int, cols: int) -> Any:
    layer = torch.nn.Linear(cols, rows, bias=False)
    layer.qconfig = torch.ao.quantization.default_dynamic_qconfig
    return layer


def _slower_than(call: Callable[[], object], seconds: float) -> bool:
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start > seconds


def _row(
    op: str, matrix: Any, n: int, threads: int, where: str, times: dict[str, list[float]], floor: float
) -> Row:
    us, spread = _summary(times["tritpress"])
    rows, cols = matrix.shape
    row: Row = {
        "op": op, "rows": rows, "cols": cols, "n": n, "threads": threads, "where": where, "isa": matrix.isa,
        "format": matrix.format, "group_size": matrix.group_size, "us": us, "us_spread": spread,
        "us_least": round(min(times["tritpress"]), 2),
        "gb_s": round(matrix.nbytes / us / 1e3, 2), "gop_s": round(2.0 * n * rows * cols / us / 1e3, 1),
        "floor_us": round(floor, 2), "ratio_floor": round(us / floor, 3),
    }  # fmt: skip
    others = {name: _summary(values)[0] for name, values in times.items() if name != "tritpress"}
    row["ggml_us"] = others.pop("ggml", None)
    row["ratio_ggml"] = round(row["ggml_us"] / us, 2) if row["ggml_us"] else None
    for name in ("torch_fp32", "torch_bf16", "torch_int8"):
        row[f"{name}_us"] = others.get(name)
    row["torch_us"] = min(others.values()) if others else None
    row["ratio_torch"] = round(row["torch_us"] / us, 2) if others else None
    return row


def _matvec(threads: int, limits: Any, torch: bool) -> list[Row]:
    """One token at every shape, from memory and from cache, in every format and beside torch."""
    out = []
    rng = np.random.default_rng(1)
    for rows, cols in SHAPES:
        x = rng.standard_normal(cols).astype(np.float32)
        formats: Any = ((64, "2bit"), (0, "2bit"), (64, "1.6bit"))
        for group_size, format in formats:
            codes, scales = _arrays(rows, cols, group_size)
            first = _core.PackedMatrix(codes, scales, group_size, (rows, cols), format)
            copies = -(-MEMORY_BYTES // first.nbytes)
            matrices = [first] + [
                _core.PackedMatrix(codes, scales, group_size, (rows, cols), format) for _ in range(copies - 1)
            ]
            for where in ("memory", "cache"):
                memory = where == "memory"
                used = matrices if memory else matrices[:1]

                def ours(i: int, used: list = used, x: np.ndarray = x) -> object:
                    return used[i % len(used)].matvec(x, threads)

                best = _of_memory(limits) if memory else _core.read_again(first.nbytes, threads)
                way = best["streams"], best["ahead"]

                def reading(i: int, used: list = used, way: tuple[int, int] = way) -> object:
                    _core.read_once(used[(i + len(used) // 2) % len(used)], *way, threads)
                    return None

                runners: Runners = {"tritpress": ours, "reading": reading}
                if torch and (group_size, format) == (64, "2bit"):
                    torch_copies = -(-MEMORY_BYTES // (4 * rows * cols)) if memory else 1
                    runners |= _torch_runners(rows, cols, 1, torch_copies, threads)
                times = _race(runners, warm=where == "cache")
                if format == "2bit":
                    times |= _ggml(rows, cols, x[None], len(used), threads, warm=where == "cache")
                operations = 2.0 * rows * cols / limits["unpack_gop_s"] / 1e3
                read, _ = _summary(times.pop("reading"))
                floor = max(first.nbytes / best["gb_s"] / 1e3, operations)
                row = _row("matvec", first, 1, threads, where, times, floor)
                row |= {"reading_us": read, "ratio_reading": round(row["us"] / max(read, operations), 3)}
                out.append(row)
    return out


def _of_memory(limits: Any) -> Any:
    return {
        "gb_s": limits["memory_gb_s"],
        "streams": limits["memory_streams"],
        "ahead": limits["memory_ahead"],
    }


def _matmul(threads: int, limits: Any, torch: bool) -> list[Row]:
    """Many tokens; the floor is the multiply-add peak alone."""
    out = []
    rng = np.random.default_rng(1)
    for rows, cols in MATMUL_SHAPES:
        for group_size in (64, 0):
            codes, scales = _arrays(rows, cols, group_size)
            matrix = _core.PackedMatrix(codes, scales, group_size, (rows, cols))
            for n in TOKENS:
                x = rng.standard_normal((n, cols)).astype(np.float32)

                def ours(i: int, matrix: Any = matrix, x: np.ndarray = x) -> object:
                    return matrix.matmul(x, threads)

                runners: Runners = {"tritpress": ours}
                if torch and group_size == 64:
                    runners |= _torch_runners(rows, cols, n, 1, threads)

                def single(i: int, matrix: Any = matrix, x: np.ndarray = x) -> object:
                    return matrix.matvec(x[0], threads)

                # In the same race, so that whatever torch leaves in the caches slows both alike.
                times = _race(runners | {"single": single}, warm=True)
                times |= _ggml(rows, cols, x, 1, threads, warm=True)
                one, _ = _summary(times.pop("single"))
                operations = 2.0 * n * rows * cols / 1e3
                floor = operations / limits["multiply_gop_s"]
                row = _row("matmul", matrix, n, threads, "cache", times, floor)
                unit = limits.get("matrix_gop_s")
                row["ratio_matrix_unit"] = round(row["us"] / operations * unit, 3) if unit else None
                row["ratio_matvecs"] = round(one * n / row["us"], 2)
                out.append(row)
    return out


def _pack(threads: int, limits: Any) -> list[Row]:
    """Ternarizing, packing and unpacking 4096 x 4096 weights; gb_s is bytes of the input read."""
    rows = cols = 4096
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((rows, cols)) * 0.02).astype(np.float32)
    codes, scales = _core.ternarize(w, threads=threads)
    trits = _core.unpack(codes[0], cols)
    out = []

    def add(op: str, nbytes: int, call: Callable[[int], object], **extra: Any) -> None:
        us, spread = _summary(_race({op: call})[op])
        gb_s = nbytes / us / 1e3
        row: Row = {"op": op, "rows": rows, "cols": cols, "threads": threads, **extra, "us": us}
        row |= {"us_spread": spread, "gb_s": round(gb_s, 3), "gb_s_thread": round(gb_s / threads, 3)}
        out.append(row | {"weights_s": round(rows * cols / us * 1e6)})

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "weights.bin", Path(folder) / "packed.bin"
        bits = (w.view(np.uint32) >> 16).astype(np.uint16)
        source.write_bytes(bits.tobytes())
        target.write_bytes(b"")
        for fit, ceiling in (("absmean", None), ("exact", None), ("exact", 0.44)):

            def stream(i: int, fit: Any = fit, ceiling: float | None = ceiling) -> object:
                where: Any = (source, 0, "BF16", rows, cols, False, target, 0, codes.nbytes)
                return _core.ternarize_stream(*where, fit=fit, max_sparsity=ceiling, threads=threads)

            add("stream", bits.nbytes, stream, fit=fit, max_sparsity=ceiling, dtype="BF16")
    add("ternarize", w.nbytes, lambda i: _core.ternarize(w, threads=threads), fit="exact", dtype="F32")
    add("pack", trits.nbytes, lambda i: _core.pack(trits, threads=threads))
    add("unpack", codes.nbytes, lambda i: _core.unpack(codes, cols, threads=threads))
    add("dequantize", codes.nbytes, lambda i: _core.dequantize(codes, scales, cols, 64, threads=threads))
    shape = (rows, cols)
    add("repack", codes.nbytes, lambda i: _core.PackedMatrix(codes, scales, 64, shape, threads=threads))
    return out


def _generate(threads: int, limits: Any) -> list[Row]:
    """Tokens a second of the built-in model, ternarized with one plane, beside the original in float32 (where
    torch is installed); then the package's own decoder on random packed models.
    """
    from tritpress.bench_generate import bench_generate

    try:
        import torch
        import transformers  # noqa: F401
    except ImportError:
        return bench_generate(threads)
    import tritpress as tp
    from tritpress.config import make_config
    from tritpress.formats.huggingface import load_tokenizer
    from tritpress.generate import generate_with
    from tritpress.loading import load
    from tritpress.reference import reference_model_path

    torch.set_num_threads(threads)
    path = reference_model_path()
    tokenizer = load_tokenizer(path)
    original, ternary = load(path), load(path)
    tp.ternarize_(ternary, make_config({"planes": 1}))
    tokens = 32
    models = {"tritpress": ternary, "torch_fp32": original}
    rates: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(5):
        for name, model in models.items():
            found = generate_with(model, tokenizer, "def main():\n", tokens)
            rates[name].append(float(found["tokens_per_s"]))
    row: Row = {
        "op": "generate",
        "model": "reference",
        "threads": threads,
        "tokens": tokens,
        "isa": _core.isa(),
    }
    for name, values in rates.items():
        row[f"{name}_tokens_s"] = round(float(np.median(values)), 2)
    row["ratio_torch"] = round(row["tritpress_tokens_s"] / row["torch_fp32_tokens_s"], 2)
    return [row, *bench_generate(threads)]
