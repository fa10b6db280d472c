"""Events as lines to read: a time, what it is about, how grave it is, and a sentence."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.status import (
    NO_NAMES,
    STEP_TITLES,
    actual_words,
    gate_target_words,
    gate_title,
    passed_of,
)

Event = dict[str, Any]

KINDS = {
    "run": "Run",
    "step": "Steps",
    "layer": "Tensors",
    "evaluation": "Evaluations",
    "gate": "Gates",
    "output": "Outputs",
    "alert": "Alerts",
    "command": "Commands",
    "log": "Messages",
}
LEVELS = {"info": "Everything", "warning": "Warnings and worse", "error": "Errors"}
MARKS = {"info": "", "warning": "!", "error": "✕"}
TONES = {"info": "", "warning": "warning", "error": "bad"}
_RANK = {level: rank for rank, level in enumerate(LEVELS)}
SHOWN, GRAVE_SHOWN = 200, 500
"""At most so many lines are listed; the second where warnings and errors alone are asked for."""


@dataclass(frozen=True)
class EventLine:
    """`level` is info, warning or error; `key` tells the lines of a run apart. `day` is said where it differs
    from that of the line above (above the first stands today); `at` is the whole moment.
    """

    key: int
    time: str
    kind: str
    level: str
    text: str
    day: str
    at: str


@dataclass(frozen=True)
class EventSearch:
    words: str = ""
    kind: str = ""
    level: str = "info"


def most_listed(search: EventSearch) -> int:
    """So many lines of what `search` finds are listed."""
    return SHOWN if search.level == "info" else GRAVE_SHOWN


def finds(search: EventSearch, event: Event, names: Mapping[str, str] = NO_NAMES) -> bool:
    """Whether `search` finds the event."""
    if event["type"] not in DESCRIBE:
        return False
    kind, level, text = _described(event, names)
    if (search.kind and kind != search.kind) or _RANK[level] < _RANK.get(search.level, 0):
        return False
    folded = text.casefold()
    return all(word in folded for word in search.words.casefold().split())


def level_of(event: Event) -> str:
    """How grave an event of a known type is."""
    return _described(event, NO_NAMES)[1]


def event_lines(
    events: Sequence[Event],
    search: EventSearch = EventSearch(),
    names: Mapping[str, str] = NO_NAMES,
    now: float | None = None,
) -> tuple[list[dict[str, Any]], int]:
    """The last lines that `search` finds, newest first, as plain dicts with mark and tone, and how many more
    it finds. `names` are those of other runs by their ids.
    """
    found: list[dict[str, Any]] = []
    more, most = 0, most_listed(search)
    above = time.localtime(now)[:3]
    for place, event in enumerate(reversed(events)):
        if len(found) == most and search == EventSearch():
            return found, len(events) - place
        if not finds(search, event, names):
            continue
        if len(found) == most:
            more += 1
            continue
        moment = time.localtime(event.get("t") or 0)
        line = _line(event, names, moment, above)
        above = moment[:3]
        marks = {"kind": KINDS[line.kind], "mark": MARKS[line.level], "tone": TONES[line.level]}
        found.append({**asdict(line), **marks})
    return found, more


def _line(
    event: Event, names: Mapping[str, str], moment: time.struct_time, above: tuple[int, ...]
) -> EventLine:
    kind, level, text = _described(event, names)
    day = ""
    if moment[:3] != above:
        day = time.strftime("%d %b" if moment.tm_year == above[0] else "%d %b %Y", moment)
    return EventLine(
        event.get("seq") or 0,
        time.strftime("%H:%M:%S", moment),
        kind,
        level,
        text,
        day,
        time.strftime("%Y-%m-%d %H:%M:%S", moment),
    )


def _described(event: Event, names: Mapping[str, str]) -> Described:
    try:
        if event["type"] == "run.queued":  # alone in naming other runs
            event = {**event, "after": [names.get(run, run) for run in event.get("after") or ()]}
        return DESCRIBE[event["type"]](event)
    except (LookupError, TypeError, ValueError, AttributeError):
        return "log", "info", f"{event['type']}: written in a way that is not known here"


def left_out_words(more: int, older: int) -> str:
    """What the list does not show without a search: `more` of the events that are kept, `older` ones."""
    if not more + older:
        return ""
    hidden = fig.plural(more + older, "older event")
    return f"{hidden} not shown. A search, or a level or kind above, looks through all of them."


def found_words(found: int, listed: int) -> str:
    """What a search of the whole log found, and how much of that is listed."""
    if not found:
        return "The whole log was looked through: nothing of the kind is in it."
    words = f"{fig.plural(found, 'event')} found in the whole log"
    return f"{words}; the last {listed:,} of them are listed." if found > listed else f"{words}."


Described = tuple[str, str, str]


def _started(event: Event) -> Described:
    return "run", "info", "The run was taken up again" if event.get("resumed") else "The run began"


def _finished(event: Event) -> Described:
    if event.get("status") == "stopped":
        return "run", "warning", "The run was stopped"
    failed = "a gate or a check of the handoff failed" if event.get("exit_code") else "nothing judged failed"
    return "run", "info", f"The run is finished: {failed}"


def _failed(event: Event) -> Described:
    return "run", "error", f"The run failed: {event.get('error') or 'without a reason'}"


def _queued(event: Event) -> Described:
    return "run", "info", f"Waits in the queue for {', '.join(map(str, event.get('after') or ()))}"


def _step(event: Event) -> str:
    title = STEP_TITLES.get(event.get("step") or 0, (str(event.get("name")), ""))[0]
    return f"Step {event.get('step')}, {title.lower()}"


def _step_finished(event: Event) -> Described:
    if event.get("skipped"):
        return "step", "info", f"{_step(event)}: skipped, {event['skipped']}"
    return "step", "info", f"{_step(event)}: done in {fig.duration(event.get('seconds'))}"


def _model(event: Event) -> Described:
    model = event.get("model") or {}
    weights = fig.large_count(model.get("parameters"))
    return "run", "info", f"Found {model.get('architecture')}, {weights} weights"


def _layer(event: Event) -> Described:
    parts = (
        f"{fig.ratio(event.get('ratio'))} smaller",
        fig.plural(event["planes"], "plane") if isinstance(event.get("planes"), int) else "",
        f"{fig.percent(event.get('sparsity'))} zeros",
        f"cosine {fig.significant(event.get('cosine'), 4)}",
    )
    return "layer", "info", f"{event.get('name')}: {', '.join(part for part in parts if part)}"


def _evaluation(event: Event) -> Described:
    what = {"before": "Original", "packed": "Packed", "dequantized": "Dequantized"}
    when = str(event.get("when"))
    return (
        "evaluation",
        "info",
        f"{what.get(when, when)}: perplexity {fig.significant(event.get('perplexity'), 4)}, "
        f"top-1 {fig.percent(event.get('top1'))}",
    )


def _gate(event: Event) -> Described:
    name, passed, target = str(event.get("name")), passed_of(event.get("passed")), event.get("target")
    verdict = {True: "passed", False: "failed", None: "not measured"}[passed]
    return (
        "gate",
        "warning" if passed is False else "info",
        f"{gate_title(name)} {verdict}: {actual_words(name, event.get('actual'), target)} "
        f"(target {gate_target_words(name, target)})",
    )


def _tasks(event: Event) -> Described:
    count = len(event.get("results") or ())
    kept = fig.percent(event.get("accuracy_kept"))
    return "evaluation", "info", f"{fig.plural(count, 'task')}: {kept} of the original's accuracy kept"


def _handoff(event: Event) -> Described:
    items = event.get("items") or []
    passed = sum(item.get("passed") is True for item in items)
    level = "warning" if any(item.get("passed") is False for item in items) else "info"
    return "output", level, f"Handoff: {passed} of {fig.plural(len(items), 'check')} passed"


def _output(event: Event) -> Described:
    path = str(event.get("path"))
    name = os.path.join(os.path.basename(os.path.dirname(path)), os.path.basename(path))
    return "output", "info", f"Wrote {name} ({fig.size(event.get('bytes'))})"


def _alert(event: Event) -> Described:
    level = "error" if event.get("level") == "critical" else "warning"
    return "alert", level, str(event.get("message") or event.get("rule"))


def _ack(event: Event) -> Described:
    ok = event.get("ok", True)
    text = f"{event.get('command')}: {event.get('detail') or ('done' if ok else 'refused')}"
    return "command", "info" if ok else "warning", text


def _log(event: Event) -> Described:
    level = str(event.get("level") or "info")
    return "log", level if level in LEVELS else "info", str(event.get("message") or "")


DESCRIBE: dict[str, Callable[[Event], Described]] = {
    "run.started": _started,
    "run.queued": _queued,
    "run.paused": lambda _: ("run", "info", "Paused"),
    "run.resumed": lambda event: ("run", "info", f"Went on after {fig.duration(event.get('seconds'))}"),
    "run.finished": _finished,
    "run.failed": _failed,
    "step.started": lambda event: ("step", "info", f"{_step(event)}: began"),
    "step.finished": _step_finished,
    "model": _model,
    "plan": lambda event: (
        "run",
        "info",
        f"The plan is made: {fig.ratio(event.get('predicted_ratio'))} expected",
    ),
    "layer.finished": _layer,
    "evaluation": _evaluation,
    "tasks": _tasks,
    "gate": _gate,
    "handoff": _handoff,
    "output": _output,
    "alert": _alert,
    "command.ack": _ack,
    "log": _log,
}
