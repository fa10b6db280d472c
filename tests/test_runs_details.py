"""Details of pressed tensors against plain loops, and where the pipeline records them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tritpress as tp
from tritpress.formats.details import details_path
from tritpress.formats.source import open_source, read_tensor
from tritpress.formats.targets import find_targets
from tritpress.runs.details import load_details, save_details, stamp
from tritpress.ternarize.details import SAMPLED_WEIGHTS, THRESHOLDS, TensorDetails, measure, sample_rows


def naive_curve(w: np.ndarray, width: int, t: float) -> tuple[float, float]:
    """Share of zeros and relative error of fitting one plane group by group at relative threshold t."""
    zeros = 0
    error = 0.0
    for row in w.astype(np.float64):
        for start in range(0, len(row), width):
            group = row[start : start + width]
            kept = np.abs(group) > t * np.abs(group).mean()
            scale = np.abs(group[kept]).mean() if kept.any() else 0.0
            error += float(((group - np.sign(group) * kept * scale) ** 2).sum())
            zeros += int((~kept).sum())
    return zeros / w.size, error / float((w.astype(np.float64) ** 2).sum())


def pressed(rows: int, cols: int, planes: int, width: int, seed: int = 0) -> tuple:
    w = np.random.default_rng(seed).standard_t(5, (rows, cols)).astype(np.float32)
    w[0, :3] = 0
    t = tp.ternarize(w, planes=planes, group_size=width)
    value = tp.PackedMatrix(t.codes, t.scales, group_size=width, shape=w.shape, format="2bit").dequantize()
    return w, t, value


@pytest.mark.parametrize(
    ("rows", "cols", "planes", "width"), [(9, 256, 1, 64), (70, 150, 2, 64), (3, 90, 3, 0), (130, 32, 2, 32)]
)
def test_curves_and_figures_are_those_of_a_plain_loop(rows: int, cols: int, planes: int, width: int) -> None:
    w, t, value = pressed(rows, cols, planes, width)
    found = measure(w, t.codes, t.scales, width)
    for k in (0, 1, 10, 24, 33, 64, 96):
        zeros, error = naive_curve(w, width or cols, float(THRESHOLDS[k]))
        assert found.zeros_at[k] == pytest.approx(zeros, abs=1e-12), k
        assert found.error_at[k] == pytest.approx(error, rel=1e-6), k
    assert np.all(np.diff(found.zeros_at) >= 0)
    d = value.astype(np.float64)
    s = w.astype(np.float64)
    assert found.relative_error == pytest.approx(((s - d) ** 2).sum() / (s**2).sum(), rel=1e-5)
    assert found.cosine == pytest.approx((s * d).sum() / np.sqrt((s**2).sum() * (d**2).sum()), rel=1e-5)
    assert found.sign_flips == pytest.approx(((s * d) < 0).sum() / (s != 0).sum())
    assert found.zeros_in_value == pytest.approx((d == 0).mean())
    trits = np.stack([(t.codes >> (2 * i)) & 3 for i in range(4)], axis=-1).reshape(planes, rows, -1)
    trits = trits[..., :cols].astype(int) - 1
    np.testing.assert_allclose(found.zeros_by_plane, (trits == 0).mean((1, 2)), atol=1e-12)
    used = []
    for row in range(rows):
        for start in range(0, cols, width or cols):
            part = slice(start, start + (width or cols))
            zero = np.abs(w[row, part])[trits[0, row, part] == 0]
            if len(zero):
                used.append(zero.max() / np.abs(w[row, part]).mean())
    assert found.threshold_used == pytest.approx(np.median(used), rel=1e-5)
    assert (found.rows, found.sampled_rows, found.planes) == (rows, rows, planes)


@pytest.mark.parametrize("planes", [1, 2, 3])
def test_curves_of_all_planes_are_those_of_fitting_anew(planes: int) -> None:
    w, t, _ = pressed(64, 128, planes, 64)
    found = measure(w, t.codes, t.scales, 64, planned={"max_sparsity": None})
    assert found.planned_error == pytest.approx(found.relative_error, rel=1e-5)
    assert found.planned_zeros == pytest.approx(found.zeros_by_plane.mean())
    for k in (2, 20, 24, 56, 72):
        again = tp.ternarize(w, planes=planes, threshold=float(THRESHOLDS[k]))
        made = measure(w, again.codes, again.scales, 64)
        assert found.all_error_at[k] == pytest.approx(made.relative_error, rel=2e-3), k
        assert found.all_zeros_at[k] == pytest.approx(made.zeros_by_plane.mean(), abs=2e-4), k
    if planes == 1:
        assert found.shares is None and found.error_at_share is None
        return
    assert found.shares is not None and found.error_at_share is not None
    for share, error in zip(found.shares, found.error_at_share):
        again = tp.ternarize(w, planes=planes, sparsity=float(share))
        made = measure(w, again.codes, again.scales, 64)
        assert made.zeros_by_plane.mean() == pytest.approx(share, abs=1e-3)
        assert error == pytest.approx(made.relative_error, rel=2e-3), share


def test_details_of_an_older_run_are_read_without_what_came_later(tmp_path: Path) -> None:
    w, t, _ = pressed(64, 128, 2, 64)
    found = measure(w, t.codes, t.scales, 64, planned={"threshold": 0.7})
    save_details(tmp_path, "a", found)
    read = load_details(tmp_path, "a")
    assert read is not None and read.planned_threshold == 0.7
    np.testing.assert_array_equal(read.error_at_share, found.error_at_share)
    later = {"planned_threshold": None, "shares": None, "error_at_share": None}
    save_details(tmp_path, "a", dataclasses.replace(found, **later))
    read = load_details(tmp_path, "a")
    assert read is not None and (read.planned_threshold, read.shares, read.error_at_share) == (None,) * 3


def test_histograms_and_blocks_are_those_of_a_plain_loop() -> None:
    w, t, value = pressed(130, 200, 2, 64)
    found = measure(w, t.codes, t.scales, 64)
    mean = np.concatenate(
        [
            np.repeat(np.abs(w[:, s : s + 64]).mean(1, keepdims=True), min(64, 200 - s), axis=1)
            for s in range(0, 200, 64)
        ],
        axis=1,
    )
    for name, values in (("before", w), ("after", value)):
        counted = np.histogram(np.clip(values / mean, -3.999, 3.999), found.histogram_edges)[0]
        made = getattr(found, f"histogram_{name}")
        assert made.sum() == w.size
        assert np.abs(made - counted).sum() <= 4, "rounding at an edge may move a weight by a bin"
    assert found.scale_histogram.sum() == t.scales.size
    for plane in range(2):
        scales = t.scales[plane].astype(np.float64)
        assert found.scales[plane] == pytest.approx([scales.min(), np.median(scales), scales.max()])
    assert found.block_before.shape == (64, 64) and found.block_before.dtype == np.float32
    for i, j in ((0, 0), (17, 63), (63, 5)):
        rows = slice(i * 130 // 64, (i + 1) * 130 // 64)
        cols = slice(j * 200 // 64, (j + 1) * 200 // 64)
        assert found.block_before[i, j] == pytest.approx(w[rows, cols].mean(), abs=1e-6)
        assert found.block_after[i, j] == pytest.approx(value[rows, cols].mean(), abs=1e-6)
        rms = np.sqrt(((w - value)[rows, cols] ** 2).mean())
        assert found.block_error[i, j] == pytest.approx(rms, rel=1e-5)


def test_a_tensor_of_zeros_and_one_of_one_weight() -> None:
    zero = np.zeros((4, 64), np.float32)
    t = tp.ternarize(zero)
    found = measure(zero, t.codes, t.scales, 64)
    assert found.relative_error == 0 and found.cosine == 1 and found.sign_flips == 0
    assert found.zeros_at[0] == 1 and np.isfinite(found.error_at).all()
    one = np.full((1, 1), 0.5, np.float32)
    t = tp.ternarize(one)
    found = measure(one, t.codes, t.scales, 64)
    assert found.block_before.shape == (1, 1) and found.threshold_used is None
    assert found.zeros_at[0] == 0 and found.error_at[0] == pytest.approx(0)


def test_the_sample_is_even_and_bounded() -> None:
    assert sample_rows(10, 64).tolist() == list(range(10))
    rows = sample_rows(100_000, 1024)
    assert len(rows) == SAMPLED_WEIGHTS // 1024 and len(set(np.diff(rows).tolist())) <= 2
    spacing = 100_000 // len(rows)
    assert 0 <= rows[0] < spacing and 100_000 - spacing < rows[-1] < 100_000
    assert len(sample_rows(4096, 4096)) == 64
    assert len(sample_rows(5, 4_000_000)) == 1


def test_files_are_whole_and_bad_ones_are_none(tmp_path: Path) -> None:
    w, t, _ = pressed(20, 64, 1, 64)
    found = measure(w, t.codes, t.scales, 64, rows=40)
    name = "model/layers..0.<b>.weight"
    assert load_details(tmp_path, name) is None and stamp(tmp_path, name) is None
    save_details(tmp_path, name, found)
    before = stamp(tmp_path, name)
    read = load_details(tmp_path, name)
    assert read is not None
    for field in dataclasses.fields(TensorDetails):
        np.testing.assert_array_equal(getattr(read, field.name), getattr(found, field.name))
    assert type(read.rows) is int and type(read.cosine) is float
    save_details(tmp_path, name, dataclasses.replace(found, threshold_used=None))
    again = load_details(tmp_path, name)
    assert again is not None and again.threshold_used is None and stamp(tmp_path, name) != before
    path = details_path(tmp_path, name)
    assert [p.name for p in path.parent.iterdir()] == [path.name] and path.parent == tmp_path / "details"
    path.write_bytes(path.read_bytes()[:200])
    assert load_details(tmp_path, name) is None
    np.savez(path, rows=np.array([{"a": 1}], dtype=object))
    assert load_details(tmp_path, name) is None


def run_fast(model: Path, folder: Path, **values: object) -> tuple[Path, list[dict]]:
    events: list[dict] = []
    config = tp.CompressionConfig(
        method="fast", evaluate=False, finetune=False, outputs="packed", planes=2, **values
    )
    report = tp.compress(model, folder / "out", config, on_event=events.append, runs_dir=folder / "runs")
    return folder / "runs" / report["run"], events


@pytest.mark.parametrize("kind", ["tiny_llama_dir", "tiny_gpt2_dir", "tiny_moe_dir"])
def test_the_fast_method_records_every_tensor(kind: str, request, tmp_path: Path) -> None:
    model = request.getfixturevalue(kind)
    run, events = run_fast(model, tmp_path)
    finished = {event["name"]: event for event in events if event["type"] == "layer.finished"}
    targets = {target.name: target for target in find_targets(open_source(model))}
    assert finished.keys() == targets.keys() and len(list((run / "details").iterdir())) == len(targets)
    state = json.loads((run / "snapshot.json").read_text())
    for name, event in finished.items():
        details = load_details(run, name)
        assert details is not None
        assert details.cosine == pytest.approx(event["cosine"], abs=1e-6)
        assert details.relative_error == pytest.approx(event["relative_error"], rel=1e-6)
        for key in ("sign_flips", "threshold_used"):
            assert event[key] == getattr(details, key) == state["layers"][name][key]
        target = targets[name]
        weight = read_tensor(target.entry)
        weight = (weight.T if target.transposed else weight).reshape(-1, target.cols)
        assert details.rows == len(weight)
        zeros, error = naive_curve(weight, 64, 0.75)
        assert details.zeros_at[24] == pytest.approx(zeros, abs=1e-9)
        assert details.error_at[24] == pytest.approx(error, rel=1e-5)


def test_tensors_with_one_scale_are_recorded(tiny_llama_dir: Path, tmp_path: Path) -> None:
    run, events = run_fast(tiny_llama_dir, tmp_path, fit="bitnet")
    names = [event["name"] for event in events if event["type"] == "layer.finished"]
    assert len(names) == len(find_targets(open_source(tiny_llama_dir)))
    details = load_details(run, names[0])
    assert details is not None and 0.0 < details.relative_error < 1.0


def test_stacked_experts_are_rows_of_one_tensor(tmp_path: Path) -> None:
    """Experts [experts, in, out] and [experts, out, in]: sampled rows are the source's own."""
    from tritpress.formats.source import TensorEntry
    from tritpress.formats.targets import Target
    from tritpress.steps.details import sampled_rows, source_rows

    stack = np.random.default_rng(1).standard_normal((7, 24, 40)).astype(np.float32)
    file = tmp_path / "raw"
    file.write_bytes(b"head" + stack.tobytes())
    entry = TensorEntry("e", file, "F32", stack.shape, 4, stack.nbytes)
    plain = Target("e", 0, "expert", 24, 40, (7,), False, entry)
    np.testing.assert_array_equal(source_rows(plain, sampled_rows(plain)), stack.reshape(-1, 40))
    turned = Target("e", 0, "expert", 40, 24, (7,), True, entry)
    rows = sampled_rows(turned)
    assert len(np.unique(rows // 40)) == 4
    whole = np.swapaxes(stack, -1, -2).reshape(-1, 24)
    np.testing.assert_array_equal(source_rows(turned, rows), whole[rows])


def test_fine_tuned_tensors_are_recorded_anew_and_a_resumed_run_keeps_them(
    tiny_llama_dir: Path, text_dir: Path, tmp_path: Path
) -> None:
    from tritpress.events.context import NullContext
    from tritpress.pipeline import run as pipeline
    from tritpress.runs.directory import RunDirectory

    before: dict[str, object] = {}
    events: list[dict] = []

    def hear(event: dict) -> None:
        events.append(event)
        if event["type"] == "step.finished" and event["step"] == 4:
            run = next((tmp_path / "runs").iterdir())
            names = [e["name"] for e in events if e["type"] == "layer.finished"]
            before.update({name: stamp(run, name) for name in names})

    config = tp.CompressionConfig(
        planes=1, text=[str(text_dir)], tokens=1024, finetune=True, calibration_tokens=1024,
        evaluation_tokens=1024, window=128, outputs="packed",
    )  # fmt: skip
    report = tp.compress(tiny_llama_dir, tmp_path / "out", config, on_event=hear, runs_dir=tmp_path / "runs")
    run = RunDirectory(tmp_path / "runs" / report["run"])
    after = {name: load_details(run.path, name) for name in before}
    last = {event["name"]: event for event in events if event["type"] == "layer.finished"}
    assert len(before) == len(last)
    for name, details in after.items():
        assert last[name]["fine_tuned"] and details is not None
        assert details.cosine == pytest.approx(last[name]["cosine"], abs=1e-9)
        assert last[name]["sign_flips"] == details.sign_flips
    assert all(stamp(run.path, name) != earlier for name, earlier in before.items())
    # a run that is taken up after step 4 records again what is missing, and keeps what is there
    for number in (4, 5, 6):
        (run.work / f"step{number}.json").unlink()
    gone, kept = sorted(before)[:2]
    details_path(run.path, gone).unlink()
    at = stamp(run.path, kept)
    stamps: dict[str, object] = {}

    class Context(NullContext):
        def emit(self, type: str, /, **fields: object) -> None:
            if type == "step.finished" and fields["step"] == 4:
                stamps.update({name: stamp(run.path, name) for name in (gone, kept)})
                raise InterruptedError

    with pytest.raises(InterruptedError):
        pipeline(run.config, run, Context())
    assert stamps[gone] is not None and stamps[kept] == at
