"""The Rust core. Arrays are numpy's; those not C-contiguous are copied first. The GIL is released."""

from os import PathLike
from typing import Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

Fit = Literal["exact", "twn", "absmean"]

__version__: str

class CoreError(ValueError):
    """An argument, array or file that cannot be used; the message says which and what would be right."""

class Statistics(TypedDict):
    """Sums over a tensor; d is the dequantized weight. A histogram counts w / mean|w| of the group in 128
    bins over [-4, 4); what lies outside is in the end bins.
    """

    weights: int
    zeros_per_plane: list[int]
    zeros_all_planes: int
    sum_w2: float
    sum_d2: float
    sum_wd: float
    sum_err2: float
    histogram_before: list[int]
    histogram_after: list[int]

class StreamStatistics(Statistics):
    seconds: float

def isa() -> str:
    """The path of the matrix products in this process; `TRITPRESS_ISA` forces one (CoreError if not)."""

def isa_for(n: int) -> str:
    """The path that n tokens at once take in this process: `avx512gfni` for fewer than five where `isa()` is
    `amx`. A matrix of five codes a byte may take another, see `PackedMatrix.isa_for`. CoreError for n < 0.
    """

def available_isas() -> list[str]:
    """All paths that this machine can run, best first."""

def default_threads() -> int:
    """Threads of a call that does not say: `TRITPRESS_NUM_THREADS`, else what the system offers."""

class Limits(TypedDict):
    memory_gb_s: float
    memory_streams: int
    memory_ahead: int
    cache_gb_s: float
    unpack_gop_s: float
    multiply_gop_s: float
    matrix_gop_s: NotRequired[float]
    streams: int
    ahead: int

def machine_limits(threads: int | None = None) -> Limits:
    """What this machine reaches at most with that many threads, measured for a second: reads from memory
    and from the last-level cache (half of it, at most 16 MB; 10^9 bytes a second), unpacking and multiplying
    as a matvec does, and multiplying alone (10^9 operations a second, by the path `isa()`), the latter with
    its matrix unit too if it has one (matrix_gop_s); memory_streams and memory_ahead, how memory was read
    fastest (places in turn, bytes asked for ahead); and how large matrices are read for one token: tiles side
    by side and bytes asked for ahead.

    Unpacking and multiplying is timed on registers for the AVX-512 paths, AVX-VNNI and AVX2. For NEON and
    generic it is the kernel itself with one scale a row on one tile in the first-level cache, so that ratios
    to it show what memory, groups and threads add, not how good the inner step is.
    """

class Read(TypedDict):
    gb_s: float
    streams: int
    ahead: int

def read_again(nbytes: int, threads: int | None = None) -> Read:
    """When so many bytes are read again and again, in the best of several ways: 10^9 bytes a second, which is
    what the cache that they fit in gives, and the way (places in turn, bytes asked for ahead).
    """

def read_once(matrix: PackedMatrix, streams: int, ahead: int, threads: int | None = None) -> None:
    """Read a matrix's bytes once, each thread its part, `streams` places of it in turn and `ahead` bytes
    asked for ahead: the least that a product can take.
    """

