"""A model that is read block by block gives what the held one gives: the same bytes, the same figures."""

from __future__ import annotations

import contextlib
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tritpress import pipeline
from tritpress.config import CompressionConfig
from tritpress.costs import choice_costs, int8_losses
from tritpress.evaluate import streamed
from tritpress.evaluate.gradient_flow import gradient_norms, gradient_norms_by_block
from tritpress.events.context import NullContext
from tritpress.formats import huggingface
from tritpress.formats.huggingface import load_original, modules_of, parameters_of, tensors_among
from tritpress.formats.paged import load_paged
from tritpress.formats.source import open_source
from tritpress.formats.targets import embedding_targets, find_targets
from tritpress.nn import paging
from tritpress.nn.surgery import find_blocks
from tritpress.plan import Plan, TensorPlan, make_plan
from tritpress.steps import finish
from tritpress.steps import work as work_module
from tritpress.ternarize import embeddings

FAMILIES = ["tiny_llama_dir", "tiny_gpt2_dir", "tiny_qwen3_dir", "tiny_sharded_dir"]
PRESSED = [*FAMILIES[:2], *(pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES[2:])]

pytestmark = pytest.mark.usefixtures("one_thread")


class Folder:
    """A run's folder as the steps need it."""

    def __init__(self, path: Path, model: Path) -> None:
        self.path, self.id, self.model = path, path.name, model
        self.work = path / "work"

    def read_run(self) -> dict[str, Any]:
        return {"model": str(self.model), "out": str(self.path / "out")}

    def choose(self, **measured: Any) -> dict[str, Any]:
        return measured


class MostHeld(NullContext):
    """Notes the most blocks whose weights are in memory at once, whenever the run asks whether to go on."""

    def __init__(self) -> None:
        self.models: list[Any] = []
        self.most = 0

    def check(self) -> None:
        for model in self.models:
            _, blocks = find_blocks(model)
            held = sum(not any(map(paging.is_placeholder, block.parameters())) for block in blocks)
            self.most = max(self.most, held)


def press(model: Path, folder: Path, text: Path, context: Any = None, **options: Any) -> dict[str, Any]:
    config = CompressionConfig(
        **{"method": "gptq", "finetune": False, "planes": 1, "text": [str(text)],
           "calibration_tokens": 1024, "evaluation_tokens": 2048, "window": 64, **options},
    )  # fmt: skip
    folder.mkdir()
    return pipeline.run(config, Folder(folder, model), context or NullContext())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file; of what lies beside the weights all but the plan's forecast, sums in another order."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    if "tritpress.json" in found:
        lines = found["tritpress.json"].splitlines()
        found["tritpress.json"] = b"".join(line for line in lines if b"predicted_" not in line)
    return found


