"""lm-eval tasks of a run: opened in step 1, run on the original in step 2, on the packed model in step 7."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tritpress.errors import UsageError

if TYPE_CHECKING:
    from tritpress.steps.work import Work


def check_tasks(work: Work) -> None:
    """Open the tasks, so that one that cannot be had is refused before any work.

    Raises `UsageError` and `InputError` as `evaluate.tasks.open_tasks` does, and where nothing is evaluated.
    """
    if not work.config.tasks:
        return
    from tritpress.evaluate.tasks import missing_lm_eval

    why = missing_lm_eval() or work.torch_missing
    if why is None and not work.config.evaluate:
        why = "nothing is evaluated with --no-eval"
    if why:
        raise UsageError(f"--tasks: {why}")
    _ = work.tasks


def tasks_before(work: Work) -> None:
    """Step 2: the original's scores, kept in the work folder."""
    if work.config.tasks and work.read_json("tasks.json") is None:
        work.write_json("tasks.json", _run(work, work.original, step=2))


def tasks_after(work: Work, model: Any) -> None:
    """Step 7: the packed model's scores beside the original's; what the accuracy gate then reads."""
    if not work.config.tasks:
        return
    from tritpress.evaluate.tasks import TaskScore, compare_tasks

    before, after = work.read_json("tasks.json") or [], _run(work, model, step=7)
    work.task_results = compare_tasks(
        [TaskScore.from_json(one) for one in before],
        [TaskScore.from_json(one) for one in after],
        seed=work.config.seed,
    )
    work.context.emit("tasks", **work.task_results)


def _run(work: Work, model: Any, step: int) -> list[dict[str, Any]]:
    from tritpress.evaluate.tasks import run_tasks

    def progress(done: int, total: int) -> None:
        work.context.emit("step.progress", step=step, done=done, total=total, detail="questions of tasks")

    scores = run_tasks(
        work.tasks,
        model,
        work.tokenizer,
        longest=work.longest,
        limit=work.config.task_limit,
        seed=work.config.seed,
        context=work.context,
        progress=progress,
    )
    return [score.to_json() for score in scores]
