"""lm-eval tasks as the accuracy gate: opened before any work, run on the original and on the packed model.

A task is a name that lm-eval knows, a YAML task file, or a folder of such files. Data files that a local task
names are looked for beside it, so that it needs no network. What counts of each task is its accuracy (or
exact match, or whatever mean over its documents it has where more is better).
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tritpress.errors import InputError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from tritpress.events.context import RunContext

PREFERRED = ("acc", "exact_match", "em", "acc_norm", "f1")
"""Metrics in the order in which one is taken of a task that has several."""

SAMPLES = 4000


@dataclass(frozen=True)
class Tasks:
    """`loaded`: what lm-eval's `evaluate` takes; `metrics`: task -> the metric that counts."""

    loaded: Any
    metrics: dict[str, str]


@dataclass(frozen=True)
class TaskScore:
    """One task on one model: `value` is the mean over `hits` (one figure a document)."""

    task: str
    metric: str
    value: float
    hits: list[float]

    def to_json(self) -> dict[str, Any]:
        return {"task": self.task, "metric": self.metric, "value": self.value, "hits": self.hits}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TaskScore:
        return cls(**values)


def missing_lm_eval() -> str | None:
    """Why no task can be run; None when they can."""
    if importlib.util.find_spec("lm_eval") is None:
        return "lm-eval is not installed (pip install 'tritpress[eval]')"
    return None


def open_tasks(names: Sequence[str]) -> Tasks:
    """Find the tasks and open their data sets.

    Raises `UsageError` without lm-eval, for a name that is neither a task nor a file, and for a task that
    measures no accuracy or runs code that a model writes; `InputError` for a data set that cannot be had and
    a task file that is none.
    """
    why = missing_lm_eval()
    if why:
        raise UsageError(f"--tasks: {why}")
    tasks: dict[str, Any] = {}
    known: Any = None
    for name in dict.fromkeys(names):
        path = Path(os.path.expanduser(name))
        if path.exists():
            found = _local(path)
        elif path.suffix in (".yaml", ".yml") or "/" in name:
            raise InputError(f"--tasks: the task file {name} does not exist")
        else:
            if known is None:
                from lm_eval.tasks import TaskManager

                known = TaskManager()
            if name not in known.task_index:
                near = difflib.get_close_matches(name, known.all_tasks, 3, 0.75)
                hint = f"; near are {', '.join(near)}" if near else ""
                raise UsageError(
                    f"--tasks: lm-eval has no task {name!r}, and there is no such file or folder{hint}"
                )
            found = _open(known, [name], name)
        for task, value in found.items():
            if task in tasks:
                raise UsageError(f"--tasks: the task {task} is given twice")
            tasks[task] = value
    return Tasks({"tasks": tasks, "groups": {}}, {name: _metric(name, task) for name, task in tasks.items()})


def run_tasks(
    tasks: Tasks,
    model: nn.Module,
    tokenizer: Any,
    *,
    longest: int,
    limit: int | None = None,
    seed: int = 0,
    context: RunContext | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[TaskScore]:
    """Score `model` on every task, on the same documents and few-shot examples each time.

    `longest`: tokens the model takes at once. `limit`: documents of each task at most.
    """
    from lm_eval.evaluator import evaluate

    from tritpress.errors import TritpressError
    from tritpress.evaluate.task_model import TaskModel

    for task in tasks.loaded["tasks"].values():
        task.set_fewshot_seed(seed=seed)
    training = model.training
    model.eval()
    try:
        with _quiet():
            found: Any = evaluate(
                TaskModel(model, tokenizer, longest, context, progress),
                tasks.loaded,
                limit=limit,
                bootstrap_iters=0,
            )
    except TritpressError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, NotImplementedError) as error:
        raise InputError(f"--tasks: lm-eval cannot run {', '.join(tasks.metrics)}: {_line(error)}") from error
    finally:
        model.train(training)
    scores = []
    for name, metric in tasks.metrics.items():
        samples = found["samples"][name]
        first = samples[0]["filter"]
        hits = [float(sample[metric]) for sample in samples if sample["filter"] == first]
        scores.append(TaskScore(name, metric, float(np.mean(hits)), hits))
    return scores


