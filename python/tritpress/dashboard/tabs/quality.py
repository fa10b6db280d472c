"""Quality: the five gates, what they ask and what was measured, and the gradients of the pressed tensors."""

from __future__ import annotations

from typing import Any

from tritpress.dashboard.components.curves import GradientChart
from tritpress.dashboard.components.html import Fragment, Markup, empty, join, panel
from tritpress.dashboard.tabs.base import Shown, Tab
from tritpress.dashboard.views.quality import GateCard, gate_cards, gradients

TONES = {"passed": "good", "failed": "bad", "unmeasured": "warning", "waiting": "neutral"}


class Quality(Tab):
    key = "quality"
    title = "Quality"
    interests = frozenset(
        {
            "run.started",
            "run.finished",
            "run.failed",
            "gate",
            "gradient",
            "model",
            "step.finished",
            "step.started",
        }
    )

    def build(self) -> list[Any]:
        self.gates, self.under = Fragment(), Fragment()
        self.gates.pane.margin = (0, 0, 20, 0)
        self.chart = GradientChart()
        return [self.gates.pane, self.chart.pane, self.under.pane]

    def update(self, shown: Shown | None, changed: set[str] | None) -> None:
        if shown is None:
            self.gates.set(empty("No run is open", "Five gates judge what a run measured; they stand here."))
            self.under.set(Markup(""))
            self.chart.pane.visible = False
            return
        cards = join(map(_card, gate_cards(shown.state)))
        self.gates.set(panel("Gates", Markup('<div class="gates">{}</div>').format(cards)))
        found = gradients(shown.state)
        self.chart.pane.visible = bool(found.points)
        if found.points:
            self.chart.show(found)
            self.under.set(Markup('<p class="soft small">{}</p>').format(found.words))
        else:
            self.under.set(empty("No gradient norms", found.words))


def _card(card: GateCard) -> Markup:
    tone = TONES[card.verdict]
    margin = Markup('<div class="soft small">{}</div>').format(card.margin) if card.margin else Markup("")
    advice = Markup('<div class="advice">{}</div>').format(card.advice) if card.advice else Markup("")
    return Markup(
        '<article class="gate {}" data-gate="{}" data-verdict="{}"><div class="title">{}</div>'
        '<div class="top"><span class="value">{}</span><span class="verdict {}">{} {}</span></div>'
        '<div class="soft small">Target {}</div>{}{}</article>'
    ).format(
        tone,
        card.name,
        card.verdict,
        card.title,
        card.actual,
        tone,
        card.mark,
        card.word,
        card.target,
        margin,
        advice,
    )
