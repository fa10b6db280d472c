"""Overview: where the run stands, its five figures, its seven steps, its log."""

from __future__ import annotations

import time
from typing import Any

from panel import FlexBox

from tritpress.dashboard.components.html import Fragment, Markup, empty, join, note, panel
from tritpress.dashboard.tabs.base import CLOCK, Shown, Tab
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.overview import StepLine, Tile, facts, step_lines, tiles
from tritpress.dashboard.views.status import elapsed, status_of

STEP_MARKS = {"waiting": "", "running": "▸", "done": "✓", "skipped": "–", "failed": "✕"}
STEP_TONES = {"waiting": "neutral", "running": "live", "done": "good", "skipped": "neutral", "failed": "bad"}
LOG_LINES = 60


class Overview(Tab):
    key = "overview"
    title = "Overview"
    interests = frozenset(
        {
            CLOCK,
            "liveness",
            "run.started",
            "run.paused",
            "run.resumed",
            "run.finished",
            "run.failed",
            "step.started",
            "step.progress",
            "step.finished",
            "model",
            "plan",
            "figures",
            "evaluation",
            "gate",
            "log",
            "alert",
        }
    )

    def build(self) -> list[Any]:
        self.status, self.figures, self.steps = Fragment(), Fragment(), Fragment()
        self.facts, self.log = Fragment(), Fragment()
        self.steps.pane.styles = {"flex": "3 1 400px", "min-width": "0"}
        self.facts.pane.styles = {"flex": "2 1 320px", "min-width": "0"}
        for fragment in (self.status, self.figures, self.log):
            fragment.pane.margin = (0, 0, 14, 0)
        pair = FlexBox(
            self.steps.pane,
            self.facts.pane,
            sizing_mode="stretch_width",
            gap="14px",
            align_items="start",
            margin=(0, 0, 14, 0),
        )
        return [self.status.pane, self.figures.pane, pair, self.log.pane]

    def update(self, shown: Shown | None, changed: set[str] | None) -> None:
        if shown is None:
            self.status.set(
                empty("No run is open", "Open one from the list of runs, or choose a model and press Start.")
            )
            for fragment in (self.figures, self.steps, self.facts, self.log):
                fragment.set(Markup(""))
            return
        state = shown.state
        status = status_of(state, shown.lost)
        spent = elapsed(state, shown.now, shown.lost)
        working = state["status"] in ("created", "running", "paused") and not shown.lost
        spent_words = f" {'At work for' if working else 'Took'} {fig.duration(spent)}." if spent else ""
        sentence = status.sentence + spent_words
        self.status.set(note(status.tone, sentence))
        self.figures.set(
            Markup('<div class="tiles">{}</div>').format(join(_tile(tile) for tile in tiles(state)))
        )
        lines = step_lines(state, shown.now, shown.progress_bases, shown.lost)
        self.steps.set(panel("Steps", Markup('<ol class="steps">{}</ol>').format(join(map(_step, lines)))))
        rows = join(
            Markup("<dt>{}</dt><dd>{}</dd>").format(fact.name, fact.value) for fact in facts(state, shown.now)
        )
        self.facts.set(panel("Run", Markup("<dl>{}</dl>").format(rows)))
        self.log.set(_log(state))


def _tile(tile: Tile) -> Markup:
    verdict = Markup("")
    if tile.passed is not None:
        tone, word = ("good", "✓ passed") if tile.passed else ("bad", "✕ failed")
        verdict = Markup('<b class="{}">{}</b>').format(tone, word)
    target = Markup("<span>Gate {}</span>").format(tile.target) if tile.target else Markup("<span></span>")
    return Markup(
        '<div class="tile" data-figure="{}"><div class="name">{}</div><div class="value">{}</div>'
        '<div class="beside soft">{}</div><div class="target">{}{}</div></div>'
    ).format(tile.key, tile.title, tile.value, tile.beside, target, verdict)


def _step(line: StepLine) -> Markup:
    track = Markup("")
    if line.share is not None:
        share = f"{100 * line.share:.1f}"
        track = Markup(
            '<div class="track" role="progressbar" aria-valuenow="{}" aria-valuemin="0" aria-valuemax="100" '
            'aria-label="{}"><i style="width:{}%"></i></div>'
        ).format(share, line.title, share)
    word = line.word if line.state != "done" else ""
    when = " · ".join(part for part in (word, line.time) if part)
    return Markup(
        '<li class="{}" data-step="{}"><span class="mark {}" aria-hidden="true">{}</span>'
        '<span class="title">{}</span><span class="when">{}</span><div class="about">{}{}</div></li>'
    ).format(
        line.state,
        line.n,
        STEP_TONES.get(line.state, "neutral"),
        STEP_MARKS.get(line.state) or line.n,
        line.title,
        when,
        line.detail,
        track,
    )


def _log(state: dict[str, Any]) -> Markup:
    lines = sorted([*state["log"], *state["alerts"]], key=lambda line: line.get("t") or 0)[-LOG_LINES:]
    if not lines:
        return Markup("")
    rows = join(
        Markup('<li><span class="soft">{}</span><span class="{}">{}</span></li>').format(
            time.strftime("%H:%M:%S", time.localtime(line.get("t") or 0)),
            {"warning": "warning", "error": "bad"}.get(line.get("level") or "", ""),
            line.get("message", ""),
        )
        for line in reversed(lines)
    )
    return panel("Log", Markup('<ul class="log small" tabindex="0" aria-label="Log">{}</ul>').format(rows))