def attend(
    q: NDArray[np.float32],
    keys: NDArray[np.float32] | NDArray[np.float16],
    values: NDArray[np.float32] | NDArray[np.float16],
    start: int,
    stop: int,
    *,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """One token's attention: q [kv_heads, group, head_size], scaled already, over the positions start..stop
    of keys [blocks, kv_heads, head_size, 64] and values [blocks, kv_heads, 64, head_size], both float32 or
    both float16 -> float32 of q's shape. The same for any number of threads.
    """

def ternarize(
    w: NDArray[np.float32] | NDArray[np.float16],
    *,
    fit: Fit = "exact",
    group_size: int = 64,
    planes: int = 1,
    threshold: float | None = None,
    sparsity: float | None = None,
    max_sparsity: float | None = None,
    importance: NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """w [out, in] -> codes [planes, out, ceil(in / 4)], scales [planes, out, groups].
    See `tritpress.ternarize.ternarize` for the options.
    """

def pack(trits: NDArray[np.int8], *, threads: int | None = None) -> NDArray[np.uint8]:
    """Values -1, 0, 1 of shape [..., in] -> codes [..., ceil(in / 4)]."""

def unpack(codes: NDArray[np.uint8], cols: int, *, threads: int | None = None) -> NDArray[np.int8]:
    """Codes [..., ceil(cols / 4)] -> int8 [..., cols]. Code 3 and padding other than 1 are refused."""

def sparsity_mask(codes: NDArray[np.uint8], cols: int, *, threads: int | None = None) -> NDArray[np.bool_]:
    """Codes [..., ceil(cols / 4)] -> bool [..., cols]: True where the code is zero (T = 0)."""

def dequantize(
    codes: NDArray[np.uint8],
    scales: NDArray[np.float16],
    cols: int,
    group_size: int,
    *,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Codes [planes, out, ceil(cols / 4)] and scales [planes, out, groups] -> float32 [out, cols]: the sum of
    planes in their order, not rounded to float16.
    """

def layer_statistics(
    w: NDArray[np.float32] | NDArray[np.float16],
    codes: NDArray[np.uint8],
    scales: NDArray[np.float16],
    group_size: int,
    *,
    threads: int | None = None,
) -> Statistics:
    """What codes and scales cost the weights w [out, in]; the figures do not depend on `threads`."""

def latent_codes(
    latent: NDArray[np.float32],
    borders: NDArray[np.float32],
    steps: NDArray[np.int8],
    group_size: int,
    out: NDArray[np.int8],
    *,
    threads: int | None = None,
) -> int:
    """Codes of latents [rows, cols] into `out` [planes, rows, cols]; returns how many are zero.

    A latent's code is the sum of the steps [rows, groups, K, planes] of those of its group's borders
    [rows, groups, K] that |latent| lies above, with the latent's sign.
    """

def latent_largest(
    latent: NDArray[np.float32],
    borders: NDArray[np.float32],
    nonzero: int,
    group_size: int,
    out: NDArray[np.int8],
    *,
    threads: int | None = None,
) -> None:
    """One plane of codes into `out` [1, rows, cols], nonzero for the `nonzero` latents that are largest
    against their group's border [rows, groups, 1] (ties included; between 0.001 and 1.999 times it).
    """

def decode_trits(
    trits: NDArray[np.int8],
    scales: NDArray[np.float32],
    group_size: int,
    out: NDArray[np.float32],
    *,
    threads: int | None = None,
) -> None:
    """The sum over planes, in order, of scales [planes, rows, groups] times trits [planes, rows, cols], into
    `out` [rows, cols].
    """

def group_sums(
    gradient: NDArray[np.float32],
    trits: NDArray[np.int8],
    group_size: int,
    out: NDArray[np.float32],
    *,
    threads: int | None = None,
) -> None:
    """Sums over each group of gradient [rows, cols] times trits [planes, rows, cols], into `out` [planes,
    rows, groups].
    """

def sweep_group(
    values: NDArray[np.float32],
    table: NDArray[np.float32],
    zeros: NDArray[np.float32],
    price: float | None,
    factor: NDArray[np.float32],
    out: NDArray[np.int64],
    *,
    threads: int | None = None,
) -> None:
    """Code weights [R, G] column by column by the nearest of the points [R, K], with `price` on each of a
    point's `zeros` [K]; errors are passed on by the upper factor [G, G]. `values` become the errors over the
    pivots, `out` [R, G] the points taken.
    """

def descend_group(
    values: NDArray[np.float32],
    gradient: NDArray[np.float32],
    table: NDArray[np.float32],
    zeros: NDArray[np.float32],
    price: float | None,
    hessian: NDArray[np.float32],
    out: NDArray[np.int64],
    *,
    threads: int | None = None,
) -> None:
    """One pass of coordinate descent over the codes of a group: `values` [R, G] is what they stand for,
    before and after, gradient [R, G] is (W - Q) H, hessian [G, G] the group's part of H.
    """

def zero_price(
    weights: NDArray[np.float32],
    importance: NDArray[np.float32],
    table: NDArray[np.float32],
    zeros: NDArray[np.float32],
    allowed: float,
    both_ways: bool,
    *,
    threads: int | None = None,
) -> float:
    """Price on one zero code at which weights [R, G], errors counting with importance [G], have about
    `allowed` zeros; not below 0 unless `both_ways`.
    """

def alternate_scales(
    weights: NDArray[np.float32],
    importance: NDArray[np.float32],
    scales: NDArray[np.float32],
    rounds: int,
    *,
    threads: int | None = None,
) -> None:
    """Improve scales [R, P] (1 to 3 planes, values of float16) in place for weights [R, G] with importance
    [G].

    `rounds` times: codes by the nearest of the 3^P sums of planes, scales by ridge least squares. Raises
    `CoreError` on arrays that do not fit and on a scale above 65504.
    """

def ternarize_stream(
    src_path: str | PathLike[str],
    offset: int,
    dtype: Literal["F32", "F16", "BF16"],
    rows: int,
    cols: int,
    transposed: bool,
    dst_path: str | PathLike[str],
    codes_offset: int,
    scales_offset: int,
    *,
    fit: Fit = "exact",
    group_size: int = 64,
    planes: int = 1,
    threshold: float | None = None,
    sparsity: float | None = None,
    max_sparsity: float | None = None,
    importance: NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> StreamStatistics:
    """Ternarize the tensor [rows, cols] (stored as [cols, rows] if `transposed`) at byte `offset` of a file
    and write its codes [planes, rows, ceil(cols / 4)] and scales [planes, rows, groups] at the given offsets
    of another, which must exist. Works in constant memory; the bytes equal those of `ternarize` on the whole
    array. Raises OSError when a file cannot be read or written.
    """

def safetensors_header(
    path: str | PathLike[str],
) -> tuple[dict[str, str], list[tuple[str, str, tuple[int, ...], int, int]]]:
    """Metadata and the tensors (name, dtype, shape, first byte, byte after the last) by place in the file.
    Refused: a header longer than the file, duplicate keys, unknown dtypes, shapes that disagree with their
    bytes, overlaps, gaps, data past the end.
    """

class PackedMatrix:
    """A ternary matrix [out, in] in memory, laid out for this machine's kernels.

    codes: uint8 [planes, out, ceil(in / 4)]; scales: float16 [planes, out, groups]; format: "2bit", or
    "1.6bit" (five codes a byte, less to read from memory and more to compute; files stay 2-bit).
    Products quantize activations to int8 per token: x_scale = max|x| / 127 in float32,
    q = round_half_even(x / x_scale) within +-127; sums inside a group are exact.
    The arrays given are read without a copy where they are C-contiguous (no other thread may write into them
    meanwhile), and not kept: codes and scales lie once in memory, woven into the kernels' tiles.
    `memoryview(matrix)` is a read-only view of those tiles without a copy (their layout: docs/kernels.md);
    `codes()` and `scales()` turn them back into new arrays.
    Raises CoreError for shapes that disagree, code 3, bad padding, scales negative, NaN or infinite, and for
    whole rows of more than 8,454,660 inputs; here and where an array is made MemoryError if no memory is
    left for it.
    """

    def __init__(
        self,
        codes: NDArray[np.uint8],
        scales: NDArray[np.float16],
        group_size: int,
        shape: tuple[int, int],
        format: Literal["2bit", "1.6bit"] = "2bit",
        *,
        threads: int | None = None,
    ) -> None: ...
    def matvec(self, x: NDArray[np.float32], threads: int | None = None) -> NDArray[np.float32]:
        """float32 [in] -> float32 [out]. CoreError for another shape or dtype, NaN or infinity."""

    def matmul(self, x: NDArray[np.float32], threads: int | None = None) -> NDArray[np.float32]:
        """float32 [n, in] -> float32 [n, out]; each row equals `matvec` of that row."""

    def dequantize(self, threads: int | None = None) -> NDArray[np.float32]:
        """float32 [out, in], the sum of the planes."""

    def codes(self, threads: int | None = None) -> NDArray[np.uint8]:
        """The codes as given: uint8 [planes, out, ceil(in / 4)], a new array made from the tiles."""

    def scales(self, threads: int | None = None) -> NDArray[np.float16]:
        """The scales as given: float16 [planes, out, groups], a new array made from the tiles."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def nbytes(self) -> int:
        """Bytes held for codes and scales, padding included."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def planes(self) -> int: ...
    @property
    def group_size(self) -> int: ...
    @property
    def format(self) -> str: ...
    @property
    def isa(self) -> str:
        """The path of the process; `isa_for` says which takes so many tokens."""

    def isa_for(self, n: int) -> str:
        """The path that n tokens at once take: `avx512gfni` for fewer than five where `isa` is `amx` (fewer
        than six with five codes a byte). CoreError for n < 0.
        """
