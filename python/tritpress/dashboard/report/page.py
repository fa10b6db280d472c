"""`report.html`: a run as one HTML file without scripts, which asks nobody for anything and prints on A4."""

from __future__ import annotations

import time
from pathlib import Path

from tritpress import __version__
from tritpress.dashboard.report import charts, sections
from tritpress.dashboard.report.facts import Facts
from tritpress.dashboard.report.markup import Markup, empty, join, markup
from tritpress.dashboard.report.picture import Picture
from tritpress.dashboard.report.tensor_charts import tuning, worst_pictures
from tritpress.dashboard.views.ending import early_words
from tritpress.dashboard.views.progress import pressed_words
from tritpress.dashboard.views.quality import gradients
from tritpress.dashboard.views.shades import SHADES

STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""The browser itself refuses whatever the file might ask for."""


def report_html(facts: Facts, now: float | None = None) -> str:
    """The whole report. Everything that the run wrote is escaped; what is not known is a dash."""
    now = time.time() if now is None else now
    parts = [
        ("figures", "Figures", sections.figures(facts)),
        ("gates", "Gates", sections.gates(facts)),
        ("steps", "Steps", sections.steps(facts, now)),
        ("grid", "Layers and parameters", _grid(facts)),
        ("zeros", "Sparsity", _zeros(facts)),
        ("error", "Error", _error(facts)),
        ("training", "Fine-tuning", _training(facts)),
        ("gradients", "Gradients", _gradients(facts)),
        ("layers", "Tensors", sections.layers(facts)),
        ("outputs", "Outputs", sections.outputs(facts)),
        ("handoff", "Handoff", sections.handoff(facts)),
        ("alerts", "Alerts", sections.alerts(facts)),
        ("configuration", "Configuration", sections.configuration(facts)),
        ("text", "Text", sections.text(facts)),
        ("environment", "Environment", sections.environment(facts)),
    ]
    shown = [(key, title, body) for key, title, body in parts if body]
    links = join(markup('<a href="#{}">{}</a>', key, title) for key, title, _ in shown)
    body = join(
        markup('<section id="{}"><h2>{}</h2>{}</section>', key, title, content)
        for key, title, content in shown
    )
    return str(
        markup(
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta http-equiv="Content-Security-Policy" content="{}">'
            '<meta name="generator" content="tritpress {}"><title>{} · tritpress</title>'
            '<style>{}{}</style></head><body>{}<nav aria-label="Parts of the report">{}</nav>{}'
            "<footer>{}</footer></body></html>\n",
            POLICY,
            __version__,
            facts.name,
            Markup(STYLE),
            Markup(_shade_rules()),
            sections.header(facts, now),
            links,
            body,
            f"Written by tritpress {__version__} on {sections.when(now)} from the event log of run "
            f"{facts.id}.",
        )
    )


def _shade_rules() -> str:
    return "".join(f"#shade-{key}:checked~.of-{key}{{display:block}}" for key in SHADES)


def _figure(picture: Picture) -> Markup:
    return markup('<figure data-chart="{}">{}</figure>', picture.key, Markup(picture.drawing.render()))


def _grid(facts: Facts) -> Markup:
    board = charts.board_of(facts)
    if not board.cells:
        return empty("No tensors are known", _early(facts, "They are found in step 1."))
    known = [s for s in SHADES.values() if any(s.value(cell) is not None for cell in board.cells)]
    if not known:
        return markup("<p>{}</p>{}", f"{pressed_words(facts.state)}.", empty("Nothing was pressed", _early(
            facts, "The grid fills in step 4.")))  # fmt: skip
    buttons, bodies = [], []
    for number, shade in enumerate(known):
        checked = Markup(" checked") if number == 0 else Markup("")
        buttons.append(
            markup(
                '<input type="radio" name="shade" id="shade-{}"{}><label for="shade-{}">{}</label>',
                shade.key,
                checked,
                shade.key,
                shade.title,
            )
        )
        pictures = join(map(_figure, charts.grids(board, shade)))
        bodies.append(markup('<div class="shade of-{}">{}</div>', shade.key, pictures))
    return markup(
        '<p>{}</p><div class="shades">{}{}</div>',
        f"{pressed_words(facts.state)}.",
        join(buttons),
        join(bodies),
    )


def _zeros(facts: Facts) -> Markup:
    board = charts.board_of(facts)
    if not any(bar.value is not None for bar in board.bars):
        return empty("No zeros to show", _early(facts, "They are counted while tensors are pressed."))
    words = markup(
        "<p>{}</p>",
        "Mean of each layer's codes; the thin stroke goes from its least to its most sparse tensor, a sign "
        "(!) marks what lies outside the gate's band.",
    )
    return words + join(map(_figure, charts.zeros(board, facts)))


def _error(facts: Facts) -> Markup:
    picture = charts.errors(charts.board_of(facts))
    if picture is None:
        return empty("No error to show", _early(facts, "It is measured while tensors are pressed."))
    weights, rest = worst_pictures(facts)
    parts = [
        _charts("Weights before and after: the tensors with the largest error", weights),
        _charts("Their scales and blocks", rest),
        _charts("What other thresholds would give, by the plan's losses", tuning(facts)),
    ]
    return _figure(picture) + join(parts)


def _charts(title: str, found: list[Picture]) -> Markup:
    if not found:
        return Markup("")
    return markup('<h3>{}</h3><div class="charts">{}</div>', title, join(map(_figure, found)))


def _training(facts: Facts) -> Markup:
    found = charts.training(facts)
    words = sections.training_words(facts)
    if not found:
        return empty("No curves", words)
    return markup('<p>{}</p><div class="charts">{}</div>', words, join(map(_figure, found)))


def _gradients(facts: Facts) -> Markup:
    pictures, found = charts.gradient_norms(facts), gradients(facts.state, lost=facts.lost)
    if not pictures:
        return empty("No gradient norms", found.words)
    return markup('{}<p class="soft">{}</p>', join(map(_figure, pictures)), found.words)


def _early(facts: Facts, words: str) -> str:
    """Why something is not there: the run broke off, or is not that far."""
    return early_words(facts.state, facts.lost, words, facts.remote)
