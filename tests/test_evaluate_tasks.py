"""lm-eval tasks: scored as by hand, opened offline from local files, judged as the accuracy gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritpress as tp
from tritpress.errors import InputError, UsageError
from tritpress.evaluate.task_model import TaskModel
from tritpress.evaluate.tasks import TaskScore, compare_tasks, open_tasks, run_tasks
from tritpress.formats.huggingface import load_original, load_tokenizer
from tritpress.formats.source import open_source
from tritpress.loading import load
from tritpress.reference import reference_model_path

CHOICE = """
task: keywords
dataset_path: json
dataset_kwargs:
  data_files: {test: keywords.jsonl}
test_split: test
output_type: multiple_choice
doc_to_text: "{{before}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
EXACT = """
task: next-word
dataset_path: json
dataset_kwargs:
  data_files: {test: words.jsonl}
test_split: test
output_type: generate_until
doc_to_text: "{{before}}"
doc_to_target: "{{after}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
QUESTIONS = [
    ("def main(argv):\n    if argv is", [" None", " zebra"], 0),
    ("for i in range(10):\n    print", ["(", " while"], 0),
    ("class A:\n    def __init__", [" lambda", "(self"], 1),
    ("try:\n    import json\nexcept", [" ImportError", " 17"], 0),
    ("import", [" os", "]]"], 0),
    ("x = [1, 2, 3", [" def", "]"], 1),
    ("while", [" True", " ==="], 0),
    ("from typing import", [" Any", ";"], 0),
]


@pytest.fixture(scope="module")
def task_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "keywords.yaml").write_text(CHOICE)
    rows = [{"before": text, "choices": choices, "label": label} for text, choices, label in QUESTIONS]
    (folder / "keywords.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "more").mkdir()
    (folder / "more" / "words.yaml").write_text(EXACT)
    words = [{"before": "import os\nimport ", "after": "sys"}, {"before": "def f(self", "after": "zebra"}]
    (folder / "more" / "words.jsonl").write_text("\n".join(map(json.dumps, words)))
    return folder


@pytest.fixture(scope="module")
def reference() -> tuple[Any, Any]:
    return load_original(open_source(reference_model_path())), load_tokenizer(reference_model_path())


class Request:
    def __init__(self, *args: Any) -> None:
        self.args = args


def by_hand(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    """The log-probability of a continuation, token by token."""
    ids = tokenizer(context, add_special_tokens=False)["input_ids"]
    whole = ids + tokenizer(context + continuation, add_special_tokens=False)["input_ids"][len(ids) :]
    with torch.no_grad():
        logp = torch.log_softmax(model(input_ids=torch.tensor([whole])).logits[0], -1)
    return float(sum(logp[i - 1, whole[i]] for i in range(len(ids), len(whole))))


def test_a_batch_scores_as_each_question_alone(reference: Any) -> None:
    model, tokenizer = reference
    pairs = [(text, choice) for text, choices, _ in QUESTIONS for choice in choices]
    found = TaskModel(model, tokenizer, 512).loglikelihood([Request(*pair) for pair in pairs])
    for (score, _), pair in zip(found, pairs, strict=True):
        assert score == pytest.approx(by_hand(model, tokenizer, *pair), abs=2e-4), pair


def test_greedy_is_what_the_model_would_write(reference: Any) -> None:
    model, tokenizer = reference
    asked = TaskModel(model, tokenizer, 512)
    text = "def main():\n    "
    written = asked.generate_until([Request(text, {"until": ["\n"], "max_gen_toks": 8})])[0]
    assert written and "\n" not in written
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    made = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(made).startswith(written)


def test_what_is_too_long_loses_its_beginning(reference: Any) -> None:
    model, tokenizer = reference
    long = "x = 1\n" * 300 + "def main"
    tokens = tokenizer(long, add_special_tokens=False)["input_ids"]
    asked = TaskModel(model, tokenizer, 64)
    _, continuation = asked._pair(long, "():")
    kept = tokens[-(65 - len(continuation)) :]
    pairs = [Request(long, "():"), Request(tokenizer.decode(kept), "():")]
    (score, _), (other, _) = asked.loglikelihood(pairs)
    assert score == pytest.approx(other, abs=1e-4)
    with pytest.raises(InputError, match="continuation has 70 tokens, the model takes 64"):
        TaskModel(model, tokenizer, 64)._score([([1], [5] * 70)])


def test_a_whole_text_is_predicted_token_by_token(reference: Any) -> None:
    model, tokenizer = reference
    text = "import os\n\n\ndef main(argv):\n    return 0\n"
    (rolled,) = TaskModel(model, tokenizer, 512).loglikelihood_rolling([Request(text)])
    first = TaskModel(model, tokenizer, 512).first
    ids = [first, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        logp = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], -1)
    assert rolled == pytest.approx(float(sum(logp[i - 1, ids[i]] for i in range(1, len(ids)))), abs=1e-3)


def test_local_tasks_need_no_network_and_no_working_folder(task_dir: Path, reference: Any) -> None:
    tasks = open_tasks([str(task_dir)])
    assert tasks.metrics == {"keywords": "acc", "next-word": "exact_match"}
    model, tokenizer = reference
    scores = {score.task: score for score in run_tasks(tasks, model, tokenizer, longest=512)}
    right = [
        int(np.argmax([by_hand(model, tokenizer, text, choice) for choice in choices])) == label
        for text, choices, label in QUESTIONS
    ]
    assert scores["keywords"].hits == [float(hit) for hit in right]
    assert scores["keywords"].value == pytest.approx(np.mean(right)) and sum(right) >= 6
    assert scores["next-word"].hits[1] == 0.0 and len(scores["next-word"].hits) == 2
    one = run_tasks(tasks, model, tokenizer, longest=512, limit=3)
    assert [len(score.hits) for score in one] == [3, 2]


def test_a_model_read_block_by_block_scores_the_same(task_dir: Path, reference: Any) -> None:
    from tritpress.formats.paged import load_paged

    model, tokenizer = reference
    tasks = open_tasks([str(task_dir / "keywords.yaml")])
    paged = load_paged(open_source(reference_model_path()))
    assert paged is not None
    held = run_tasks(tasks, model, tokenizer, longest=512)
    assert run_tasks(tasks, paged, tokenizer, longest=512) == held


def test_what_cannot_be_had_is_one_sentence(task_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"task file .*absent\.yaml does not exist"):
        open_tasks([str(tmp_path / "absent.yaml")])
    with pytest.raises(InputError, match="holds no lm-eval task"):
        open_tasks([str(tmp_path)])
    (tmp_path / "remote.yaml").write_text(
        CHOICE.replace("dataset_path: json", "dataset_path: nobody/nothing").replace("keywords", "remote")
    )
    with pytest.raises(InputError, match=r"remote\.yaml: its data set cannot be had: .*nobody/nothing"):
        open_tasks([str(tmp_path / "remote.yaml")])
    (tmp_path / "remote.yaml").write_text(CHOICE.replace("keywords.jsonl", "not-here.jsonl"))
    with pytest.raises(InputError, match=r"its data set cannot be had: .*not-here"):
        open_tasks([str(tmp_path / "remote.yaml")])
    (tmp_path / "remote.yaml").write_text(
        CHOICE.replace("keywords.jsonl", str(task_dir / "keywords.jsonl")).replace(
            "{metric: acc, aggregation: mean, higher_is_better: true}",
            "{metric: brier_score, higher_is_better: false}",
        )
    )
    with pytest.raises(UsageError, match="the accuracy gate needs a task with an accuracy"):
        open_tasks([str(tmp_path / "remote.yaml")])
    with pytest.raises(UsageError, match="keywords is given twice"):
        open_tasks([str(task_dir), str(task_dir / "keywords.yaml")])


@pytest.mark.slow
def test_names_are_those_of_lm_eval() -> None:
    with pytest.raises(UsageError, match=r"no task 'helaswag'.*near are .*hellaswag"):
        open_tasks(["helaswag"])
    with pytest.raises(InputError, match="--tasks hellaswag: its data set cannot be had"):
        open_tasks(["hellaswag"])


def score(*hits: float) -> TaskScore:
    return TaskScore("t", "acc", float(np.mean(hits)), list(hits))


def test_kept_is_averaged_over_tasks_with_an_interval() -> None:
    found = compare_tasks([score(1, 1, 0, 0), score(1, 1, 1, 1)], [score(1, 0, 0, 0), score(1, 1, 1, 1)])
    assert found["accuracy_kept"] == 0.75
    assert [result["kept"] for result in found["results"]] == [0.5, 1.0]
    many = compare_tasks([score(*[1, 0] * 500)], [score(*[1, 0] * 450, *[0, 0] * 50)])
    low, high = many["interval"]
    assert low < 0.9 < high and high - low < 0.08
    nothing = compare_tasks([score(0, 0)], [score(0, 1)])
    assert nothing["accuracy_kept"] is None and nothing["interval"] is None


def test_tasks_are_the_accuracy_gate(task_dir: Path, tmp_path: Path) -> None:
    config = tp.CompressionConfig(method="fast", planes=2, finetune=False, tasks=[str(task_dir)])
    tiny = tmp_path / "model"  # the reference's weights, but not its name: no text is at hand
    tiny.mkdir()
    for file in reference_model_path().iterdir():
        (tiny / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(settings))
    weights = (tiny / "model.safetensors").read_bytes()
    size = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + size])
    header["__metadata__"] = {"format": "pt", "note": "another file"}
    raw = json.dumps(header).encode()
    (tiny / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + weights[8 + size :])
    report = tp.compress(tiny, tmp_path / "out", config, runs_dir=tmp_path / "runs")
    found = report["tasks"]
    assert {result["task"] for result in found["results"]} == {"keywords", "next-word"}
    gate = next(gate for gate in report["gates"] if gate["name"] == "accuracy")
    assert gate["actual"] == found["accuracy_kept"] and gate["passed"] is not None
    assert report["accuracy_kept"] is None and report["before"]["perplexity"] is None
    tokenizer = load_tokenizer(tmp_path / "out" / "packed")
    again = run_tasks(open_tasks([str(task_dir)]), load(tmp_path / "out" / "packed"), tokenizer, longest=512)
    assert [one.value for one in again] == [result["packed"] for result in found["results"]]


def test_no_tasks_without_an_evaluation(task_dir: Path, tmp_path: Path) -> None:
    config = tp.CompressionConfig(method="fast", evaluate=False, finetune=False, tasks=[str(task_dir)])
    with pytest.raises(UsageError, match="--tasks: nothing is evaluated with --no-eval"):
        tp.compress(reference_model_path(), tmp_path / "out", config, runs_dir=tmp_path / "runs")


def test_eval_scores_tasks_beside_the_text(task_dir: Path, text_dir: Path, tiny_qwen3_dir: Path) -> None:
    from tritpress.evaluate.directory import evaluate_directory

    found = evaluate_directory(
        tiny_qwen3_dir, [str(text_dir)], tasks=[str(task_dir / "keywords.yaml")], task_limit=4, tokens=512
    )
    (score,) = found["tasks"]
    assert score["task"] == "keywords" and score["documents"] == 4 and 0.0 <= score["value"] <= 1.0
    low, high = found["perplexity_interval"]
    assert low <= found["perplexity"] <= high
    same, other = (
        evaluate_directory(tiny_qwen3_dir, [str(text_dir)], tokens=tokens)["windows_sha256"]
        for tokens in (512, 1024)
    )
    assert same == found["windows_sha256"] != other
