"""ggml's ternary product (TQ2_0) beside ours, out of the libraries that `llama-cpp-python` brings along.

Only functions of ggml's public C headers are called; where one of them is missing there is no column.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

F32, TQ2_0 = 0, 35
BLOCK = 256
"""Weights of a TQ2_0 block: 64 bytes of codes, four to a byte and 32 weights apart, and a float16 scale."""

BLOCK_BYTES = 66


class _Init(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class _Plan(ctypes.Structure):
    """ggml_cplan, and room for fields that later versions put behind these."""

    _fields_ = [
        ("work_size", ctypes.c_size_t),
        ("work_data", ctypes.c_void_p),
        ("threads", ctypes.c_int),
        ("pool", ctypes.c_void_p),
        ("abort", ctypes.c_void_p),
        ("abort_data", ctypes.c_void_p),
        ("later", ctypes.c_uint8 * 64),
    ]


class _Pool(ctypes.Structure):
    _fields_ = [("fields", ctypes.c_uint8 * 1024)]


class Ggml:
    """The functions that a product takes. Raises `OSError` or `AttributeError` where there are none."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            raise OSError("llama-cpp-python is not installed")
        folder = Path(spec.origin).parent / "lib"
        self._libraries = [
            ctypes.CDLL(str(folder / f"lib{name}.so"), ctypes.RTLD_GLOBAL)
            for name in ("ggml-base", "ggml-cpu")
        ]
        pointer, number, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
        self.init = self._function("ggml_init", pointer, _Init)
        self.free = self._function("ggml_free", None, pointer)
        self.new_2d = self._function("ggml_new_tensor_2d", pointer, pointer, number, long, long)
        self.mul_mat = self._function("ggml_mul_mat", pointer, pointer, pointer, pointer)
        self.data = self._function("ggml_get_data", pointer, pointer)
        self.new_graph = self._function("ggml_new_graph", pointer, pointer)
        self.build = self._function("ggml_build_forward_expand", None, pointer, pointer)
        self.plan = self._function("ggml_graph_plan", _Plan, pointer, number, pointer)
        self.compute = self._function("ggml_graph_compute", number, pointer, ctypes.POINTER(_Plan))
        self.pool_defaults = self._function("ggml_threadpool_params_default", _Pool, number)
        self.new_pool = self._function("ggml_threadpool_new", pointer, ctypes.POINTER(_Pool))
        self.free_pool = self._function("ggml_threadpool_free", None, pointer)

    def _function(self, name: str, gives: Any, *takes: Any) -> Any:
        for library in self._libraries:
            try:
                function = getattr(library, name)
            except AttributeError:
                continue
            function.restype, function.argtypes = gives, list(takes)
            return function
        raise AttributeError(f"ggml has no {name}")


def ternary_blocks(trits: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """int8 {-1, 0, 1} [rows, cols], cols a multiple of 256, as TQ2_0 bytes uint8 [rows, cols / 256 * 66]."""
    rows, cols = trits.shape
    codes = (trits + 1).astype(np.uint8).reshape(rows, cols // BLOCK, 2, 4, 32)
    packed = codes[..., 0, :] | codes[..., 1, :] << 2 | codes[..., 2, :] << 4 | codes[..., 3, :] << 6
    blocks = np.empty((rows, cols // BLOCK, BLOCK_BYTES), dtype=np.uint8)
    blocks[..., :64] = packed.reshape(rows, cols // BLOCK, 64)
    blocks[..., 64:] = np.array([scale], dtype=np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


@contextmanager
def products(
    shape: tuple[int, int], x: np.ndarray, copies: int, threads: int, trits: np.ndarray | None = None
) -> Iterator[Callable[[int], np.ndarray] | None]:
    """A function i -> x [n, cols] times the i-th of `copies` of a ternary matrix [rows, cols] (random where
    no `trits` are given), float32 [n, rows] that its next call overwrites; None where ggml is not to be had
    or the columns are no whole blocks.
    """
    rows, cols = shape
    try:
        ggml = Ggml()
    except (OSError, AttributeError):
        yield None
        return
    if cols % BLOCK:
        yield None
        return
    n = x.shape[0]
    if trits is None:
        trits = np.random.default_rng(0).integers(-1, 2, shape, dtype=np.int8)
    blocks = ternary_blocks(trits)
    room = copies * (blocks.nbytes + 4 * n * (rows + cols) + (1 << 20)) + (64 << 20)
    context = ggml.init(_Init(room, None, False))
    settings = ggml.pool_defaults(threads)
    pool = ggml.new_pool(ctypes.byref(settings))
    try:
        ready = [_one(ggml, context, pool, blocks, shape, x, threads) for _ in range(copies)]

        def run(i: int) -> np.ndarray:
            graph, plan, out, _ = ready[i % copies]
            if ggml.compute(graph, ctypes.byref(plan)) != 0:
                raise RuntimeError("ggml could not compute the product")
            return out

        yield run
    finally:
        ggml.free_pool(pool)
        ggml.free(context)


def _one(
    ggml: Ggml,
    context: int,
    pool: int,
    blocks: np.ndarray,
    shape: tuple[int, int],
    x: np.ndarray,
    threads: int,
) -> tuple[int, _Plan, np.ndarray, Any]:
    """(graph, plan, its result, what must live as long) of one copy."""
    rows, cols = shape
    weight = ggml.new_2d(context, TQ2_0, cols, rows)
    inputs = ggml.new_2d(context, F32, cols, len(x))
    _array_at(ggml.data(weight), np.uint8, blocks.shape)[:] = blocks
    _array_at(ggml.data(inputs), np.float32, x.shape)[:] = x
    product = ggml.mul_mat(context, weight, inputs)
    graph = ggml.new_graph(context)
    ggml.build(graph, product)
    plan = ggml.plan(graph, threads, pool)
    work = np.empty(max(plan.work_size, 1), dtype=np.uint8)
    plan.work_data = work.ctypes.data
    return graph, plan, _array_at(ggml.data(product), np.float32, (len(x), rows)), work


def _array_at(address: int, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = (ctypes.c_uint8 * size).from_address(address)
    return np.frombuffer(buffer, dtype=dtype).reshape(shape)
