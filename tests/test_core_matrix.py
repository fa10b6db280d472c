"""`PackedMatrix` against a naive integer oracle, on every path that this machine has."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritpress import _core
from tritpress._core import PackedMatrix

GROUP_SIZES = [0, 32, 64, 128, 256]


def random_matrix(rng, out, cols, planes, group_size):
    trits = rng.integers(-1, 2, (planes, out, cols)).astype(np.int8)
    groups = -(-cols // group_size) if group_size else 1
    scales = (rng.random((planes, out, groups)) * 3).astype(np.float16)
    return trits, scales


def oracle(trits, scales, group_size, x):
    """float64 [out]: exact integer sums inside groups, int8 activations as documented."""
    x_scale = np.float32(np.abs(x).max(initial=np.float32(0)) / np.float32(127))
    q = np.clip(np.round(x / (x_scale or 1)), -127, 127).astype(np.int64)
    width = group_size or max(x.shape[0], 1)
    starts = range(0, x.shape[0], width) if group_size else [0]
    sums = np.stack([trits[:, :, i : i + width].astype(np.int64) @ q[i : i + width] for i in starts], -1)
    terms = sums * scales.astype(np.float64) * np.float64(x_scale)
    return terms.sum((0, 2)), np.abs(terms).sum((0, 2))


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 70),
    st.integers(1, 300),
    st.integers(1, 3),
    st.sampled_from(GROUP_SIZES),
    st.integers(1, 4),
    st.integers(0, 2**32),
)
def test_products_equal_the_integer_oracle(out, cols, planes, group_size, threads, seed):
    rng = np.random.default_rng(seed)
    trits, scales = random_matrix(rng, out, cols, planes, group_size)
    matrix = PackedMatrix(_core.pack(trits), scales, group_size, (out, cols))
    x = rng.standard_normal((5, cols)).astype(np.float32)
    y = matrix.matmul(x, threads=threads)
    for i in range(5):
        exact, size = oracle(trits, scales, group_size, x[i])
        assert (np.abs(y[i] - exact) <= size * 2**-22 + 1e-30).all()
        np.testing.assert_array_equal(matrix.matvec(x[i], threads=threads), y[i])
    five = PackedMatrix(_core.pack(trits), scales, group_size, (out, cols), format="1.6bit")
    np.testing.assert_array_equal(five.matmul(x, threads=threads), y)
    np.testing.assert_array_equal(five.matvec(x[0], threads=threads), y[0])
    np.testing.assert_array_equal(five.codes(), _core.pack(trits))
    np.testing.assert_array_equal(matrix.codes(), _core.pack(trits))
    np.testing.assert_array_equal(matrix.scales(), scales)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_extremes_do_not_overflow(group_size):
    out, cols = 33, 4100
    groups = -(-cols // group_size) if group_size else 1
    codes = _core.pack(np.ones((1, out, cols), np.int8))
    matrix = PackedMatrix(codes, np.ones((1, out, groups), np.float16), group_size, (out, cols))
    for sign in (1, -1):
        x = np.full(cols, sign * 127, np.float32)
        np.testing.assert_array_equal(matrix.matvec(x), np.full(out, sign * 127 * cols, np.float32))
    assert not matrix.matvec(np.zeros(cols, np.float32)).any()


def test_dequantized_product_and_views():
    rng = np.random.default_rng(0)
    trits, scales = random_matrix(rng, 20, 130, 2, 64)
    matrix = PackedMatrix(_core.pack(trits), scales, 64, (20, 130))
    dense = (trits * np.repeat(scales.astype(np.float32), 64, axis=2)[:, :, :130]).sum(0, dtype=np.float32)
    np.testing.assert_array_equal(matrix.dequantize(), dense)
    x = rng.standard_normal((8, 260)).astype(np.float32)
    strided = x[::2, ::2]
    np.testing.assert_array_equal(matrix.matmul(strided), matrix.matmul(np.ascontiguousarray(strided)))
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32)[:130]
    np.testing.assert_array_equal(matrix.matvec(unaligned), matrix.matvec(unaligned.copy()))
    assert matrix.matmul(np.zeros((0, 130), np.float32)).shape == (0, 20)


def test_attributes_and_pickling():
    rng = np.random.default_rng(1)
    trits, scales = random_matrix(rng, 9, 50, 3, 32)
    matrix = PackedMatrix(_core.pack(trits), scales, group_size=32, shape=(9, 50), format="2bit")
    assert (matrix.shape, matrix.planes, matrix.group_size, matrix.format) == ((9, 50), 3, 32, "2bit")
    assert matrix.nbytes > 0 and matrix.isa == _core.isa() and "9 x 50" in repr(matrix)
    again = pickle.loads(pickle.dumps(matrix))
    x = rng.standard_normal(50).astype(np.float32)
    np.testing.assert_array_equal(matrix.matvec(x), again.matvec(x))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"codes": np.full((1, 2, 2), 0x55, np.int8)}, "codes must be uint8, not int8"),
        ({"codes": np.full((2, 2), 0x55, np.uint8)}, "codes must have shape [planes, out, 2]"),
        ({"codes": np.full((1, 2, 2), 0x57, np.uint8)}, "code 3 at row 0, column 0"),
        ({"scales": np.ones((1, 2, 2), np.float16)}, "scales must have shape [1, 2, 1]"),
        ({"scales": np.ones((1, 2, 1), np.float32)}, "scales must be float16, not float32"),
        ({"scales": np.array([[[1], [np.inf]]], np.float16)}, "scale inf at row 1"),
        ({"scales": np.array([[[np.nan], [1]]], np.float16)}, "scale NaN at row 0"),
        (
            {
                "codes": np.array([[[85, 85]] * 2, [[85, 87], [85, 85]]], np.uint8),
                "scales": np.ones((2, 2, 1), np.float16),
            },
            "code 3 at row 0 of plane 1, column 4",
        ),
        (
            {
                "codes": np.full((2, 2, 2), 0x55, np.uint8),
                "scales": np.array([[[1], [1]], [[1], [-1]]], np.float16),
            },
            "scale -1 at row 1 of plane 1, group 0",
        ),
        ({"shape": (3, 5)}, "codes have 2 rows, but shape says 3"),
        ({"group_size": 16}, "group_size must be"),
        ({"format": "3bit"}, "format must be"),
        ({"codes": np.zeros((0, 2, 2), np.uint8), "scales": np.ones((0, 2, 1), np.float16)}, "one plane"),
    ],
)
def test_bad_matrices_are_refused(change, words):
    arguments = {
        "codes": np.full((1, 2, 2), 0x55, np.uint8),
        "scales": np.ones((1, 2, 1), np.float16),
        "group_size": 64,
        "shape": (2, 5),
    }
    PackedMatrix(**arguments)
    with pytest.raises(_core.CoreError) as error:
        PackedMatrix(**(arguments | change))
    assert words in str(error.value)


def test_rows_too_long_for_exact_sums_are_refused():
    cols = (2**31 - 1) // 254
    for wide, fits in ((cols, True), (cols + 1, False)):
        codes = _core.pack(np.ones((1, 1, wide), np.int8))
        arguments = (codes, np.ones((1, 1, 1), np.float16))
        if fits:
            product = PackedMatrix(*arguments, 0, (1, wide)).matvec(np.ones(wide, np.float32))
            assert product == pytest.approx(wide, abs=4)
        else:
            with pytest.raises(_core.CoreError, match="too long for exact sums"):
                PackedMatrix(*arguments, 0, (1, wide))
            groups = -(-wide // 256)
            PackedMatrix(codes, np.ones((1, 1, groups), np.float16), 256, (1, wide))


def test_memory_that_is_not_there_is_a_memory_error():
    rows = 2**60
    empty = np.zeros((1, rows, 0), np.uint8), np.zeros((1, rows, 0), np.float16)
    matrix = PackedMatrix(*empty, 64, (rows, 0))
    for call in (
        lambda: matrix.matvec(np.zeros(0, np.float32)),
        lambda: matrix.matmul(np.zeros((99, 0), np.float32)),
    ):
        with pytest.raises(MemoryError, match="no memory for"):
            call()


def test_small_scales_count_where_a_thread_takes_subnormal_numbers_for_zero():
    """A setting of the processor that libraries change: the smallest scales are subnormal as float16."""
    torch = pytest.importorskip("torch")
    w = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32) * np.float32(3e-5)
    codes, scales = _core.ternarize(w)
    weights = _core.dequantize(codes, scales, 256, 64)
    assert scales.max() < 6.1e-5 and (weights != 0).mean() > 0.4
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such setting")
    try:
        for found, expected in zip(_core.ternarize(w, threads=1), (codes, scales), strict=True):
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(
            _core.dequantize(codes, scales, 256, 64, threads=1).view(np.uint32), weights.view(np.uint32)
        )
    finally:
        torch.set_flush_denormal(False)


def test_bad_activations_are_refused():
    matrix = PackedMatrix(np.full((1, 2, 2), 0x55, np.uint8), np.ones((1, 2, 1), np.float16), 64, (2, 5))
    for x, words in [
        (np.zeros(4, np.float32), "x must have shape [5]"),
        (np.zeros(5), "x must be float32"),
        (np.array([0, 0, np.nan, 0, 0], np.float32), "position 2 is NaN"),
    ]:
        with pytest.raises(_core.CoreError) as error:
            matrix.matvec(x)
        assert words in str(error.value)
    with pytest.raises(_core.CoreError, match="row 1 of x"):
        matrix.matmul(np.array([[0] * 5, [np.inf] * 5], np.float32))
    for isa_for in (matrix.isa_for, _core.isa_for):
        assert isa_for(0) == isa_for(1)
        with pytest.raises(_core.CoreError, match="n must not be negative"):
            isa_for(-1)
    with pytest.raises(_core.CoreError, match="threads"):
        matrix.matvec(np.zeros(5, np.float32), threads=-1)


CHILD = """
import sys, numpy as np
from tritpress import _core
rng = np.random.default_rng(7)
for group_size, form in ((0, "2bit"), (64, "2bit"), (0, "1.6bit"), (64, "1.6bit")):
    trits = rng.integers(-1, 2, (2, 50, 400)).astype(np.int8)
    scales = rng.random((2, 50, -(-400 // group_size) if group_size else 1)).astype(np.float16)
    matrix = _core.PackedMatrix(_core.pack(trits), scales, group_size, (50, 400), form)
    assert matrix.isa == _core.isa()
    for n in (1, 2, 3, 5, 9, 31, 65, 68, 70, 129):
        few = matrix.isa == "amx" and (n < 5 or (form == "1.6bit" and n < 6))
        assert matrix.isa_for(n) == ("avx512gfni" if few else matrix.isa)
        sys.stdout.buffer.write(matrix.matmul(rng.standard_normal((n, 400)).astype(np.float32)).tobytes())
for threads, options in enumerate(
    [{"fit": "absmean"}, {"planes": 2}, {"max_sparsity": 0.3}, {"fit": "twn", "group_size": 0}], 1
):
    w = rng.standard_normal((900, 610)).astype(np.float32)
    codes, scales = _core.ternarize(w, threads=threads, **options)
    sums = _core.layer_statistics(w, codes, scales, options.get("group_size", 64), threads=threads)
    sys.stdout.buffer.write(codes.tobytes() + scales.tobytes() + repr(sums).encode())
sys.stderr.write(_core.isa())
"""


def run_child(variables: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", CHILD], env=os.environ | variables, capture_output=True)


def test_every_path_gives_the_same_bytes_and_says_which_it_is():
    results = {}
    for isa in _core.available_isas():
        child = run_child({"TRITPRESS_ISA": isa})
        assert (child.returncode, child.stderr.decode()) == (0, isa)
        results[isa] = child.stdout
    for streams, ahead in ((1, 0), (2, 512), (4, 4096)):
        told = {"TRITPRESS_STREAMS": str(streams), "TRITPRESS_AHEAD": str(ahead)}
        results[str(told)] = run_child(told).stdout
    assert len(set(results.values())) == 1 and len(results["generic"]) > 4 * 383 * 50 * 4


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("TRITPRESS_ISA", "mmx", "TRITPRESS_ISA=mmx is unknown"),
        ("TRITPRESS_NUM_THREADS", "x", "not 'x'"),
        ("TRITPRESS_STREAMS", "3", "TRITPRESS_STREAMS must be 1, 2 or 4, not '3'"),
        ("TRITPRESS_AHEAD", "-64", "TRITPRESS_AHEAD must be a number of bytes up to 65536, not '-64'"),
    ],
)
def test_bad_environment_is_refused(variable, value, words):
    child = run_child({variable: value})
    assert child.returncode == 1 and words in child.stderr.decode()


def test_many_python_threads_at_once():
    rng = np.random.default_rng(2)
    trits, scales = random_matrix(rng, 200, 500, 1, 64)
    matrix = PackedMatrix(_core.pack(trits), scales, 64, (200, 500))
    inputs = rng.standard_normal((6, 500)).astype(np.float32)
    expected = [matrix.matvec(x, threads=1) for x in inputs]
    wrong = []

    def work(i):
        for _ in range(50):
            if not np.array_equal(matrix.matvec(inputs[i], threads=3), expected[i]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    assert not wrong


def test_the_buffer_is_the_tiles_without_a_copy():
    rng = np.random.default_rng(5)
    trits, scales = random_matrix(rng, 16, 64, 1, 64)
    matrix = PackedMatrix(_core.pack(trits), scales, 64, (16, 64))
    view = memoryview(matrix)
    assert view.readonly and view.nbytes == matrix.nbytes == 4 * 64 + 2 * 16
    tiles = np.frombuffer(matrix, np.uint8)
    assert not tiles.flags.writeable and tiles.ctypes.data == np.frombuffer(view, np.uint8).ctypes.data
    assert tiles.ctypes.data % 64 == 0
    # The layout that docs/kernels.md describes: byte b of lane r holds input 4 s + b of row r at bits 2 s.
    lanes = tiles[:256].reshape(4, 16, 4)
    codes = np.stack([(lanes >> (2 * s)) & 3 for s in range(4)], axis=2)  # [chunk, row, s, b]
    np.testing.assert_array_equal(codes.transpose(1, 0, 2, 3).reshape(16, 64).astype(np.int8) - 1, trits[0])
    np.testing.assert_array_equal(tiles[256:].view(np.float16), scales[0, :, 0])
    expected = tiles.copy()
    del matrix, view
    np.testing.assert_array_equal(tiles, expected)  # a view keeps its matrix alive


def test_idle_threads_use_no_processor():
    rng = np.random.default_rng(6)
    trits, scales = random_matrix(rng, 400, 1000, 1, 64)
    matrix = PackedMatrix(_core.pack(trits), scales, 64, (400, 1000))
    matrix.matvec(rng.standard_normal(1000).astype(np.float32), threads=4)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.05


@pytest.mark.parametrize("n", [7, 8, 27, 28, 41, 64, 65, 129, 130])
@pytest.mark.parametrize("group_size", [0, 32, 64, 256])
def test_every_number_of_tokens_equals_the_products_one_by_one(n, group_size):
    rng = np.random.default_rng(n)
    trits, scales = random_matrix(rng, 49, 333, 1 + n % 2, group_size)  # an odd number of tiles
    x = rng.standard_normal((n, 333)).astype(np.float32)
    for form in ("2bit", "1.6bit"):
        matrix = PackedMatrix(_core.pack(trits), scales, group_size, (49, 333), form)
        singles = np.stack([matrix.matvec(row) for row in x])
        np.testing.assert_array_equal(matrix.matmul(x, threads=2), singles)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_products_work_after_fork():
    rng = np.random.default_rng(3)
    trits, scales = random_matrix(rng, 600, 1000, 1, 64)
    matrix = PackedMatrix(_core.pack(trits), scales, 64, (600, 1000))
    x = rng.standard_normal(1000).astype(np.float32)
    expected = matrix.matvec(x, threads=2)  # the pool is running before the fork
    pid = os.fork()
    if pid == 0:
        os._exit(0 if np.array_equal(matrix.matvec(x, threads=2), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


FORKS_EARLY = """
import os, sys, threading, time
import numpy as np
from tritpress import PackedMatrix, _core
codes = np.full((1, 2048, 640), 0b10011000, np.uint8)
matrix = PackedMatrix(codes, np.ones((1, 2048, 40), np.float16), group_size=64, shape=(2048, 2560))
x = np.ones(2560, np.float32)
first = threading.Thread(target=matrix.matvec, args=(x,))
first.start()  # measures how this machine is best read
time.sleep(float(sys.argv[1]))
pid = os.fork()
if pid == 0:
    os._exit(0 if matrix.matvec(x).shape == (2048,) else 1)
first.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("delay", [0.0, 0.005, 0.02, 0.04])
def test_a_child_forked_while_the_machine_is_measured_does_not_wait(delay):
    done = subprocess.run([sys.executable, "-c", FORKS_EARLY, str(delay)], timeout=60)
    assert done.returncode == 0
