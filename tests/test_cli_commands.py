"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runs_helper as helper
from tritpress.cli import app
from tritpress.config import CompressionConfig, load_config, make_config
from tritpress.errors import UsageError
from tritpress.runs.commands import send
from tritpress.runs.directory import RunDirectory
from tritpress.runs.launch import launch
from tritpress.runs.liveness import is_alive
from typer.testing import CliRunner

TESTS = Path(__file__).parent
FAKE_WORKER = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its jobs in the background ignore it
sys.path.insert(0, {str(TESTS)!r})
import runs_helper, tritpress.runs.launch as launch
launch.worker_command = lambda run: [sys.executable, runs_helper.__file__, str(run.path)]
sys.argv[0] = "tritpress"
from tritpress.cli import main
main()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model in it, from which `launch` starts the small worker."""
    helper.use(monkeypatch)
    helper.tiny_model(tmp_path / "model")
    monkeypatch.setenv("TRITPRESS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="tritpress")


def the_run(place: Path) -> RunDirectory:
    (path,) = (place / "runs").iterdir()
    return RunDirectory(path)


def outside(place: Path, *words: object, **options) -> subprocess.Popen[str]:
    """The command line as a process of its own, with the small worker behind it."""
    return subprocess.Popen(
        [sys.executable, "-c", FAKE_WORKER, *(str(word) for word in words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=place,
        **options,
    )


def wait_for_events(place: Path, kind: str, timeout: float = 20.0) -> RunDirectory:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for log in place.glob("runs/*/events.jsonl"):
            if f'"type":"{kind}"' in log.read_text():
                return RunDirectory(log.parent)
        time.sleep(0.02)
    raise AssertionError(f"no {kind}")


def test_help_is_quick_and_imports_no_torch() -> None:
    # Processor time of the whole process, interpreter included: what other processes take is not in it.
    code = (
        "import sys, time\n"
        "from tritpress.cli import app; from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "heavy = [m for m in ('torch', 'transformers', 'panel', 'pydantic') if m in sys.modules]\n"
        "print(time.process_time(), heavy)"
    )
    times = []
    for _ in range(3):
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds, _, heavy = answer.stdout.partition(" ")
        assert heavy.strip() == "[]"
        times.append(float(seconds))
    assert min(times) < 0.5


COMMANDS = [
    ["demo"], ["compress"], ["eval"], ["inspect"], ["generate"], ["dashboard"], ["bench"],
    ["runs", "list"], ["runs", "show"], ["runs", "pause"], ["runs", "resume"], ["runs", "stop"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_json_and_examples(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    answer = call(*command, "--help")
    assert answer.exit_code == 0
    assert "--json" in answer.stdout and "Examples:" in answer.stdout
    assert f"tritpress {' '.join(command)}" in answer.stdout and "<bool>" not in answer.stdout
    _, _, examples = answer.stdout.partition("Examples:")
    lines = [line.strip() for line in examples.partition("╭")[0].splitlines() if line.strip()]
    assert lines and all("tritpress" in line for line in lines)  # none is broken in mid-command


@pytest.mark.parametrize("word", ["export"])
def test_what_is_not_there_yet_is_absent(word: str) -> None:
    answer = call(word)
    assert answer.exit_code == 2 and "no such command" in answer.stderr


def test_compress_ends_with_the_report_as_json(place: Path) -> None:
    answer = call("compress", place / "model", "-o", place / "out", "--seed", helper.FAST, "--json")
    assert answer.exit_code == 0, answer.stderr
    assert json.loads(answer.stdout) == json.loads((place / "out" / "report.json").read_text())
    assert answer.stdout.count("\n") == 1 and answer.stderr == ""
    record = the_run(place).read_run()
    assert record["model"] == str(place / "model") and record["out"] == str(place / "out")
    assert record["config"]["seed"] == helper.FAST


def test_a_failed_gate_is_exit_3(place: Path) -> None:
    answer = call("compress", place / "model", "-o", place / "out", "--seed", helper.GATE_FAILS, "--json")
    assert answer.exit_code == 3 and json.loads(answer.stdout)["gates"][0]["passed"] is False


@pytest.mark.parametrize("kind, code", [(helper.UNJUDGED, 0), (helper.CHECK_FAILS, 3)])
def test_a_failed_check_of_the_handoff_is_exit_3_an_unjudged_gate_is_not(place: Path, kind, code) -> None:
    answer = call("compress", place / "model", "-o", place / "out", "--seed", kind, "--json")
    assert answer.exit_code == code and json.loads(answer.stdout)["gates"][0]["passed"] is None
    helped = " ".join(call("--help").stdout.split())
    assert "a check of the handoff failed" in helped and "every gate passes" not in helped


@pytest.mark.parametrize(
    ("kind", "code", "sentence"),
    [
        (helper.FAILS, 1, "the tensor a.weight holds a NaN"),
        (helper.WRONG_OPTION, 2, "--device cuda: there is no CUDA device"),
        (helper.CRASHES, 1, "ZeroDivisionError: of all things"),
    ],
)
def test_what_goes_wrong_in_the_worker_is_one_sentence(place: Path, kind, code, sentence) -> None:
    answer = call("compress", place / "model", "-o", place / "out", "--seed", kind, "--json")
    assert answer.exit_code == code and answer.stdout == ""
    assert sentence in answer.stderr and answer.stderr.count("\n") == 1


def test_debug_shows_where_it_went_wrong_in_the_worker(place: Path) -> None:
    answer = call("compress", place / "model", "-o", place / "out", "--seed", helper.CRASHES, "--debug")
    assert answer.exit_code == 1 and "ZeroDivisionError: of all things" in answer.stderr
    assert "runs_helper.py" in answer.stderr


WRONG = [
    (["-o", "{out}"], "give the model"),
    (["{model}"], "give a folder for the results"),
    (["{model}", "-o", "{out}", "--ratio", "8", "--planes", "2"], "give --ratio or --planes, not both"),
    (["{model}", "-o", "{out}", "--sparsity", "lots"], "--sparsity takes a share such as 0.35"),
    (
        ["{model}", "-o", "{out}", "--sparsity", "1.5"],
        "--sparsity must be a share from 0 to below 1, or 'free' (given: 1.5)",
    ),
    (["{model}", "-o", "{out}", "--ratio", "0"], "--ratio must be above 1 (given: 0)"),
    (
        ["{model}", "-o", "{out}", "--group-size", "48"],
        "--group-size must be 32, 64, 128, 256, or 0 for the whole row (given: 48)",
    ),
    (["{model}", "-o", "{out}", "--method", "magic"], "'magic' is not one of 'auto', 'fast', 'weighted',"),
    (
        ["{model}", "-o", "{out}", "--tokens", "9000", "--epochs", "1"],
        "one budget for fine-tuning: --epochs, --tokens or --minutes",
    ),
    (["{model}", "-o", "{out}", "--packed-only", "--dequantized-only"], "not both"),
    (["{model}", "-o", "{out}", "--planes", "2.5"], "'--planes': it must be a whole number (see"),
    (["{model}", "-o", "{out}", "--ratio", "much"], "'--ratio': it must be a number (see"),
    (["{model}", "-o", "{out}", "--threads", "0"], "--threads must be at least 1 (given: 0)"),
    (["{model}", "-o", "{out}", "--weight-decay", "-1"], "--weight-decay must be at least 0 (given: -1)"),
    (["{model}", "-o", "{out}", "--weight-decay", "inf"], "--weight-decay must be a finite number"),
    (["{model}", "-o", "{out}", "--minutes", "inf"], "--minutes must be a finite number (given: inf)"),
    (["{model}", "-o", "{out}", "--learning-rate", "inf"], "--learning-rate must be a finite number"),
    (["{model}", "-o", "{out}", "--threshold", "nan"], "--threshold must be"),
    (["{model}", "-o", "{out}", "--seed", str(2**64)], "--seed must be below 2**63"),
    (
        ["{model}", "-o", "{out}", "--no-finetune", "--tokens", "5000"],
        "--tokens is a budget of fine-tuning, which is switched off: leave out one of the two",
    ),
    (
        ["{model}", "-o", "{out}", "--optimizer", "adamw", "--grokfast-lambda", "0.5"],
        "--grokfast-lambda is of the optimizer mugrokfast: leave it out, or leave out --optimizer",
    ),
    (["{model}", "-o", "{out}", "--task-limit", "5"], "--task-limit is of tasks: give --tasks too, or leave"),
    (["{model}", "-o", "{out}", "--unheard-of"], "no such option"),
    (["{model}", "-o", "{out}", "--config", "{out}.toml"], "cannot read the configuration"),
    (["{model}", "-o", "{model}/out"], "model's own directory"),
    (["{model}", "-o", "{full}"], "is not empty"),
    (["{model}", "-o", "{out}", "--text", "{out}/text"], "there is no text"),
    (["{model}", "-o", "{out}", "--plan", "{out}.json"], "there is no plan at"),
    (["{model}", "--resume", "x"], "leave out MODEL"),
    (
        ["--resume", "x", "--seed", "0", "--threshold", "0", "--no-finetune", "--no-eval"],
        "leave out --threshold, --no-finetune, --no-eval, --seed",
    ),
    (
        ["--resume", "x", "--ratio", "8", "--dequantized-only", "--alert", "none"],
        "leave out --ratio, --dequantized-only, --alert",
    ),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=[sentence for _, sentence in WRONG])
def test_wrong_usage_is_exit_2_before_any_work(place: Path, words: list[str], sentence: str) -> None:
    (place / "full").mkdir()
    (place / "full" / "mine.txt").write_text("mine")
    names = {"model": place / "model", "out": place / "out", "full": place / "full"}
    answer = call("compress", *(word.format(**names) for word in words))
    assert answer.exit_code == 2 and answer.stdout == ""
    assert sentence in answer.stderr and answer.stderr.startswith("tritpress: ")
    assert answer.stderr.count("\n") == 1
    assert not (place / "runs").exists() and not (place / "out").exists()


def test_a_model_that_is_not_there_is_exit_1(place: Path) -> None:
    answer = call("compress", place / "nowhere", "-o", place / "out")
    assert answer.exit_code == 1 and str(place / "nowhere") in answer.stderr
    answer = call("inspect", place / "nowhere", "--json")
    assert answer.exit_code == 1 and answer.stdout == "" and str(place / "nowhere") in answer.stderr


def test_options_on_the_command_line_win_over_the_file(place: Path) -> None:
    (place / "c.toml").write_text(
        'planes = 2\nsparsity = 0.3\ngroup_size = 128\noptimizer = "adamw"\ntokens = 4096\ntasks = ["b"]\n'
    )
    words = ["--ratio", "7", "--group-size", "32", "--minutes", "3", "--grokfast-lambda", "1"]
    words += ["--task-limit", "9", "--seed", helper.FAST]
    answer = call("compress", place / "model", "-o", place / "out", "--config", "c.toml", *words, "--json")
    assert answer.exit_code == 0, answer.stderr
    config = the_run(place).config
    assert (config.target_ratio, config.planes, config.group_size, config.sparsity) == (7.0, None, 32, 0.3)
    assert (config.minutes, config.tokens, config.task_limit) == (3.0, None, 9)
    assert (config.optimizer, config.grokfast_lambda) == ("mugrokfast", 1.0)


@pytest.mark.parametrize(
    ("lines", "given", "kept"),
    [
        ("tokens = 4096", {"finetune": False}, {"finetune": False}),
        ("finetune = false", {"tokens": 4096}, {"tokens": 4096}),
        ("grokfast_lambda = 0.5", {"optimizer": "muon"}, {"optimizer": "muon"}),
        ("target_ratio = 8", {"plan": "p.json"}, {"plan": "p.json"}),
    ],
)
def test_what_is_given_makes_room_for_itself(tmp_path: Path, lines: str, given: dict, kept: dict) -> None:
    (tmp_path / "c.toml").write_text(lines)
    assert load_config(tmp_path / "c.toml", **given).model_dump(exclude_defaults=True) == kept


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sparsity": 0.3}, "give plan in .*c.toml or --sparsity, not both: the plan says how each"),
        ({"target_ratio": 8}, "give plan in .*c.toml or --target-ratio, not both: the plan says what each"),
    ],
)
def test_the_plan_of_a_file_is_not_left_out_for_an_option(tmp_path: Path, given: dict, said: str) -> None:
    (tmp_path / "c.toml").write_text('plan = "p.json"')
    with pytest.raises(UsageError, match=said):
        load_config(tmp_path / "c.toml", lambda field: f"--{field.replace('_', '-')}", **given)


def test_a_run_of_before_options_without_effect_were_refused_goes_on(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "old")
    run.create()
    kept = CompressionConfig(finetune=False, seed=3).model_dump()
    run.write_run({"config": {**kept, "tokens": 5000, "grokfast_lambda": 0.5, "task_limit": 3}})
    assert run.config == CompressionConfig(finetune=False, seed=3)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("planets = 2", "unknown key planets in c.toml; known are target_ratio, planes, "),
        ("target_ratio = 1", "target_ratio in c.toml must be above 1 (given: 1)"),
        ("planes = 'two'", "planes in c.toml must be a whole number (given: 'two')"),
        ("sparsity = 'lots'", "sparsity in c.toml must be a share from 0 to below 1, or 'free'"),
        ("text = 'notes'", "text in c.toml must be a list (given: 'notes')"),
        ("fit = 'tight'", "fit in c.toml must be 'exact', 'twn', 'absmean' or 'bitnet'"),
        ("planes = ", "the configuration c.toml is no valid TOML"),
    ],
)
def test_a_bad_file_is_said_by_its_key_and_name(place: Path, line: str, sentence: str) -> None:
    (place / "c.toml").write_text(f"{line}\n")
    answer = call("compress", place / "model", "-o", place / "out", "--config", "c.toml")
    assert answer.exit_code == 2 and sentence in answer.stderr and answer.stderr.count("\n") == 1
    assert answer.stderr.count("c.toml") == 1


def test_from_python_fields_go_by_their_own_names() -> None:
    with pytest.raises(UsageError, match=r"^target_ratio must be above 1 \(given: 0\)$"):
        make_config({"target_ratio": 0})
    with pytest.raises(UsageError, match=r"^give target_ratio or planes, not both"):
        make_config({"target_ratio": 8, "planes": 2})


def test_limits_of_other_commands_are_said_in_plain_words() -> None:
    answer = call("demo", "--threads", "0")
    assert answer.exit_code == 2 and answer.stderr == (
        "tritpress: invalid value for '--threads': it must be at least 1 (see `tritpress demo --help`)\n"
    )


def test_a_limit_of_tasks_without_tasks_is_refused_by_eval_too() -> None:
    answer = call("eval", "model", "--task-limit", "5")
    assert answer.exit_code == 2 and "--task-limit is of tasks: give --tasks too" in answer.stderr


def test_without_a_command_the_help_is_shown() -> None:
    answer = call("runs")
    assert answer.exit_code == 2 and "tritpress runs pause 20261124" in answer.output
    assert call("--version").exit_code == 0


def test_help_of_compress_names_the_defaults_and_fits() -> None:
    answer = CliRunner().invoke(app, ["compress", "--help"], prog_name="tritpress", env={"COLUMNS": "80"})
    words = " ".join(answer.stdout.replace("│", " ").split())
    for part in ("by the model's size", "auto (default)", "exact (default)", "adamw (default)",
                 "(default: planned; 64 with --planes)", "(default: 0.1)", "(default: 0)", "held at 44 %",
                 "below 50 M parameters or on a GPU"):  # fmt: skip
        assert part in words, part
    assert "<bool>" not in words and "stdout then stays empty" in words


def test_every_option_reaches_the_configuration(place: Path) -> None:
    (place / "text").mkdir()
    line = (
        "--planes 3 --threshold 0.7 --method gptq --fit twn --group-size 0 --text text --finetune --epochs 2 "
        "--optimizer mugrokfast --grokfast-lambda 0.5 --learning-rate 0.01 --weight-decay 0.05 "
        "--activation-bits 8 --packed-only --no-eval --device cpu --tasks arc_easy,boolq "
        "--tasks mine --task-limit 7"
    )
    words = [*line.split(), "--threads", "1"]
    answer = call("compress", "model", "-o", "out", *words, "--seed", helper.FAST, "--json")
    assert answer.exit_code == 0, answer.stderr
    config = the_run(place).config
    assert config.model_dump(exclude_defaults=True) == {
        "planes": 3, "threshold": 0.7, "method": "gptq", "fit": "twn", "group_size": 0, "finetune": True,
        "epochs": 2, "text": [str(place / "text")], "optimizer": "mugrokfast", "grokfast_lambda": 0.5,
        "learning_rate": 0.01, "weight_decay": 0.05, "activation_bits": 8, "outputs": "packed",
        "evaluate": False, "device": "cpu", "threads": 1, "seed": helper.FAST,
        "tasks": ["arc_easy", "boolq", "mine"], "task_limit": 7,
    }  # fmt: skip


def test_a_folder_named_self_is_no_text_of_the_models_own(place: Path) -> None:
    (place / "self").mkdir()
    words = ["-o", "out", "--method", "fast", "--seed", helper.FAST, "--json"]
    assert call("compress", "model", "--text", "./self", *words).exit_code == 0
    assert the_run(place).config.text == [str(place / "self")]


def test_a_plan_reaches_the_configuration_and_stands_alone(place: Path) -> None:
    (place / "p.json").write_text("{}")
    answer = call("compress", "model", "-o", "out", "--plan", "p.json", "--seed", helper.FAST, "--json")
    assert answer.exit_code == 0, answer.stderr
    assert the_run(place).config.model_dump(exclude_defaults=True) == {
        "plan": str(place / "p.json"), "seed": helper.FAST,
    }  # fmt: skip
    answer = call("compress", "model", "-o", "other", "--plan", "p.json", "--planes", "3")
    assert answer.exit_code == 2 and "--plan or --planes, not both" in answer.stderr


def test_ctrl_c_stops_the_run_and_says_how_to_go_on(place: Path) -> None:
    # Slow enough that it is not over when a busy machine gets round to the signal.
    client = outside(place, "compress", "model", "-o", "out", "--seed", helper.SLOWER)
    run = wait_for_events(place, "layer.finished")
    client.send_signal(signal.SIGINT)
    _, error = client.communicate(timeout=30)
    assert client.returncode == 1
    assert f"--resume {run.id}" in error and "Traceback" not in error and error.count("\n") == 1
    assert run.read_run()["status"] == "stopped" and not is_alive(run)

    again = outside(place, "compress", "--resume", run.id, "--json")
    output, error = again.communicate(timeout=30)
    assert again.returncode == 0, error
    assert json.loads(output)["run"] == run.id
    log = run.events_path.read_text()
    assert log.count('"type":"layer.finished"') == 10 and log.count('"type":"run.started"') == 2


def test_a_killed_worker_is_said_with_the_way_on(place: Path) -> None:
    client = outside(place, "compress", "model", "-o", "out", "--seed", helper.SLOW, "--json")
    run = wait_for_events(place, "layer.finished")
    os.kill(run.read_run()["pid"], signal.SIGKILL)
    output, error = client.communicate(timeout=30)
    assert client.returncode == 1 and output == ""
    assert f"compress --resume {run.id}" in error and "without a word" in error and "Traceback" not in error
    assert "died" in call("runs", "show", run.id).stdout


def test_a_killed_client_leaves_the_worker_at_work(place: Path) -> None:
    client = outside(place, "compress", "model", "-o", "out", "--seed", helper.SLOW)
    run = wait_for_events(place, "layer.finished")
    client.kill()
    client.communicate()
    assert wait_for_events(place, "run.finished").id == run.id
    assert (place / "out" / "report.json").exists()


def test_runs_are_listed_shown_and_steered(place: Path) -> None:
    assert call("runs", "list").stdout == f"No runs in {place / 'runs'}.\n"
    run = launch(
        place / "model", None, CompressionConfig(seed=helper.SLOW), place / "runs", name="<b>mine</b> [red]x"
    )
    wait_for_events(place, "layer.finished")
    answer = json.loads(call("runs", "pause", run.id[:12], "--json").stdout)
    assert answer == {"run": run.id, "command": "pause", "ok": True, "detail": answer["detail"]}
    wait_for_events(place, "run.paused")
    listed = json.loads(call("runs", "list", "--json").stdout)["runs"]
    assert [entry["id"] for entry in listed] == [run.id] and listed[0]["status"] == "paused"
    shown = call("runs", "show", run.id).stdout
    assert "<b>mine</b> [red]x" in shown and "paused" in shown and "4 ternarization" in shown
    assert run.id in call("runs", "list").stdout
    state = json.loads(call("runs", "show", run.id, "--json").stdout)["state"]
    assert state["status"] == "paused" and state["layers"]
    assert call("runs", "resume", run.id).exit_code == 0
    assert call("runs", "stop", run.id).exit_code == 0
    wait_for_events(place, "run.finished")
    answer = call("runs", "resume", run.id)
    assert answer.exit_code == 1 and f"compress --resume {run.id}" in answer.stderr
    answer = call("runs", "show", "nothing-like-it")
    assert answer.exit_code == 1 and "no run 'nothing-like-it'" in answer.stderr


def test_resume_of_what_cannot_be_resumed(place: Path) -> None:
    assert call("compress", "model", "-o", "out", "--seed", helper.FAST, "--json").exit_code == 0
    answer = call("compress", "--resume", the_run(place).id)
    assert answer.exit_code == 2 and "is finished" in answer.stderr
    run = launch(place / "model", None, CompressionConfig(seed=helper.SLOW), place / "runs")
    answer = call("compress", "--resume", run.id)
    assert answer.exit_code == 2 and "at work already" in answer.stderr
    send(run, "stop")


def test_output_into_a_closed_pipe_is_no_error_message(place: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m tritpress inspect {place / 'model'} --help | head -c 10",
        shell=True, capture_output=True, text=True, check=False, cwd=place,
    )  # fmt: skip
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_the_dashboard_path_can_be_served_by_panel() -> None:
    answer = call("dashboard", "--path")
    assert answer.exit_code == 0 and Path(answer.stdout.strip()).exists()
    assert json.loads(call("dashboard", "--path", "--json").stdout) == {"path": answer.stdout.strip()}


def test_packages_that_are_missing_are_named_with_their_extra(place: Path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    for words, extra in [
        (["dashboard"], "dashboard"),
        (["eval", "model"], "hf"),
        (["generate", "model", "--prompt", "x"], "hf"),
    ]:
        answer = call(*words)
        assert answer.exit_code == 1 and f"pip install 'tritpress[{extra}]'" in answer.stderr
        assert answer.stderr.count("\n") == 1
