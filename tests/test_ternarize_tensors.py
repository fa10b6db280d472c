"""The two methods over whole models: calibrated block by block, and fast from the file."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tritpress.config import CompressionConfig
from tritpress.errors import InputError
from tritpress.events.context import NullContext
from tritpress.formats.huggingface import load_original, modules_of
from tritpress.formats.source import open_source, read_tensor
from tritpress.formats.store import TensorStore
from tritpress.formats.targets import find_targets
from tritpress.plan import make_plan
from tritpress.press.fast import fast_tensors
from tritpress.press.gptq import gptq_tensors
from tritpress.ternarize.calibration import calibrate, load_calibration, save_calibration

pytestmark = pytest.mark.usefixtures("one_thread")


def windows(count=12, width=32):
    return np.random.default_rng(0).integers(1, 2048, (count, width))


def press(folder, store, config, model=None, context=None, source=None):
    source = source or open_source(folder)
    targets = find_targets(source)
    plan = make_plan(source, targets, config)
    model = model or load_original(source)
    return [
        name
        for name, _ in gptq_tensors(
            model, source, targets, plan, windows(), config, store, context or NullContext()
        )
    ], model


def dequantized(store, name, cols, group_size=64):
    from tritpress.ops import reference

    codes, scales = store.get(name)
    return reference.dequantize(torch.from_numpy(codes), torch.from_numpy(scales), cols, group_size)


@pytest.mark.parametrize("family", ["tiny_llama_dir", "tiny_qwen3_dir", "tiny_gpt2_dir", "tiny_moe_dir"])
def test_every_target_is_pressed_and_the_model_carries_it(family, request, tmp_path):
    folder = request.getfixturevalue(family)
    store = TensorStore(tmp_path / "t")
    names, model = press(folder, store, CompressionConfig(planes=2))
    source = open_source(folder)
    targets = {t.name: t for t in find_targets(source)}
    assert sorted(names) == sorted(targets)
    modules = modules_of(model, names)
    for name, target in targets.items():
        codes, scales = store.get(name)
        assert codes.shape == (2, *target.experts, target.rows, -(-target.cols // 4))
        assert scales.dtype == np.float16
        info = store.info(name)
        assert 0 < info["sparsity"] <= 0.44 + 1e-9 and info["cosine"] > 0.8
        if name in modules:
            weight = modules[name][1].weight.detach()
            wanted = dequantized(store, name, target.cols)
            assert torch.equal(weight.T if target.transposed else weight, wanted)


def test_the_calibrated_model_is_nearer_to_the_original_than_the_fast_one(tiny_llama_dir, tmp_path):
    source = open_source(tiny_llama_dir)
    targets = find_targets(source)
    original = load_original(source)
    ids = torch.as_tensor(windows())
    with torch.no_grad():
        wanted = original(ids).logits
    config = CompressionConfig(planes=1)
    calibrated, fast = TensorStore(tmp_path / "c"), TensorStore(tmp_path / "f")
    _, model = press(tiny_llama_dir, calibrated, config, source=source)
    list(fast_tensors(targets, make_plan(source, targets, config), config, fast, NullContext()))
    other = copy.deepcopy(original)
    for target in targets:
        modules_of(other, [target.name])[target.name][1].weight.data.copy_(
            dequantized(fast, target.name, target.cols)
        )
    with torch.no_grad():
        near, far = ((m(ids).logits - wanted).norm() for m in (model, other))
    assert near < 0.75 * far


class StopAfter:
    """A context that stops the run at the n-th check."""

    def __init__(self, checks):
        self.left = checks

    def emit(self, type, /, **fields):
        pass

    def check(self):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("checks", [5, 14])
def test_a_resumed_run_gives_the_same_bytes(tiny_llama_dir, tmp_path, checks):
    config = CompressionConfig(planes=1)
    whole, torn = TensorStore(tmp_path / "whole"), TensorStore(tmp_path / "torn")
    names, _ = press(tiny_llama_dir, whole, config)
    with pytest.raises(KeyboardInterrupt):
        press(tiny_llama_dir, torn, config, context=StopAfter(checks))
    kept = {name: torn.path_for(name).stat().st_mtime_ns for name in torn.names()}
    assert len(kept) < len(names)
    press(tiny_llama_dir, torn, config)
    for name in names:
        assert torn.path_for(name).read_bytes() == whole.path_for(name).read_bytes()
    assert all(torn.path_for(name).stat().st_mtime_ns == at for name, at in kept.items())


def test_bad_weights_name_the_tensor(tiny_llama_dir, tmp_path):
    source = open_source(tiny_llama_dir)
    model = load_original(source)
    name = "model.layers.1.mlp.up_proj.weight"
    modules_of(model, [name])[name][1].weight.data[0, 0] = float("inf")
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight has weights that are not finite"):
        press(tiny_llama_dir, TensorStore(tmp_path), CompressionConfig(planes=1), model=model)


def test_what_the_store_has_is_not_pressed_again(tiny_moe_dir, tmp_path, monkeypatch):
    config, store = CompressionConfig(planes=1), TensorStore(tmp_path)
    source = open_source(tiny_moe_dir)
    targets = find_targets(source)
    plan = make_plan(source, targets, config)

    def pressed():
        given = load_original(source), source, targets, plan, windows(4), config, store, NullContext()
        return dict(gptq_tensors(*given))

    assert any(seconds > 0 for name, seconds in pressed().items() if "experts" in name)
    monkeypatch.setattr("tritpress.press.gptq.press_tensor", None)
    again = pressed()
    assert again.keys() == {target.name for target in targets} and set(again.values()) == {0.0}


@pytest.mark.parametrize("family", ["tiny_llama_dir", "tiny_gpt2_dir", "tiny_sharded_dir", "tiny_moe_dir"])
def test_fast_is_the_core_on_each_tensor(family, request, tmp_path):
    from tritpress import _core

    source = open_source(request.getfixturevalue(family))
    targets = find_targets(source)
    config = CompressionConfig(planes=2, sparsity=0.3)
    store = TensorStore(tmp_path)
    plan = make_plan(source, targets, config)
    made = dict(fast_tensors(targets, plan, config, store, NullContext()))
    assert list(made) == [t.name for t in targets]
    for target in targets:
        weight = read_tensor(target.entry)
        weight = np.ascontiguousarray(np.swapaxes(weight, -1, -2) if target.transposed else weight).reshape(
            -1, target.cols
        )
        codes, scales = _core.ternarize(weight, group_size=64, planes=2, sparsity=0.3)
        got = store.get(target.name)
        assert np.array_equal(got[0].reshape(codes.shape), codes)
        assert np.array_equal(got[1].reshape(scales.shape), scales)
        assert abs(store.info(target.name)["sparsity"] - 0.3) < 0.02
    assert set(dict(fast_tensors(targets, plan, config, store, NullContext())).values()) == {0.0}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fast_reads_stacked_experts_that_are_stored_turned(tmp_path, dtype):
    from dataclasses import replace

    from safetensors.numpy import save_file
    from tritpress import _core
    from tritpress.formats.header import read_header
    from tritpress.formats.source import TensorEntry
    from tritpress.formats.targets import Target
    from tritpress.plan import Plan, TensorPlan

    weight = np.random.default_rng(0).standard_normal((3, 40, 24)).astype(dtype)  # experts, in, out
    save_file({"x": weight}, tmp_path / "x.safetensors")
    ((_, kind, shape, begin, end),) = read_header(tmp_path / "x.safetensors")[1]
    entry = TensorEntry("x", tmp_path / "x.safetensors", kind, tuple(shape), begin, end - begin)
    target = Target("x", 0, "expert", 24, 40, (3,), True, entry)
    plan = Plan(tensors={"x": TensorPlan(name="x", rows=24, cols=40, experts=[3], transposed=True, planes=2)})
    store = TensorStore(tmp_path / "t")
    list(fast_tensors([target], plan, CompressionConfig(planes=2), store, NullContext()))
    codes, scales = store.get("x")
    assert codes.shape == (2, 3, 24, 10) and scales.shape == (2, 3, 24, 1)
    for e in range(3):
        wanted = _core.ternarize(np.ascontiguousarray(weight[e].T.astype("f4")), planes=2, group_size=64)
        assert np.array_equal(codes[:, e], wanted[0]) and np.array_equal(scales[:, e], wanted[1])
    with pytest.raises(InputError, match="x"):
        bad = replace(entry, offset=entry.offset + entry.nbytes)
        list(fast_tensors([replace(target, name="y", entry=bad)], Plan(tensors={"y": plan.tensors["x"]}),
                          CompressionConfig(), store, NullContext()))  # fmt: skip


def test_events_tell_all_weights_of_stacked_experts(monkeypatch):
    from types import SimpleNamespace

    from tritpress.formats.targets import Target
    from tritpress.plan import Plan, TensorPlan
    from tritpress.steps import prepare
    from tritpress.steps import press as step

    monkeypatch.setattr(prepare, "model_facts", lambda work: {})
    monkeypatch.setattr(step, "_plane_losses", lambda work: {})
    (told,) = prepare.model_found(None, [Target("x", 0, "expert", 24, 40, (3,), True, None)])["targets"]
    assert told == {"name": "x", "layer": 0, "kind": "expert", "rows": 24, "cols": 40, "weights": 2880}
    emitted = {}
    plan = Plan(tensors={"x": TensorPlan(name="x", rows=24, cols=40, experts=[3], planes=2)})
    context = SimpleNamespace(emit=lambda kind, **fields: emitted.update(fields))
    step._announce_plan(SimpleNamespace(plan=plan, method="fast", context=context))
    assert emitted["tensors"][0]["weights"] == 2880


def test_calibration_is_the_mean_of_squares_and_leaves_the_model_alone(tiny_gpt2_dir, tmp_path):
    model = load_original(open_source(tiny_gpt2_dir))
    names = [t.name for t in find_targets(open_source(tiny_gpt2_dir))]
    modules = {name: module for name, (_, module) in modules_of(model, names).items()}
    ids = windows(5, 16)
    seen, grads = [], []
    name = names[0]

    def look(module, args, out):
        seen.append(args[0].detach().flatten(0, -2))
        out.register_hook(lambda g: grads.append(g.flatten(0, -2)))

    handle = modules[name].register_forward_hook(look)
    logits = model(torch.as_tensor(ids)).logits
    torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), torch.as_tensor(ids[:, 1:]).flatten(), reduction="sum"
    ).backward()
    handle.remove()
    model.zero_grad(set_to_none=True)
    found = calibrate(model, modules, ids, NullContext(), CompressionConfig())
    assert set(found) == set(names)
    np.testing.assert_allclose(found[name]["input_moment"], seen[0].square().mean(0).numpy(), rtol=1e-4)
    np.testing.assert_allclose(
        found[name]["output_grad_moment"], grads[0].square().mean(0).numpy(), rtol=1e-3, atol=1e-12
    )
    losses = found[name]["plane_losses"]
    assert losses[0] > losses[1] > losses[2] > 0
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    save_calibration(found, tmp_path / "c.safetensors")
    again = load_calibration(tmp_path / "c.safetensors")
    assert set(again) == set(found)
    assert all(np.array_equal(again[n][k], found[n][k]) for n in found for k in found[n])
    assert load_calibration(tmp_path / "none.safetensors") is None
    repeated = calibrate(model, modules, ids, NullContext(), CompressionConfig())
    assert all(np.array_equal(repeated[n][k], found[n][k]) for n in found for k in found[n])
    with pytest.raises(InputError, match="at least one window"):
        calibrate(model, modules, ids[:0], NullContext())


@pytest.mark.parametrize("planes,group_size", [(1, 0), (2, 32)])
def test_bitnet_has_one_scale_a_tensor(planes, group_size):
    from tritpress.ternarize import ternarize

    w = np.random.default_rng(1).standard_normal((24, 80)).astype(np.float32)
    found = ternarize(w, fit="bitnet", planes=planes, group_size=group_size)
    left = w.astype(np.float64)
    for plane in range(planes):
        scale = np.float64(np.float16(np.abs(left).mean()))
        trits = np.clip(np.rint(left / scale), -1, 1)
        np.testing.assert_array_equal(found.trits()[plane], trits)
        assert (found.scales[plane] == np.float16(scale)).all()
        left = left - scale * trits
    h = np.ones(80, dtype=np.float32)
    h[40:] = 0.0
    weighed = ternarize(w, fit="bitnet", importance=h, group_size=0)
    assert weighed.scales[0, 0, 0] == pytest.approx(np.abs(w[:, :40]).mean(), rel=1e-3)
    assert ternarize(np.zeros((4, 8), np.float32), fit="bitnet", group_size=0).sparsity == 1.0
    with pytest.raises(ValueError, match="NaN"):
        ternarize(np.full((2, 4), np.nan, np.float32), fit="bitnet", group_size=0)
    with pytest.raises(ValueError, match="neither threshold nor sparsity"):
        ternarize(w, fit="bitnet", sparsity=0.3)


@pytest.mark.parametrize("method", ["fast", "gptq"])
def test_bitnet_presses_a_model_with_one_scale_a_tensor(method, tiny_llama_dir, tmp_path):
    source = open_source(tiny_llama_dir)
    targets = find_targets(source)
    config = CompressionConfig(fit="bitnet", planes=1, method=method)
    store = TensorStore(tmp_path)
    if method == "fast":
        plan = make_plan(source, targets, config)
        assert len(list(fast_tensors(targets, plan, config, store, NullContext()))) == len(targets)
    else:
        press(tiny_llama_dir, store, config)
    for target in targets:
        _, scales = store.get(target.name)
        weight = read_tensor(target.entry)
        assert len(np.unique(scales)) == 1 and scales.shape[-1] == 1
        if method == "fast":
            assert scales.flat[0] == np.float16(np.abs(weight).mean(dtype=np.float64))


def test_bitnet_takes_no_wish_about_zeros():
    from tritpress.config import make_config
    from tritpress.errors import UsageError

    with pytest.raises(UsageError, match="fit bitnet sets its own zeros"):
        make_config({"fit": "bitnet", "sparsity": 0.3})
    assert make_config({"fit": "bitnet"}).max_sparsity is None
    assert make_config({"fit": "bitnet"}).base_group_size == 0
