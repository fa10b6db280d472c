"""The parts of the report that are words and tables."""

from __future__ import annotations

import json
import platform
import time
from typing import Any
from urllib.parse import urlsplit

from tritpress.dashboard.report.facts import Facts
from tritpress.dashboard.report.markup import Markup, empty, join, markup, table
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.ending import over
from tritpress.dashboard.views.metrics import COLUMNS, curve_words, reasons
from tritpress.dashboard.views.metrics import table as before_after
from tritpress.dashboard.views.outputs import MODELS, checklist, model_cards
from tritpress.dashboard.views.overview import facts as run_facts
from tritpress.dashboard.views.overview import step_lines, tiles
from tritpress.dashboard.views.quality import TONES, gate_cards
from tritpress.dashboard.views.status import elapsed, headline, status_of
from tritpress.runs.diff import tensor_diffs

MARKS = {
    "waiting": "○",
    "running": "●",
    "done": "✓",
    "skipped": "–",
    "failed": "✕",
    "stopped": "■",
    "unreached": "–",
}
TALL = 60
"""Rows above which a table scrolls on the screen."""

CHOSEN = "chosen by tritpress"
UNSET = {
    "sparsity": "fitted, under the ceiling",
    "threshold": "fitted",
    "plan": "made by tritpress",
    "text": "none given",
    "epochs": "no limit given",
    "tokens": "no limit given",
    "minutes": "no limit given",
    "activation_bits": "none: float activations",
    "tasks": "none",
    "alerts": "none",
    "alert_webhook": "none",
    "alert_command": "none",
}
"""What a setting that was left open means."""

UNWRITTEN = "Written with the report at the end of a run; this one has none."


def when(t: float | None) -> str:
    """A moment, with its zone."""
    return time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(t)) if fig.known(t) else fig.NOTHING


def header(facts: Facts, now: float) -> Markup:
    """Name, state and what was pressed."""
    state, status = facts.state, status_of(facts.state, facts.lost, remote=facts.remote)
    head = headline(state)
    figure = Markup("")
    if head.ratio != fig.NOTHING:
        note = f" · {head.note}" if head.note else ""
        figure = markup(
            "<p><b>{} smaller than float32</b> · {} · {}{}</p>", head.ratio, head.bits, head.planes, note
        )
    tags = join(markup('<span class="chip neutral">{}</span>', tag) for tag in facts.labels.tags)
    written = markup('<p class="break">{}</p>', facts.labels.note) if facts.labels.note else Markup("")
    rows = [
        ("Run", facts.id),
        *(
            (fact.name, fact.value or fig.NOTHING)
            for fact in run_facts({**state, "config": facts.config}, now)
        ),
        ("Started", when(state.get("started"))),
        ("Took" if over(state, facts.lost) else "So far", fig.duration(elapsed(state, now, facts.lost))),
    ]
    return markup(
        '<header><h1>{}</h1><p><span class="chip {}" data-status="{}">{} {}</span>{}{}</p>{}{}{}</header>',
        facts.name,
        status.tone,
        "lost" if facts.lost else state["status"],
        status.mark,
        status.label,
        tags,
        status.sentence,
        figure,
        written,
        _pairs(rows),
    )


def figures(facts: Facts) -> Markup:
    """The five figures with their targets, then the table of before and after."""
    boxes = []
    for tile in tiles(facts.state, facts.lost):
        word = {True: "✓ passed", False: "✕ failed", None: ""}[tile.passed]
        tone = {True: "good", False: "bad", None: ""}[tile.passed]
        target = markup(
            '<div class="soft">Target {} <span class="{}">{}</span></div>', tile.target, tone, word
        ) if tile.target else Markup("")  # fmt: skip
        boxes.append(
            markup(
                '<div class="tile" data-figure="{}"><span class="soft">{}</span><b>{}</b>'
                '<div class="soft">{}</div>{}</div>',
                tile.key,
                tile.title,
                tile.value,
                tile.beside,
                target,
            )
        )
    rows = [
        (markup("{} <small>{}</small>", row.title, row.unit) if row.unit else row.title, *row.values)
        for row in before_after(facts.state)
    ]
    return markup(
        '<div class="tiles">{}</div><h3>Before and after</h3>{}{}',
        join(boxes),
        table(("Figure", *COLUMNS.values()), rows),
        join(markup('<p class="soft">{}</p>', sentence) for sentence in reasons(facts.state, facts.lost)),
    )


