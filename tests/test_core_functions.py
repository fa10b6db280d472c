"""Ternarizing, packing, statistics and files against naive numpy code."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritpress import _core
from tritpress.ternarize import Ternary, ternarize

GROUP_SIZES = [0, 32, 64, 128, 256]
FITS = ["exact", "twn", "absmean"]


def naive_pack(trits: np.ndarray) -> np.ndarray:
    """Input c at bits 2(c mod 4) of byte c // 4, value T + 1, padding 1."""
    *lead, cols = trits.shape
    padded = np.zeros((*lead, -(-cols // 4) * 4), np.int8)
    padded[..., :cols] = trits
    four = (padded + 1).astype(np.uint8).reshape(*lead, -(-cols // 4), 4)
    return (four << np.array([0, 2, 4, 6], np.uint8)).sum(-1).astype(np.uint8)


def naive_dequantize(t: Ternary) -> np.ndarray:
    out, cols = t.shape
    width = t.group_size or max(cols, 1)
    total = np.zeros((out, cols), np.float32)
    for codes, scales in zip(t.codes, t.scales):
        four = (codes[:, :, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
        trits = four.reshape(out, codes.shape[1] * 4)[:, :cols].astype(np.float32) - 1
        total += trits * np.repeat(scales.astype(np.float32), width, axis=1)[:, :cols]
    return total


def naive_exact_group(w: np.ndarray, h: np.ndarray) -> float:
    """The least weighted squared error of one group with an unrounded scale."""
    order = np.argsort(-np.abs(w), kind="stable")
    size, weight = np.abs(w[order]).astype(np.float64), h[order].astype(np.float64)
    a, b = np.cumsum(weight * size), np.cumsum(weight)
    gain = np.divide(a * a, b, out=np.zeros_like(a), where=b > 0)
    return float((weight * size**2).sum() - (gain.max() if len(gain) else 0.0))


def normal(rows: int, cols: int, seed: int, scale: float) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, cols)) * scale).astype(np.float32)


matrices = st.builds(
    normal,
    st.integers(1, 6),
    st.integers(1, 300),
    st.integers(0, 2**32),
    st.sampled_from([1e-4, 0.02, 1.0, 1e3]),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 5), min_size=0, max_size=2), st.integers(1, 40), st.integers(0, 2**32))
def test_pack_and_unpack_equal_the_naive_layout(lead, cols, seed):
    trits = np.random.default_rng(seed).integers(-1, 2, (*lead, cols)).astype(np.int8)
    codes = _core.pack(trits)
    np.testing.assert_array_equal(codes, naive_pack(trits))
    np.testing.assert_array_equal(_core.unpack(codes, cols), trits)
    np.testing.assert_array_equal(_core.sparsity_mask(codes, cols), trits == 0)


@settings(deadline=None, max_examples=80)
@given(matrices, st.sampled_from(GROUP_SIZES), st.booleans())
def test_exact_fit_reaches_the_least_squares_optimum(w, group_size, weighted):
    rng = np.random.default_rng(1)
    h = rng.random(w.shape[1]).astype(np.float32) + 0.01 if weighted else np.ones(w.shape[1], np.float32)
    t = ternarize(w, group_size=group_size, importance=h if weighted else None)
    error = float((h * (w.astype(np.float64) - t.dequantize()) ** 2).sum())
    width = group_size or w.shape[1]
    starts = range(0, w.shape[1], width)
    best = sum(naive_exact_group(row[i : i + width], h[i : i + width]) for row in w for i in starts)
    energy = float((h * w.astype(np.float64) ** 2).sum())
    # Rounding the scale to fp16 (11 bits; fewer below 6e-5) is all that may be lost.
    assert best - 1e-9 * energy <= error <= best + (2e-3 if np.abs(w).max() < 1e-3 else 1e-6) * energy
    np.testing.assert_array_equal(t.dequantize(), naive_dequantize(t))


@settings(deadline=None, max_examples=60)
@given(matrices, st.sampled_from(GROUP_SIZES), st.sampled_from([0.1, 0.3, 0.44, 0.7]), st.booleans())
def test_zeros_stay_below_a_ceiling_and_meet_a_target(w, group_size, share, target):
    options = {"sparsity": share} if target else {"max_sparsity": share}
    t = ternarize(w, group_size=group_size, planes=2, **options)
    for plane, scales in zip(t.trits(), t.scales):
        # What is left of a group may be too small for fp16; then its scale and all its codes are 0.
        alive = np.repeat(scales > 0, group_size or w.shape[1], axis=1)[:, : w.shape[1]]
        zeros, dead = int(((plane == 0) & alive).sum()), int((~alive).sum())
        if target and w.size >= 200:
            assert abs((zeros + dead) / w.size - share) <= 0.005 + dead / w.size
        elif not target:
            assert zeros <= share * w.size


@settings(deadline=None, max_examples=40)
@given(matrices, st.sampled_from(GROUP_SIZES), st.sampled_from(FITS), st.integers(1, 3))
def test_each_plane_fits_the_residual_and_threads_do_not_matter(w, group_size, fit, planes):
    t = ternarize(w, fit=fit, group_size=group_size, planes=planes, threads=1)
    again = ternarize(w, fit=fit, group_size=group_size, planes=planes, threads=3)
    np.testing.assert_array_equal(t.codes, again.codes)
    np.testing.assert_array_equal(t.scales.view(np.uint16), again.scales.view(np.uint16))
    residual = w.copy()
    for plane in range(planes):
        alone = ternarize(residual, fit=fit, group_size=group_size)
        np.testing.assert_array_equal(alone.codes[0], t.codes[plane])
        np.testing.assert_array_equal(alone.scales[0], t.scales[plane])
        residual = residual - alone.dequantize()


@pytest.mark.parametrize("fit", ["twn", "absmean"])
def test_thresholds_are_relative_to_the_groups_mean(fit):
    w = np.random.default_rng(3).standard_normal((4, 100)).astype(np.float32)
    t = ternarize(w, fit=fit, group_size=32)
    for g in range(4):
        part = w[:, 32 * g : 32 * g + 32].astype(np.float64)
        mean = np.abs(part).mean(1, keepdims=True)
        if fit == "twn":
            kept = np.abs(part) > 0.7 * mean
            scale = (np.abs(part) * kept).sum(1) / kept.sum(1)
            expected = np.sign(part) * kept
        else:
            scale = mean[:, 0]
            expected = np.clip(np.round(part / scale.astype(np.float16).astype(np.float64)[:, None]), -1, 1)
        np.testing.assert_array_equal(t.scales[0, :, g], scale.astype(np.float16))
        np.testing.assert_array_equal(t.trits()[0, :, 32 * g : 32 * g + 32], expected)
    zeros = ternarize(w, threshold=1.0, group_size=0).trits()[0] == 0
    np.testing.assert_array_equal(zeros, np.abs(w) <= np.abs(w).astype(np.float64).mean(1, keepdims=True))


def test_a_target_costs_no_more_than_any_common_threshold():
    w = np.random.default_rng(5).standard_normal((32, 256)).astype(np.float32)
    w *= np.random.default_rng(6).lognormal(size=(32, 4)).repeat(64, axis=1).astype(np.float32)
    t = ternarize(w, sparsity=0.35)
    assert abs(t.sparsity - 0.35) < 1 / w.size
    ours = float(((w - t.dequantize()) ** 2).sum())
    relative = ternarize(w, fit="twn", sparsity=0.35)
    assert ours < float(((w - relative.dequantize()) ** 2).sum())


def test_half_precision_views_and_extremes():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((6, 70)).astype(np.float16)
    np.testing.assert_array_equal(ternarize(w).codes, ternarize(w.astype(np.float32)).codes)
    wide = rng.standard_normal((70, 12)).astype(np.float32)
    np.testing.assert_array_equal(ternarize(wide.T).codes, ternarize(np.ascontiguousarray(wide.T)).codes)
    np.testing.assert_array_equal(ternarize(wide[::2]).codes, ternarize(wide[::2].copy()).codes)
    assert (ternarize(np.zeros((3, 5), np.float32)).scales == 0).all()
    tiny = ternarize(np.full((1, 4), 1e-9, np.float32))
    assert tiny.scales[0, 0, 0] == 0 and tiny.sparsity == 1.0
    assert ternarize(np.full((1, 4), 65504, np.float32)).scales[0, 0, 0] == 65504
    assert ternarize(np.zeros((0, 5), np.float32)).codes.shape == (1, 0, 2)
    assert ternarize(np.zeros((5, 0), np.float32)).sparsity == 0.0


@pytest.mark.parametrize(
    ("w", "options", "words"),
    [
        (np.ones((1, 2)), {}, "w must be float32 or float16, not float64"),
        ([[1.0]], {}, "numpy array"),
        (np.ones(3, np.float32), {}, "two dimensions"),
        (np.array([[0, np.nan]], np.float32), {}, "row 0, column 1 is NaN"),
        (np.array([[0], [np.inf]], np.float32), {}, "row 1, column 0 is inf"),
        (np.array([[1e6]], np.float32), {}, "row 0, group 0 is beyond fp16"),
        (np.ones((1, 2), np.float32), {"group_size": 63}, "group_size must be"),
        (np.ones((1, 2), np.float32), {"planes": 0}, "planes must be"),
        (np.ones((1, 2), np.float32), {"planes": -1}, "planes must not be negative"),
        (np.ones((1, 2), np.float32), {"fit": "nearest"}, "fit must be 'exact', 'twn' or 'absmean'"),
        (np.ones((1, 2), np.float32), {"sparsity": 1.5}, "sparsity must be a share"),
        (np.ones((1, 2), np.float32), {"threshold": 0.5, "sparsity": 0.5}, "not both"),
        (np.ones((1, 2), np.float32), {"threads": 0}, "threads must be"),
        (np.ones((1, 2), np.float32), {"importance": np.ones(3, np.float32)}, "3 values for 2 columns"),
        (np.ones((1, 2), np.float32), {"importance": np.ones(2)}, "importance must be float32"),
        (np.ones((1, 2), np.float32), {"importance": np.array([1, -1], np.float32)}, "importance[1] is -1"),
    ],
)
def test_bad_input_is_refused_by_name(w, options, words):
    with pytest.raises(_core.CoreError) as error:
        ternarize(w, **options)
    assert words in str(error.value)


def test_bad_codes_are_refused():
    with pytest.raises(_core.CoreError, match="code 3 at row 1, column 2"):
        _core.unpack(np.array([[0x55], [0x75]], np.uint8), 4)
    with pytest.raises(_core.CoreError, match="padding"):
        _core.unpack(np.array([0x15], np.uint8), 3)
    with pytest.raises(_core.CoreError, match="-1, 0 or 1, not 2"):
        _core.pack(np.array([0, 2], np.int8))
    scales = np.array([[[-1.0]]], np.float16)
    with pytest.raises(_core.CoreError, match="scale -1 at row 0, group 0"):
        _core.dequantize(np.full((1, 1, 1), 0x55, np.uint8), scales, 4, 64)


@settings(deadline=None, max_examples=30)
@given(matrices, st.sampled_from(GROUP_SIZES), st.integers(1, 3))
def test_statistics_equal_plain_sums(w, group_size, planes):
    t = ternarize(w, group_size=group_size, planes=planes, max_sparsity=0.44)
    s = _core.layer_statistics(w, t.codes, t.scales, group_size)
    trits, d = t.trits(), naive_dequantize(t).astype(np.float64)
    assert s["weights"] == w.size
    assert s["zeros_per_plane"] == [int((plane == 0).sum()) for plane in trits]
    assert s["zeros_all_planes"] == int((trits == 0).all(0).sum())
    w64 = w.astype(np.float64)
    sums = {"sum_w2": w64**2, "sum_d2": d**2, "sum_wd": w64 * d, "sum_err2": (w64 - d) ** 2}
    for key, value in sums.items():
        # float32 inside a block of weights, float64 beyond it
        assert s[key] == pytest.approx(value.sum(), rel=2e-6, abs=1e-7 * (w64**2).sum() + 1e-30)
    width = group_size or w.shape[1]
    mean = np.concatenate(
        [
            np.abs(w64[:, i : i + width]).mean(1, keepdims=True).repeat(min(width, w.shape[1] - i), 1)
            for i in range(0, w.shape[1], width)
        ],
        axis=1,
    )
    for key, value in [("histogram_before", w64), ("histogram_after", d)]:
        place = (value / np.where(mean > 0, mean, np.inf) + 4) * 16
        below = np.cumsum(s[key])
        assert below[-1] == w.size
        for edge in range(1, 128):  # what lies on the edge of a bin may be in either
            least, most = ((place < edge + slack).sum() for slack in (-1e-4, 1e-4))
            assert least <= below[edge - 1] <= most


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("transposed", [False, True])
def test_streaming_writes_the_bytes_of_the_call_in_memory(tmp_path, dtype, transposed):
    rng = np.random.default_rng(2)
    rows, cols = 700, 900  # several bands
    w = (rng.standard_normal((rows, cols)) * 0.02).astype(np.float16 if dtype == "F16" else np.float32)
    if dtype == "BF16":
        bits = w.view(np.uint32) & 0xFFFF0000
        w = bits.view(np.float32)
        stored = (bits >> 16).astype(np.uint16)
    else:
        stored = w
    source, target = tmp_path / "in.bin", tmp_path / "out.bin"
    source.write_bytes(b"head" + (stored.T if transposed else stored).tobytes())
    target.write_bytes(b"")
    options = {"planes": 2, "max_sparsity": 0.44, "importance": rng.random(cols).astype(np.float32)}
    codes, scales = _core.ternarize(w, **options)
    statistics = _core.ternarize_stream(
        source, 4, dtype, rows, cols, transposed, target, 8, 8 + codes.nbytes, threads=2, **options
    )
    written = target.read_bytes()
    assert written[8 : 8 + codes.nbytes] == codes.tobytes()
    assert written[8 + codes.nbytes :] == scales.tobytes()
    expected = _core.layer_statistics(w, codes, scales, 64)
    assert {k: v for k, v in statistics.items() if k != "seconds"} == expected
    assert statistics["seconds"] > 0


def test_streaming_refuses_what_it_cannot_read(tmp_path):
    source, target = tmp_path / "in.bin", tmp_path / "out.bin"
    source.write_bytes(bytes(64))
    target.write_bytes(b"")
    with pytest.raises(_core.CoreError, match="past the end of the file"):
        _core.ternarize_stream(source, 0, "F32", 4, 5, False, target, 0, 8)
    with pytest.raises(_core.CoreError, match="dtype must be"):
        _core.ternarize_stream(source, 0, "I8", 4, 4, False, target, 0, 0)
    with pytest.raises(FileNotFoundError) as missing:
        _core.ternarize_stream(tmp_path / "absent", 0, "F32", 4, 4, False, target, 0, 0)
    assert str(missing.value) == f"[Errno 2] No such file or directory: '{tmp_path / 'absent'}'"
    for codes, scales, words in (
        (0, 3, "overlap"),
        (2**64 - 1, 0, "beyond any file"),
        (0, 2**64 - 2, "beyond any file"),
    ):
        with pytest.raises(_core.CoreError, match=words):
            _core.ternarize_stream(source, 0, "F32", 4, 4, False, target, codes, scales)
    with pytest.raises(_core.CoreError, match="cannot be source and target"):
        _core.ternarize_stream(source, 0, "F32", 4, 4, False, source, 0, 100)
    assert source.read_bytes() == bytes(64)
    source.write_bytes(np.array([0, np.nan], np.float32).tobytes())
    with pytest.raises(_core.CoreError, match="row 1, column 0 is NaN"):
        _core.ternarize_stream(source, 0, "F32", 2, 1, False, target, 0, 2)


def header_file(path, header: bytes | dict, data: bytes = b"", length: int | None = None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_headers_agree_with_the_safetensors_library(tmp_path):
    from safetensors.numpy import save_file

    tensors = {"b": np.ones((2, 3), np.float16), "a": np.zeros(4, np.float32), "é": np.zeros((0, 2), np.int8)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    metadata, entries = _core.safetensors_header(tmp_path / "x.safetensors")
    assert metadata == {"format": "pt"}
    assert {name: shape for name, _, shape, _, _ in entries} == {name: t.shape for name, t in tensors.items()}
    raw = (tmp_path / "x.safetensors").read_bytes()
    for name, _, _, begin, end in entries:
        assert raw[begin:end] == tensors[name].tobytes()


ONE = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}


@pytest.mark.parametrize(
    ("header", "data", "length", "words"),
    [
        (ONE, b"", None, "outside"),
        (ONE, bytes(5), None, "belong to no tensor"),
        (ONE, bytes(4), 2**62, "more than the 100000000 that the format allows"),
        (ONE, bytes(4), 90_000_000, "but the file has"),
        (ONE, bytes(4), 2**64 - 1, "claims"),
        (ONE, bytes(4), 3, "not valid"),
        (b"\xff\xfe", b"", None, "JSON object"),
        (b'{"a": {"dtype": "F32"}, "a": {}}', b"", None, "twice"),
        (b'{"a": {"dtype": "F32", "shape": [1], "shape": [2], "data_offsets": [0, 4]}}', b"", None, "twice"),
        ({"a": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}, bytes(4), None, "unknown dtype"),
        ({"a": {"dtype": "F32", "shape": [2**40] * 2, "data_offsets": [0, 4]}}, bytes(4), None, "overflow"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4), None, "takes 8"),
        (
            {
                "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
                "b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]},
            },
            bytes(6),
            None,
            "overlaps",
        ),
        ({"__metadata__": {"a": 1}}, b"", None, "not a string"),
        (b'{"a":' * 3000, b"", None, "not valid"),
    ],
)
def test_hostile_headers_are_refused(tmp_path, header, data, length, words):
    path = header_file(tmp_path / "evil.safetensors", header, data, length)
    with pytest.raises(_core.CoreError) as error:
        _core.safetensors_header(path)
    assert words in str(error.value) and "evil.safetensors" in str(error.value)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=64))
def test_arbitrary_bytes_never_crash_the_header_reader(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "x"
    path.write_bytes(data)
    try:
        _core.safetensors_header(path)
    except _core.CoreError:
        return
    assert data[:8] == struct.pack("<Q", len(data) - 8)
