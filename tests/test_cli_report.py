"""What is shown at the end of a run, and how figures are written."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from tritpress.console.numbers import DASH, count, duration, figure, percent, planes, size, times
from tritpress.console.progress import RunProgress, fitting, render, whole_parts
from tritpress.console.report import print_report
from tritpress.console.tables import print_bench, print_inspection, runs_table
from tritpress.events import fold, initial_state


def column(**figures):
    empty = ("perplexity", "top1", "tokens", "latency_ms", "tokens_per_s")
    return {**dict.fromkeys(empty), "bytes": 100, "bytes_fp32": 1000, **figures}


def report(**changes):
    gates = [
        ("ratio", 6.0, 6.57, True, None),
        ("accuracy", 0.95, 0.93, False, "model.layers.1.self_attn.o_proj.weight costs most: --planes 3"),
        ("perplexity", 0.10, 0.082, True, None),
        ("sparsity", [0.25, 0.45], 0.439, True, None),
        ("gradient_flow", 1.0, None, None, "not measured: no text was given"),
    ]
    keys = ("name", "target", "actual", "passed", "advice")
    return {
        "ratio_file": 6.57,
        "ratio_layers": 7.0,
        "ratio_disk": 3.28,
        "bits_per_weight": 4.5,
        "planes_mean": 2.0,
        "sparsity": 0.439,
        "perplexity_change": 0.082,
        "perplexity_interval": [0.07, 0.09],
        "accuracy_kept": 0.93,
        "before": column(perplexity=9.384, top1=0.532, tokens=32640, bytes=500),
        "after": {
            "packed": column(perplexity=10.15, top1=0.517, kl=0.0123, agreement=0.9),
            "dequantized": column(perplexity=10.1, top1=0.518),
        },
        "gates": [dict(zip(keys, gate, strict=True)) for gate in gates],
        "handoff": [
            {"name": "opens", "passed": True, "detail": ""},
            {"name": "trains", "passed": False, "detail": "x"},
        ],
        "fine_tuning": None,
        "steps": [{"seconds": 30.0}, {"seconds": 95.0}],
        **changes,
    }


def shown(report: dict, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_report(console, report)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_report_has_every_figure_and_fits(width: int) -> None:
    text = shown(report(), width)
    assert "6.57x smaller" in text and "4.50 bits a weight" in text and "2 planes" in text
    for part in (
        "9.384",
        "10.15",
        "+8.2 %",
        "53.2 %",
        "93.0 %",
        "32,640 tokens",
        "+7.0 % to +9.0 %",
        "0.0123",
    ):
        assert part in text, part
    assert "o_proj" in text and "✗ fails" in text and "– not measured" in text and text.count("✓ passes") == 3
    assert "trains: x" in text and "2 min 5 s" in text
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text


def test_the_headline_calls_only_one_plane_1_58_bit() -> None:
    assert "1.58" not in shown(report())
    assert "1.58" not in shown(report(planes_mean=1.37))
    one = shown(report(planes_mean=1.0, bits_per_weight=2.25))
    assert "1 plane (1.58-bit ternary)" in one and "2.25 bits a weight" in one


def test_what_was_not_measured_is_a_dash_or_left_out() -> None:
    bare = report(perplexity_change=None, perplexity_interval=None, accuracy_kept=None)
    bare["before"], bare["after"] = column(bytes=500), {"packed": column(), "dequantized": column(bytes=None)}
    bare["gates"] = [{**gate, "actual": None, "passed": None} for gate in bare["gates"]]
    text = shown(bare)
    assert "perplexity  " not in text.split("Gates")[0] and text.count("– not measured") == 5
    for gate in bare["gates"]:
        gate["advice"] = "not measured: evaluation switched off"
    bare["gates"][0] |= {"actual": 6.5, "passed": True, "advice": None}
    words = " ".join(shown(bare).split())
    names = "accuracy kept, perplexity change, sparsity, gradient flow"
    assert f"Not judged: 4 of 5 gates ({names}): evaluation switched off" in words
    assert words.count("evaluation switched off") == 1
    assert "None" not in text and "nan" not in text


def test_numbers_in_words() -> None:
    assert [size(n) for n in (0, 999, 1000, 3_214_000, 999_600, 12e9)] == [
        "0 B", "999 B", "1 kB", "3.21 MB", "1 MB", "12 GB",
    ]  # fmt: skip
    assert [count(n) for n in (7, 9999, 12_345, 5_340_000, 1.3e9)] == [
        "7",
        "9,999",
        "12.3 k",
        "5.34 M",
        "1.3 G",
    ]
    assert [percent(0.4391), percent(-0.001, sign=True), percent(1.0)] == ["43.9 %", "-0.1 %", "100.0 %"]
    assert [duration(s) for s in (0.04, 9.96, 59.6, 125, 7505)] == [
        "0.0 s",
        "10 s",
        "1 min 0 s",
        "2 min 5 s",
        "2 h 5 min",
    ]
    assert [figure(x) for x in (9.384, 10.154, 0.01234, 123456.0, 0.0, 2e-5)] == [
        "9.384", "10.15", "0.01234", "123,456", "0", "2e-05",
    ]  # fmt: skip
    assert {
        size(None),
        count(None),
        percent(None),
        times(None),
        duration(None),
        figure(None),
        planes(None),
    } == {DASH}
    assert fitting("model.layers.12.self_attn.o_proj.weight", 20) == "model.…o_proj.weight"
    assert fitting("short", 5) == "short"


def test_checks_not_made_are_told_from_failed_ones() -> None:
    items = [{"name": str(i), "passed": passed, "detail": ""} for i, passed in enumerate([True, None, None])]
    assert "Handoff: 1 of 3 checks pass, 2 not checked\n" in shown(report(handoff=items))
    assert "Handoff: 1 of 1 checks pass\n" in shown(report(handoff=items[:1]))


def test_training_without_gain_is_said_so() -> None:
    training = {
        "steps": 44, "tokens": 45056, "loss_first": 0.227, "loss_best": 0.227, "best_step": 0,
        "optimizer": "muon", "stopped": "epochs are over",
    }  # fmt: skip
    text = " ".join(shown(report(fine_tuning=training)).split())
    assert "no step beat the calibrated codes, which are kept" in text and "->" not in text
    text = shown(report(fine_tuning={**training, "best_step": 12, "loss_best": 0.2}))
    assert "loss 0.2270 -> 0.2000" in text and "no step" not in text


def table_text(table, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_list_of_runs_gives_the_model_the_room_of_empty_columns() -> None:
    bare = {
        "id": "20261124-035111-716d", "name": "tok_mid_llama_64", "status": "stopped", "step": None,
        "gates": {}, "ratio_file": None, "bits_per_weight": None, "planes_mean": None,
        "perplexity_change": None, "seconds": 3.0,
    }  # fmt: skip
    lines = table_text(runs_table([bare], 80), 80)
    assert "tok_mid_llama_64" in lines[-1] and DASH not in lines[-1] and "ratio" not in lines[0]
    full = {
        **bare, "status": "finished", "ratio_file": 6.01, "bits_per_weight": 5.01, "planes_mean": 2.22,
        "perplexity_change": 0.012, "gates": {"ratio": True},
    }  # fmt: skip
    lines = table_text(runs_table([full, {**bare, "name": "reference model"}], 80), 80)
    text = "\n".join(lines)
    assert all(len(line) <= 80 for line in lines) and DASH in text
    assert [lines[i].split()[at] for i, at in ((2, 1), (3, 0))] == ["tok_mid_", "llama_64"]
    for part in ("20261124-035111-716d", "finished", "6.01x", "5.01", "2.22", "+1.2 %", "1/1", "tok"):
        assert part in text, part
    assert "tok_mid_llama_64" in "\n".join(table_text(runs_table([full], 100), 100))


@pytest.mark.parametrize("packed", [True, False])
def test_names_of_tensors_are_not_broken(packed: bool) -> None:
    ends = ["mlp.up_proj.weight", "post_attention_layernorm.weight"]
    names = ["model.embed_tokens.weight", *(f"model.layers.{i}.{end}" for i in range(2) for end in ends)]
    tensors = [
        {"name": name, "storage": "ternary", "shape": [2048, 256], "bytes": 101_000,
         **({"planes": 2, "sparsity": 0.44, "bits": 4.5} if packed else {"role": "ternarizable"})}
        for name in names
    ]  # fmt: skip
    found = {
        "kind": "packed" if packed else "plain", "architecture": "Llama", "parameters": 1, "tensors": tensors,
        "ratio_file": 6.0, "bits_per_weight": 4.5, "ternary_tensors": 5, "planes_mean": 2.0, "sparsity": 0.44,
        "ternarizable_tensors": 5, "ternarizable_weights": 5, "size_class": "tiny", "source_dtype": "float16",
        "bytes": 1, "bytes_fp32": 2, "files": [],
    }  # fmt: skip

    def lines(width: int) -> list[str]:
        console = Console(file=io.StringIO(), width=width)
        print_inspection(console, found, all_tensors=False)
        return [line.rstrip() for line in console.file.getvalue().splitlines()]

    narrow, wide = lines(80), lines(120)
    assert all(len(line) <= 80 for line in narrow)
    for i in range(2):
        at = narrow.index(f"model.layers.{i}")
        assert narrow[at + 1].split()[:2] == ["mlp.up_proj.weight", "ternary"]
        assert narrow[at + 2].split()[0].endswith("_layernorm.weight" if packed else ends[1])
    assert sum("kB" in line for line in narrow) == len(names)
    assert any(line.startswith("model.layers.1.post_attention_layernorm.weight") for line in wide)


def test_no_number_of_a_step_is_cut_in_two() -> None:
    words = "42 tensors, 5.01 bits a weight, 2.22 planes"
    assert whole_parts(words, 43) == words
    assert whole_parts(words, 40) == "42 tensors, 5.01 bits, 2.22 planes"
    assert whole_parts(words, 30) == "42 tensors, 5.01 bits"


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_bars_fit_at_every_moment(width: int) -> None:
    state = initial_state("r")
    weight = "model.layers.1.self_attn.o_proj.weight"
    model = {"architecture": "LlamaForCausalLM", "parameters": 5_340_000}
    events = [
        ("run.started", {"model": "m", "out": "o", "config": {}, "name": "n", "resumed": False}),
        ("step.started", {"step": 1, "name": "load"}),
        ("model", {"model": model, "targets": [{"name": f"t{i}"} for i in range(42)]}),
        ("step.finished", {"step": 1, "name": "load", "seconds": 3.2, "skipped": None}),
        ("step.finished", {"step": 2, "name": "baseline", "seconds": 0.0, "skipped": "no text was given"}),
        ("step.started", {"step": 4, "name": "ternarization"}),
        ("step.progress", {"step": 4, "done": 7, "total": 42, "detail": weight}),
        ("run.paused", {}),
        ("run.resumed", {"seconds": 1.0}),
        ("step.started", {"step": 5, "name": "fine-tuning"}),
        ("finetune.step", {"step": 3, "steps": 100, "loss": 2.345, "tokens_per_s": 1003.0}),
        ("run.failed", {"error": "the disk is full", "exit_code": 1}),
    ]
    pictures = []
    for seq, (type, fields) in enumerate(events, 1):
        fold(state, {"v": 1, "run": "r", "seq": seq, "t": 1000.0 + seq, "type": type, **fields})
        console = Console(file=io.StringIO(), width=width)
        console.print(render(state, width, 1100.0))
        pictures.append(console.file.getvalue())
        assert all(len(line) <= width for line in pictures[-1].splitlines())
    assert ".weight" in pictures[6] and "paused" in pictures[7] and "paused" not in pictures[8]
    assert "skipped" in pictures[4] and "✗" in pictures[11] and "42 tensors" in pictures[3]
    if width >= 80:
        assert "7/42" in pictures[6]
        assert "3/100" in pictures[10] and "loss 2.345" in pictures[10] and "1,003 tokens/s" in pictures[10]


def test_outside_a_terminal_every_step_is_a_line() -> None:
    console = Console(file=io.StringIO(), width=100)
    with RunProgress(console, initial_state("r")) as progress:
        for seq, (type, fields) in enumerate(
            [
                ("step.started", {"step": 2, "name": "baseline"}),
                ("evaluation", {"when": "before", "perplexity": 9.384, "top1": 0.5321}),
                ("step.finished", {"step": 2, "name": "baseline", "seconds": 12.0, "skipped": None}),
                ("step.finished", {"step": 3, "name": "calibration", "seconds": 0.0, "skipped": "no text"}),
                ("log", {"message": "no finite loss", "level": "warning"}),
            ],
            1,
        ):
            progress.on_event({"v": 1, "run": "r", "seq": seq, "t": 1.0, "type": type, **fields})
    assert console.file.getvalue().splitlines() == [
        "2/7 baseline: 12 s, perplexity 9.384, top-1 53.2 %",
        "3/7 calibration: skipped (no text)",
        "  no finite loss",
    ]


def test_measurements_say_once_what_all_rows_share() -> None:
    rows = [
        {
            "name": "ours",
            "rows": 4096,
            "gbps": 12.345,
            "calls": 25_000_000,
            "spread": [1.0, 2.5],
            "unit": "GB/s",
        },
        {"name": "torch", "rows": 4096, "gbps": None, "calls": 3, "spread": [0.5, 0.75], "unit": "GB/s"},
    ]
    console = Console(file=io.StringIO(), width=80)
    print_bench(console, "matvec", {"machine": {"cores": 2, "memory_gbps": 20.5}, "rows": rows})
    text = console.file.getvalue()
    assert "memory gbps: 20.5" in text and text.count("rows: 4,096") == 1 and text.count("GB/s") == 1
    for part in ("ours", "torch", "12.3", DASH, "25 M", "1.00 to 2.50"):
        assert part in text, part
    assert all(len(line) <= 80 for line in text.splitlines())