def gates(facts: Facts) -> Markup:
    """The five gates, what they ask, what was measured, what would help."""
    rows = []
    for card in gate_cards(facts.state, facts.lost):
        rows.append(
            (
                card.title,
                markup('<span class="{}">{} {}</span>', TONES[card.verdict], card.mark, card.word),
                card.actual,
                card.target,
                card.margin or fig.NOTHING,
                join(
                    [
                        markup("{}", card.advice or fig.NOTHING),
                        *(markup('<code class="mono">{}</code>', command) for command in card.commands),
                    ]
                ),
            )
        )
    head = ("Gate", "Verdict", "Measured", "Target", "Margin", "Advice")
    return table(head, rows, ("", "left", "", "", "", "wide"))


def steps(facts: Facts, now: float) -> Markup:
    """The seven steps."""
    rows = [
        (
            f"{line.n} {line.title}",
            f"{MARKS.get(line.state, '?')} {line.word}",
            line.time or fig.NOTHING,
            line.detail,
        )
        for line in step_lines(facts.state, now, lost=facts.lost)
    ]
    error = facts.state.get("error")
    said = markup('<p class="bad break"><b>Error.</b> {}</p>', error) if error else Markup("")
    return said + table(("Step", "State", "Time", "What"), rows, ("", "left", "", "wide"))


def training_words(facts: Facts) -> str:
    """What fine-tuning brought, or why there was none."""
    found = (facts.report or {}).get("fine_tuning")
    if not isinstance(found, dict) or not found.get("steps"):
        return curve_words(facts.state, facts.lost)
    parts = [
        f"{fig.count(found.get('steps'))} steps on {fig.count(found.get('tokens'))} tokens",
        f"validation loss {fig.significant(found.get('loss_first'), 4)} → "
        f"{fig.significant(found.get('loss_best'), 4)}",
        f"best at step {fig.count(found.get('best_step'))}",
        f"optimizer {found.get('optimizer')}",
        f"ended: {found.get('stopped')}",
        fig.duration(found.get("seconds")),
    ]
    return " · ".join(parts)


def layers(facts: Facts) -> Markup:
    """Every pressed tensor."""
    state = facts.state
    diffs = tensor_diffs(state)
    if not diffs:
        return Markup("")
    head = ("Tensor", "Layer", "Kind", "Shape", "Planes", "Group", "Bits", "Zeros", "Error", "Cosine", "MSE",
            "Sign flips", "Gradient")  # fmt: skip
    rows = []
    for diff in diffs:
        layer = state["layers"][diff.name]
        group = layer.get("group_size")
        rows.append(
            (
                diff.name,
                fig.NOTHING if diff.layer is None else diff.layer,
                diff.kind,
                fig.shape(layer),
                diff.planes,
                "row" if group == 0 else fig.count(group),
                fig.significant(diff.bits),
                fig.percent(diff.zeros),
                fig.percent(diff.error, 2),
                fig.significant(diff.cosine, 4),
                fig.significant(layer.get("mse")),
                fig.percent(diff.sign_flips, 2),
                fig.significant(state["gradients"].get(diff.name)),
            )
        )
    found = table(head, rows, ("break",), "layers")
    return markup('<div class="tall">{}</div>', found) if len(rows) > TALL else found


def outputs(facts: Facts) -> Markup:
    """Both models: files, sizes, checksums, how to load them."""
    found = []
    for card in model_cards(facts.state, facts.lost):
        body = (
            empty("Not there", card.why)
            if card.why
            else markup(
                '<p>{}{}{}</p>{}<pre class="mono">{}</pre>',
                f"{card.size}{' · ' if card.summary else ''}{card.summary}",
                markup(' · <span class="mono break">{}</span>', card.path) if card.path else "",
                f" · {card.place}" if card.place else "",
                table(
                    ("File", "Size", "sha256"),
                    [
                        (f.name, f.size, markup('<span class="mono break">{}</span>', f.sha256))
                        for f in card.files
                    ],
                    ("break", "", "wide"),
                ),
                card.load,
            )
        )
        found.append(markup("<h3>{}</h3>{}", card.title, body))
    assert len(found) == len(MODELS)
    return join(found)


