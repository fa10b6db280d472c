"""The older interface on a real run of a tiny model: keys, figures, callbacks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tritpress.errors import UsageError
from tritpress.phase4 import Phase4Config, Phase4Controller

KEYS = {
    "success", "phase", "output_paths", "pre_compression", "post_compression", "fine_tuning",
    "gradient_flow_test", "timing", "metrics",
}  # fmt: skip


class Logger:
    def __init__(self) -> None:
        self.logged: list[dict] = []

    def log(self, figures: dict) -> None:
        self.logged.append(figures)


@pytest.fixture(scope="module")
def executed(tiny_llama_dir: Path, text_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    base = tmp_path_factory.mktemp("phase4")
    config = Phase4Config(
        model_path="/not/used",
        output_path=base / "out",
        text=[str(text_dir)],
        runs_dir=base / "runs",
        options={
            "planes": 2, "method": "fast", "finetune": True, "tokens": 1024, "window": 64,
            "calibration_tokens": 512, "evaluation_tokens": 512,
        },
    )  # fmt: skip
    logger, events = Logger(), []
    result = Phase4Controller(config).execute(
        phase3_output_path=tiny_llama_dir, wandb_logger=logger, progress_callback=events.append
    )
    assert result["error"] is None
    return result, json.loads((base / "out" / "report.json").read_text()), logger.logged, events


def test_the_named_keys_hold_the_report_of_the_run(executed) -> None:
    result, report, _, _ = executed
    assert set(result) >= KEYS and result["phase"] == 4
    assert result["success"] is not any(gate["passed"] is False for gate in report["gates"])
    assert result["pre_compression"]["perplexity"] == report["before"]["perplexity"]
    assert result["post_compression"]["packed"] == report["after"]["packed"]
    assert result["post_compression"]["ratio_file"] == report["ratio_file"]
    assert result["fine_tuning"] == report["fine_tuning"] and report["fine_tuning"]["tokens"] >= 1024
    assert result["gradient_flow_test"]["norms"] == report["gradient_norms"] and report["gradient_norms"]
    assert all(Path(path).exists() for path in result["output_paths"].values())
    assert set(result["output_paths"]) == {"packed", "dequantized", "report"}
    assert result["timing"]["total_seconds"] >= sum(result["timing"]["steps"].values()) * 0.5


def test_the_metrics_are_logged_as_measured(executed) -> None:
    result, report, logged, _ = executed
    assert logged[-1] == result["metrics"] and 19 <= len(result["metrics"]) <= 21
    assert all(isinstance(value, int | float) for value in result["metrics"].values())
    assert result["metrics"]["compression/ratio_file"] == report["ratio_file"]
    assert result["metrics"]["quality/perplexity_packed"] == report["after"]["packed"]["perplexity"]
    assert [figures for figures in logged[:-1]] and all("fine_tuning/loss" in f for f in logged[:-1])


def test_the_callback_sees_the_events(executed) -> None:
    *_, events = executed
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["type"] == "run.started" and events[-1]["type"] == "run.finished"
    assert [e["step"] for e in events if e["type"] == "step.finished"] == [1, 2, 3, 4, 5, 6, 7]


def test_a_run_that_cannot_be_done_is_no_success(tmp_path: Path) -> None:
    config = Phase4Config(
        model_path=tmp_path / "nowhere", output_path=tmp_path / "out", runs_dir=tmp_path / "runs"
    )
    result = Phase4Controller(config).execute()
    assert set(result) >= KEYS and result["success"] is False
    assert str(tmp_path / "nowhere") in result["error"] and not (tmp_path / "out").exists()


def test_wrong_values_are_refused() -> None:
    with pytest.raises(UsageError, match="model_path"):
        Phase4Controller(Phase4Config(output_path="out")).execute()
    with pytest.raises(UsageError, match="output_path"):
        Phase4Controller(Phase4Config(model_path="m")).execute()
    with pytest.raises(UsageError, match="target_ratio"):
        Phase4Config(target_compression_ratio=0.5).compression()
    with pytest.raises(UsageError, match="fine_tune_epochs"):
        Phase4Config(fine_tune_epochs=2, enable_fine_tuning=False).compression()


def test_the_values_reach_the_configuration() -> None:
    config = Phase4Config(
        target_compression_ratio=8.0,
        target_sparsity=0.35,
        enable_fine_tuning=False,
        grokfast_lambda=0.2,
        seed=7,
    ).compression()
    assert (config.target_ratio, config.sparsity, config.finetune) == (8.0, 0.35, False)
    assert (config.optimizer, config.grokfast_lambda, config.seed) == ("mugrokfast", 0.2, 7)
    assert Phase4Config().compression().optimizer == "adamw"
    assert Phase4Config().compression().finetune is None
    assert Phase4Config(fine_tune_epochs=3).compression().epochs == 3
