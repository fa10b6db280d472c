"""Outputs: the two models side by side, the output directory, the checks before handing on."""

from __future__ import annotations

from typing import Any

from panel import FlexBox

from tritpress.dashboard.components.html import Fragment, Markup, empty, join, panel
from tritpress.dashboard.tabs.base import Shown, Tab
from tritpress.dashboard.views.outputs import CheckLine, ModelCard, Node, checklist, model_cards, tree


class Outputs(Tab):
    key = "outputs"
    title = "Outputs"
    interests = frozenset(
        {
            "run.started",
            "run.finished",
            "run.failed",
            "output",
            "handoff",
            "figures",
            "step.finished",
            "step.started",
        }
    )

    def build(self) -> list[Any]:
        self.models, self.tree, self.checks = Fragment(), Fragment(), Fragment()
        self.models.pane.margin = (0, 0, 14, 0)
        for fragment in (self.tree, self.checks):
            fragment.pane.styles = {"flex": "1 1 340px", "min-width": "0"}
        pair = FlexBox(
            self.tree.pane, self.checks.pane, sizing_mode="stretch_width", gap="14px", align_items="start"
        )
        return [self.models.pane, pair]

    def update(self, shown: Shown | None, changed: set[str] | None) -> None:
        if shown is None:
            self.models.set(
                empty("No run is open", "The packed and the dequantized model stand here side by side.")
            )
            self.tree.set(Markup(""))
            self.checks.set(Markup(""))
            return
        cards = join(map(_model, model_cards(shown.state)))
        self.models.set(Markup('<div class="pair">{}</div>').format(cards))
        root = tree(shown.state)
        self.tree.set(
            panel(
                "Output directory",
                Markup('<div class="tree mono"><div class="root break">{}</div>{}</div>').format(
                    root.name, _nodes(root.children)
                )
                if root
                else empty(
                    "Nothing written yet", "Both models are written in step 6, at once or not at all."
                ),
            )
        )
        checks = checklist(shown.state)
        self.checks.set(
            panel(
                "Handoff checklist",
                Markup('<ul class="checks">{}</ul>').format(join(map(_check, checks)))
                if checks
                else empty("Not checked yet", "Every item is a check of step 7 that can fail."),
            )
        )


def _model(card: ModelCard) -> Markup:
    if card.why:
        body: Markup = Markup('<p class="soft">{}</p>{}').format(card.about, empty("Not there", card.why))
    else:
        rows = join(
            Markup(
                '<tr><td class="break">{}</td><td>{}</td><td class="mono" title="sha256 {}">{}</td></tr>'
            ).format(line.name, line.size, line.sha256, line.sha256[:12])
            for line in card.files
        )
        body = Markup(
            '<p class="soft">{}</p><div class="size" style="margin-top:8px">{}</div>'
            '<div class="soft small">{}</div>'
            '<div class="mono break" style="margin-top:8px">{}</div>'
            '<div class="scroll"><table><thead><tr><th>File</th><th>Size</th><th>sha256</th></tr></thead>'
            '<tbody>{}</tbody></table></div><pre class="mono">{}</pre>'
        ).format(card.about, card.size, card.summary, card.path, rows, card.load)
    return Markup('<section class="panel model" data-model="{}"><h2>{}</h2>{}</section>').format(
        card.key, card.title, body
    )


def _nodes(nodes: list[Node]) -> Markup:
    return Markup("<ul>{}</ul>").format(
        join(
            Markup("<li>{}/{}</li>").format(node.name, _nodes(node.children))
            if node.folder
            else Markup(
                '<li class="leaf"><span class="break">{}</span><span class="soft">{}</span></li>'
            ).format(node.name, node.size)
            for node in nodes
        )
    )


def _check(line: CheckLine) -> Markup:
    return Markup(
        '<li><span class="mark {}">{}</span><span>{} <span class="visually-hidden">{}</span></span>'
        '<div class="about">{}</div></li>'
    ).format(line.tone, line.mark, line.title, line.word, line.detail)