def handoff(facts: Facts) -> Markup:
    """The checks before handing on."""
    rows = [
        (
            line.title,
            markup('<span class="{}">{} {}</span>', line.tone, line.mark, line.word),
            line.detail or fig.NOTHING,
        )
        for line in checklist(facts.state)
    ]
    if not rows:
        return empty("Not checked", "Every item is a check of step 7; this run has not made them.")
    return table(("Check", "Result", "Detail"), rows, ("", "left", "wide"))


def alerts(facts: Facts) -> Markup:
    """What was raised while the run was at work; nothing where nothing was."""
    found = facts.state["alerts"]
    rows = [
        (when(alert.get("t")), "✕ critical" if alert.get("level") == "critical" else "! warning",
         alert.get("rule") or fig.NOTHING, alert.get("message") or fig.NOTHING)
        for alert in found
    ]  # fmt: skip
    return (
        table(("When", "Level", "Rule", "Message"), rows, ("", "left", "left", "wide"))
        if rows
        else Markup("")
    )


def configuration(facts: Facts) -> Markup:
    """What the run was asked to do."""
    config = {key: shareable(key, value) for key, value in facts.config.items()}
    if not config:
        return empty("Not known", "The run has not begun.")
    return _pairs([(key, words(value, UNSET.get(key, CHOSEN))) for key, value in config.items()])


def shareable(key: str, value: Any) -> Any:
    """A setting as it may be handed on: addresses and commands of alerts often carry secrets."""
    if value and key == "alert_webhook":
        return f"{urlsplit(str(value)).hostname or 'an address'} (rest not shown)"
    if value and key == "alert_command":
        return "a command (not shown)"
    return value


def words(value: Any, unset: str = CHOSEN) -> str:
    """A value of the configuration as text; `unset` stands for what was left open."""
    if value is None or value == []:
        return unset
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(words, value))
    if isinstance(value, dict):
        return " · ".join(f"{key}: {words(one)}" for key, one in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def text(facts: Facts) -> Markup:
    """Where the text came from, and the hashes of its four parts."""
    found = (facts.report or {}).get("text")
    if not isinstance(found, dict):
        reason = "No text was used by this run." if facts.report else UNWRITTEN
        return empty("Not known", reason)
    return _pairs([(key.replace("_", " "), words(value) if value is not None else fig.NOTHING)
                   for key, value in found.items()], mono=True)  # fmt: skip


def environment(facts: Facts) -> Markup:
    """Versions and machine, as the run found them."""
    report = facts.report or {}
    rows = [(name, words(version)) for name, version in _dict(report.get("versions")).items()]
    machine = _dict(report.get("machine")) or _dict(facts.record.get("chosen"))
    rows += [(name.replace("_", " "), words(value)) for name, value in machine.items()]
    rows.append(("seed", words((facts.config or {}).get("seed", fig.NOTHING))))
    said = Markup("") if report else markup('<p class="soft">{}</p>', f"Versions: {UNWRITTEN}")
    written = f"Python {platform.python_version()}"
    return said + _pairs([*rows, ("this file written with", written)])


def _dict(value: Any) -> dict[str, Any]:
    """`value` where it is what it should be: a report.json may come from elsewhere."""
    return value if isinstance(value, dict) else {}


def _pairs(rows: list[tuple[str, Any]], mono: bool = False) -> Markup:
    kind = "break mono" if mono else "break"
    body = join(
        markup('<tr><th scope="row">{}</th><td class="wide {}">{}</td></tr>', name, kind, value)
        for name, value in rows
    )
    return markup('<table class="pairs"><tbody>{}</tbody></table>', body)