def compare_tasks(before: list[TaskScore], after: list[TaskScore], seed: int = 0) -> dict[str, Any]:
    """The report's `tasks`: {accuracy_kept, interval, results: [{task, metric, original, packed, kept,
    documents}]}.

    `accuracy_kept` is the mean over the tasks of packed / original; a task in which the original scores 0 has
    nothing to keep and is left out of it. `interval`: 95 %, bootstrap over documents, both models' together.
    """
    results = [
        {
            "task": one.task,
            "metric": one.metric,
            "original": one.value,
            "packed": other.value,
            "kept": other.value / one.value if one.value else None,
            "documents": len(one.hits),
        }
        for one, other in zip(before, after, strict=True)
    ]
    kept = [float(r["kept"]) for r in results if r["kept"] is not None]
    return {
        "accuracy_kept": float(np.mean(kept)) if kept else None,
        "interval": _interval([(a, b) for a, b in zip(before, after, strict=True) if a.value], seed),
        "results": results,
    }


def _interval(pairs: list[tuple[TaskScore, TaskScore]], seed: int) -> list[float] | None:
    if not pairs or any(len(before.hits) < 2 for before, _ in pairs):
        return None
    random = np.random.default_rng(seed)
    means = np.zeros(SAMPLES)
    for before, after in pairs:
        top, bottom = np.asarray(after.hits), np.asarray(before.hits)
        for i in range(SAMPLES):
            draw = random.integers(0, len(top), len(top))
            below = bottom[draw].sum()
            if below <= 0:
                return None
            means[i] += top[draw].sum() / below / len(pairs)
    low, high = np.quantile(means, [0.025, 0.975])
    return [float(low), float(high)]


def _local(path: Path) -> dict[str, Any]:
    """The tasks of a YAML file, or of every such file in a folder."""
    from lm_eval.tasks import TaskManager

    folder = path if path.is_dir() else path.parent
    with _quiet():
        known = TaskManager(include_path=folder, include_defaults=False)
    entries = {name: entry for name, entry in known.task_index.items() if entry.yaml_path is not None}
    if path.is_file():
        entries = {n: e for n, e in entries.items() if e.yaml_path.resolve() == path.resolve()}
    wanted: list[Any] = []
    for name, entry in entries.items():
        config = entry.cfg or {}
        if "group" in config:
            if path.is_file():
                wanted.append(name)
            continue  # in a folder its tasks have files of their own
        files = (config.get("dataset_kwargs") or {}).get("data_files")
        beside = _beside(files, entry.yaml_path.parent)
        if beside == files:
            wanted.append(name)
        else:
            kwargs = {**config["dataset_kwargs"], "data_files": beside}
            wanted.append({"group": f"{name} here", "task": [{"task": name, "dataset_kwargs": kwargs}]})
    if not wanted:
        raise InputError(
            f"--tasks: {path} holds no lm-eval task: a YAML file with `task`, `dataset_path`, `doc_to_text` "
            "and so on is expected"
        )
    return _open(known, wanted, str(path))


def _beside(files: Any, folder: Path) -> Any:
    """Names of data files with those that lie in `folder` made whole paths."""
    if isinstance(files, dict):
        return {key: _beside(value, folder) for key, value in files.items()}
    if isinstance(files, list):
        return [_beside(value, folder) for value in files]
    if isinstance(files, str) and not Path(files).is_absolute() and list(folder.glob(files)):
        return str(folder.resolve() / files)
    return files


def _open(known: Any, wanted: list[Any], name: str) -> dict[str, Any]:
    """Task name -> task with its data set, as lm-eval makes them."""
    try:
        with _quiet():
            return known.load(wanted)["tasks"]
    except (ConnectionError, OSError) as error:  # the hub cannot be reached, a file is not there
        raise InputError(
            f"--tasks {name}: its data set cannot be had: {_line(error)}; a task file whose data_files lie "
            "beside it needs no network"
        ) from error
    except Exception as error:  # lm-eval and datasets raise anything at all for what a YAML file may hold
        raise InputError(f"--tasks {name}: lm-eval cannot open the task: {_line(error)}") from error


def _metric(name: str, task: Any) -> str:
    if getattr(task, "UNSAFE_CODE", False):
        raise UsageError(f"--tasks {name}: it runs code that the model writes, which is not done here")
    better = {metric: up for metric, up in task.higher_is_better().items() if up}
    means = [m for m in better if getattr(task.aggregation().get(m), "__name__", "") in ("mean", "nanmean")]
    for metric in (*PREFERRED, *means):
        if metric in means:
            return metric
    has = ", ".join(task.higher_is_better()) or "nothing"
    raise UsageError(f"--tasks {name}: it measures {has}; the accuracy gate needs a task with an accuracy")


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no chatter of lm-eval and datasets."""
    import logging

    import datasets

    shown = not datasets.utils.are_progress_bars_disabled()
    levels = {name: logging.getLogger(name).level for name in ("lm_eval", "datasets")}
    try:
        datasets.disable_progress_bars()
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with contextlib.redirect_stderr(io.StringIO()):  # lm-eval's own bars have no switch
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