@pytest.mark.parametrize("family", PRESSED)
def test_the_same_bytes_and_figures_as_the_held_model(
    family: str, request: pytest.FixtureRequest, text_dir: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    model = request.getfixturevalue(family)
    held = press(model, tmp_path / "held", text_dir)
    context, opened = MostHeld(), []

    def watched(source: Any) -> Any:
        context.models.append(load_paged(source))
        opened.append(source.path)
        return context.models[-1]

    monkeypatch.setattr(work_module, "PAGED_FROM", 0)
    monkeypatch.setattr(paging, "SMALLEST", 1 << 14)  # the embeddings come and go as well
    monkeypatch.setattr("tritpress.formats.paged.load_paged", watched)
    paged = press(model, tmp_path / "paged", text_dir, context)
    assert len(opened) == 2 and context.most == 1
    for which in ("packed", "dequantized"):
        assert contents(tmp_path / "paged" / "out" / which) == contents(tmp_path / "held" / "out" / which)
    for when in ("before", "packed", "dequantized"):
        one, other = ((r["before"] if when == "before" else r["after"][when]) for r in (held, paged))
        for key in ("perplexity", "top1", "tokens"):
            assert other[key] == pytest.approx(one[key], rel=1e-5), (when, key)
        if when != "before":
            assert other["kl"] == pytest.approx(one["kl"], rel=1e-3, abs=1e-6)
            assert other["agreement"] == pytest.approx(one["agreement"], abs=2e-3)
    assert other["memory_bytes"] == pytest.approx(one["memory_bytes"], rel=0.02)
    assert set(paged["gradient_norms"]) == set(held["gradient_norms"])
    for name, norm in held["gradient_norms"].items():
        assert paged["gradient_norms"][name] == pytest.approx(norm, rel=1e-3), name
    assert [gate["passed"] for gate in paged["gates"]] == [gate["passed"] for gate in held["gates"]]
    assert all(item["passed"] for item in paged["handoff"]), paged["handoff"]


@pytest.mark.parametrize("family", FAMILIES[:3])
@pytest.mark.parametrize("smallest", [1 << 14, 1 << 30])
def test_gradients_of_embeddings_and_head_block_by_block(
    family: str, smallest: int, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(paging, "SMALLEST", smallest)
    source = open_source(request.getfixturevalue(family))
    names = [target.name for target in (*embedding_targets(source), *find_targets(source))]
    windows = np.random.default_rng(0).integers(0, 2048, (3, 32))
    held, paged = load_original(source), load_paged(source)
    assert paged is not None
    (places, stacked), (paged_places, _) = parameters_of(held, names), parameters_of(paged, names)
    assert not stacked and list(places) == list(paged_places) == names
    whole = gradient_norms(held, windows, {n: getattr(owner, key) for n, (owner, key) in places.items()})
    found = gradient_norms_by_block(paged, windows, paged_places, folder=tmp_path)
    assert found == pytest.approx(whole, rel=1e-4) and min(whole.values()) > 0
    assert not any(p.requires_grad or p.grad is not None for p in paged.parameters())


def test_gradients_of_stacked_experts_are_those_of_their_parts(tiny_moe_dir: Path) -> None:
    source = open_source(tiny_moe_dir)
    names = [target.name for target in (*embedding_targets(source), *find_targets(source))]
    model: Any = load_original(source)
    places, stacked = parameters_of(model, names)
    assert len(stacked) == 4 and not any("expert" in name for name in places)
    windows = np.random.default_rng(0).integers(0, 2048, (8, 64))
    found = gradient_norms(
        model, windows, {name: getattr(owner, key) for name, (owner, key) in places.items()},
        stacked=stacked, apart=partial(tensors_among, model, names=names),
    )  # fmt: skip
    assert set(found) == set(names)
    ids = torch.from_numpy(windows)
    model(input_ids=ids, labels=ids).loss.backward()
    experts = model.model.layers[1].mlp.experts
    half = experts.gate_up_proj.shape[1] // 2
    for expert in range(4):
        parts = {
            "w1": experts.gate_up_proj.grad[expert, :half],
            "w3": experts.gate_up_proj.grad[expert, half:],
            "w2": experts.down_proj.grad[expert],
        }
        for part, gradient in parts.items():
            name = f"model.layers.1.block_sparse_moe.experts.{expert}.{part}.weight"
            assert found[name] == pytest.approx(float(gradient.norm()), rel=1e-4), name
    assert found["lm_head.weight"] == pytest.approx(float(model.lm_head.weight.grad.norm()), rel=1e-4)


def test_experts_are_found_in_stacks_without_looking_for_every_name_in_each(
    tiny_moe_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [target.name for target in find_targets(open_source(tiny_moe_dir))]
    model: Any = load_original(open_source(tiny_moe_dir))
    asked: list[str] = []
    real = huggingface.model_name

    def counting(model: Any, name: str, known: Any) -> str | None:
        asked.append(name)
        return real(model, name, known)

    monkeypatch.setattr(huggingface, "model_name", counting)
    places, stacked = parameters_of(model, names)
    experts = [name for name in names if ".experts." in name]
    assert len(stacked) == 4 and sorted([*places, *experts]) == sorted(names)
    assert len(asked) <= len(names) + len(experts) + 8  # embeddings, head and routers too
    found = tensors_among(model, stacked, names)
    assert sorted(found) == sorted(experts)


def test_gradients_of_stacked_experts_are_held_a_portion_at_a_time(
    tiny_moe_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(tiny_moe_dir)
    names = [target.name for target in (*embedding_targets(source), *find_targets(source))]
    model: Any = load_original(source)
    places, stacked = parameters_of(model, names)
    parameters = {name: getattr(owner, key) for name, (owner, key) in places.items()}
    windows = np.random.default_rng(0).integers(0, 2048, (4, 32))
    held: list[int] = []

    def apart(gradients: dict[str, Any]) -> Any:
        held.append(sum(parameter.grad is not None for parameter in stacked.values()))
        return tensors_among(model, gradients, names)

    at_once = gradient_norms(model, windows, parameters, stacked=stacked, apart=apart)
    assert max(held) == 4
    held.clear()
    monkeypatch.setattr("tritpress.evaluate.gradient_flow.PORTION", 1)
    found = gradient_norms(model, windows, parameters, stacked=stacked, apart=apart)
    assert held == [1] * 4 and set(found) == set(names)
    assert found == pytest.approx(at_once, rel=1e-5)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_gate_on_gradients_reads_every_pressed_tensor(
    tiny_moe_dir: Path, text_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[weakref.ref[Any]] = []
    in_memory: list[bool] = []
    open_packed, measure_gradients = finish._open_packed, finish._measure_gradients

    def opening(work: Any) -> Any:
        model = open_packed(work)
        opened.append(weakref.ref(model))
        return model

    def measuring(*given: Any) -> Any:
        in_memory.append(any(model() is not None for model in opened))
        return measure_gradients(*given)

    monkeypatch.setattr(finish, "_open_packed", opening)
    monkeypatch.setattr(finish, "_measure_gradients", measuring)
    plan = tmp_path / "plan.json"
    source = open_source(tiny_moe_dir)
    targets = find_targets(source)
    tensors = {
        t.name: TensorPlan(name=t.name, rows=t.rows, cols=t.cols, planes=1, group_size=32)
        for t in (*embedding_targets(source), *targets)
    }
    Plan(tensors=tensors).save(plan)
    report = press(
        tiny_moe_dir, tmp_path / "run", text_dir, method="fast", planes=None, plan=str(plan),
        evaluation_tokens=1024,
    )  # fmt: skip
    assert in_memory == [False] and len(opened) == 2  # the packed model makes room for experts' gradients
    assert set(report["gradient_norms"]) == set(tensors)
    (gate,) = [gate for gate in report["gates"] if gate["name"] == "gradient_flow"]
    assert gate["passed"] is not None


@pytest.mark.parametrize("at_most, reads", [(None, 1), (0, 4)])
def test_the_head_is_read_once_for_an_evaluation_unless_it_is_too_large(
    at_most: int | None, reads: int, tiny_llama_dir: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(paging, "SMALLEST", 1 << 14)
    if at_most is not None:
        monkeypatch.setattr(streamed, "HELD_AT_MOST", at_most)
    model = load_paged(open_source(tiny_llama_dir))
    assert model is not None
    part = model.get_output_embeddings().__dict__["_paged"]
    plain, found = part.read, []
    part.read = lambda name: (found.append(name), plain(name))[1]
    windows = torch.arange(4 * 48).reshape(4, 48) * 7 % 512
    by_block = streamed.Streamed(model, windows.numpy(), NullContext())
    with torch.inference_mode():
        with by_block.held():
            ours = [by_block(input_ids=window[None]) for window in windows]
        assert len(found) == reads
        assert part.count == 0 and paging.is_placeholder(model.get_output_embeddings().weight)
        for window, logits in zip(windows, ours):
            assert torch.equal(model(input_ids=window[None]).logits, logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_those_of_the_held_model_bit_for_bit(
    family: str, request: pytest.FixtureRequest, monkeypatch: Any
) -> None:
    source = open_source(request.getfixturevalue(family))
    monkeypatch.setattr(paging, "SMALLEST", 1 << 14)
    paged, held = load_paged(source), load_original(source)
    assert paged is not None and paging.is_paged(paged)
    ids = torch.arange(96).reshape(2, 48) * 7 % 2048
    with torch.inference_mode():
        expected = held(input_ids=ids).logits
        assert torch.equal(paged(input_ids=ids).logits, expected)
        embeddings = paging.reading_rows(paged)
        assert paged.get_input_embeddings() in embeddings
        with paging.holding(paged, without=embeddings):
            assert torch.equal(paged(input_ids=ids).logits, expected)
        with paging.holding(paged):
            assert torch.equal(paged(input_ids=ids).logits, expected)
    assert all(map(paging.is_placeholder, find_blocks(paged)[1].parameters()))


def test_a_model_whose_tensors_are_stacked_when_loading_is_held_whole(tiny_moe_dir: Path) -> None:
    assert load_paged(open_source(tiny_moe_dir)) is None


def test_weights_are_dropped_when_a_block_fails(tiny_llama_dir: Path, monkeypatch: Any) -> None:
    paged = load_paged(open_source(tiny_llama_dir))
    assert paged is not None
    _, blocks = find_blocks(paged)
    monkeypatch.setattr(type(blocks[1].mlp), "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        paged(input_ids=torch.arange(8)[None])
    assert all(map(paging.is_placeholder, blocks.parameters()))


def test_an_embedding_reads_the_rows_of_its_tokens_alone(tiny_llama_dir: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(paging, "SMALLEST", 1 << 14)
    source = open_source(tiny_llama_dir)
    paged = load_paged(source)
    assert paged is not None
    embedding = paged.get_input_embeddings()
    read: list[tuple[str, list[int]]] = []
    rows = embedding.forward
    own = rows.read_rows
    rows.read_rows = lambda name, tokens: read.append((name, tokens.tolist())) or own(name, tokens)
    ids = torch.tensor([[7, 5, 6, 7], [2047, 0, 5, 7]])
    found = embedding(ids)
    assert read == [("model.embed_tokens.weight", [0, 5, 6, 7, 2047])]
    assert paging.is_placeholder(embedding.weight)
    table = load_original(source).get_input_embeddings().weight
    assert torch.equal(found, table[ids])


def test_what_is_held_is_read_once(tiny_llama_dir: Path, monkeypatch: Any) -> None:
    source = open_source(tiny_llama_dir)
    paged = load_paged(source)
    assert paged is not None
    _, blocks = find_blocks(paged)
    read: list[str] = []
    part = blocks[0]._paged
    monkeypatch.setattr(part, "read", lambda name, own=part.read: read.append(name) or own(name))
    ids = torch.arange(8)[None]
    with paging.holding(blocks[0]), torch.inference_mode():
        first = paged(input_ids=ids).logits
        second = paged(input_ids=ids).logits
    assert torch.equal(first, second) and len(read) == len(set(read)) == 9
    weights = modules_of(paged, [t.name for t in find_targets(source)])
    assert all(paging.is_placeholder(module.weight) for _, module in weights.values())


@pytest.mark.parametrize("family", ["tiny_llama_dir", "tiny_gpt2_dir"])
def test_moments_block_by_block(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    from tritpress.ternarize.calibration import calibrate

    source = open_source(request.getfixturevalue(family))
    windows = np.random.default_rng(0).integers(1, 2048, (12, 32))
    names = [target.name for target in find_targets(source)]
    found = []
    for model in (load_original(source), load_paged(source)):
        modules = {name: module for name, (_, module) in modules_of(model, names).items()}
        found.append(
            calibrate(model, modules, windows, NullContext(), CompressionConfig(target_ratio=8.0), tmp_path)
        )
    held, paged = found
    assert set(held) == set(paged) == set(names)
    for name in names:
        for key, values in held[name].items():
            np.testing.assert_allclose(paged[name][key], values, rtol=2e-3, err_msg=f"{name} {key}")
    assert not list(tmp_path.iterdir())  # the activations that were put aside had no name


@pytest.mark.parametrize("family", ["tiny_llama_dir", "tiny_gpt2_dir", "tiny_qwen3_dir"])
@pytest.mark.parametrize("on_disk", [True, False])
def test_embeddings_are_priced_as_in_the_held_model(
    family: str, on_disk: bool, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any
) -> None:
    """Read a few rows at a time: what planes and int8 rows would cost comes out within 1 %."""
    if on_disk:
        monkeypatch.setattr(paging, "SMALLEST", 1 << 14)
    source = open_source(request.getfixturevalue(family))
    targets, tables = find_targets(source), embedding_targets(source)
    windows = np.random.default_rng(0).integers(1, 2048, (12, 32))
    config = CompressionConfig(target_ratio=6.0)
    found, pieces = [], []

    def noted(module: Any, start: int, stop: int) -> Any:
        pieces.append(stop - start)
        return paging.weight_rows(module, start, stop)

    for model in (load_original(source), load_paged(source)):
        own, others = (
            {name: module for name, (_, module) in modules_of(model, [t.name for t in some]).items()}
            for some in (targets, tables)
        )
        if paging.is_paged(model):
            monkeypatch.setattr(embeddings, "PIECE", 64 * 100)
            monkeypatch.setattr(embeddings, "weight_rows", noted)
        found.append(
            embeddings.calibrate_with_embeddings(
                model, own, others, windows, NullContext(), config, tmp_path
            )
        )
    assert max(pieces) == 100 and sum(pieces) == sum(table.rows for table in tables)
    held, paged = found
    assert set(held) == set(paged) == {target.name for target in (*targets, *tables)}
    for table in tables:
        for key, values in held[table.name].items():
            least = 1e-3 * float(np.abs(values).max())
            np.testing.assert_allclose(paged[table.name][key], values, rtol=2e-3, atol=least, err_msg=key)
    every = {t.name: [(1, 64), (2, 64), (3, 32)] for t in (*targets, *tables)}
    prices = [choice_costs([*targets, *tables], config, moments, every) for moments in found]
    int8 = [int8_losses(source, targets, *pair) for pair in zip(prices, found)]
    for table in tables:
        assert int8[1][table.name] == pytest.approx(int8[0][table.name], rel=0.01)
        for choice, cost in prices[0][table.name].items():
            assert prices[1][table.name][choice].loss == pytest.approx(cost.loss, rel=0.01), choice


@pytest.mark.parametrize("family", ["tiny_llama_dir", "tiny_gpt2_dir"])
@pytest.mark.parametrize("on_disk", [True, False])
def test_pressed_embeddings_are_what_the_blocks_are_fitted_to(
    family: str,
    on_disk: bool,
    request: pytest.FixtureRequest,
    text_dir: Path,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    model = request.getfixturevalue(family)
    source = open_source(model)
    plan = make_plan(source, find_targets(source), CompressionConfig(planes=1))
    for t in embedding_targets(source):
        plan.tensors[t.name] = TensorPlan(name=t.name, rows=t.rows, cols=t.cols, planes=1, group_size=32)
    plan.save(tmp_path / "plan.json")
    asked = {"planes": None, "plan": str(tmp_path / "plan.json"), "evaluate": False}
    held = press(model, tmp_path / "held", text_dir, **asked)
    opened = []
    monkeypatch.setattr(work_module, "PAGED_FROM", 0)
    if on_disk:
        monkeypatch.setattr(paging, "SMALLEST", 1 << 14)
    monkeypatch.setattr(
        "tritpress.formats.paged.load_paged", lambda source: opened.append(load_paged(source)) or opened[-1]
    )
    paged = press(model, tmp_path / "paged", text_dir, **asked)
    assert opened
    codes = [read_codes(tmp_path / name / "out" / "packed") for name in ("held", "paged")]
    assert codes[0].keys() == codes[1].keys() >= set(plan.tensors)
    for name, values in codes[0].items():  # sums in another order turn a code here and there
        assert np.mean(values == codes[1][name]) > 0.98, name
    errors = [{layer["name"]: layer["mse"] for layer in report["layers"]} for report in (held, paged)]
    assert errors[1] == pytest.approx(errors[0], rel=0.01)
    # what was read or written in place of the original's embeddings is gone again
    ids = torch.arange(24)[None]
    with torch.inference_mode():
        assert torch.equal(opened[0](input_ids=ids).logits, load_original(source)(input_ids=ids).logits)


def read_codes(packed: Path) -> dict[str, np.ndarray]:
    from tritpress.formats.packed_reader import open_packed

    opened = open_packed(packed)
    return {name: opened.ternary(name)[0] for name in opened.tensors}


def test_a_full_disk_is_one_sentence(tiny_llama_dir: Path, monkeypatch: Any) -> None:
    from tritpress.errors import InputError
    from tritpress.ternarize.backward import Spill

    class Full:
        def seek(self, *_: int) -> int:
            return 0

        def write(self, _: Any) -> int:
            raise OSError(28, "No space left on device")

    with contextlib.closing(Spill()) as spill:
        monkeypatch.setattr(spill, "_file", Full(), raising=True)
        with pytest.raises(InputError, match="no room for the activations of calibration: No space left"):
            spill.put((0, 0), torch.zeros(4))
        monkeypatch.undo()
