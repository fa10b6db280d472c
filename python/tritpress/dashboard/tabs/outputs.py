"""Outputs: the two models side by side, their directory, the checks before handing on, files to take away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from panel import FlexBox

from tritpress.dashboard.components.export import Downloads, copy_button, csv_button
from tritpress.dashboard.components.html import Fragment, Markup, empty, join, note, panel
from tritpress.dashboard.report.bundle import Bundle, bundle, report_json
from tritpress.dashboard.report.facts import Facts, read_facts
from tritpress.dashboard.report.page import report_html
from tritpress.dashboard.tabs.base import Shown, Tab
from tritpress.dashboard.views.ending import broke_off
from tritpress.dashboard.views.outputs import (
    TREE_ENTRIES,
    CheckLine,
    ModelCard,
    Node,
    checklist,
    model_cards,
    no_json,
    standing,
    tree,
    zip_words,
)

CUT = Markup('<p class="soft small" data-cut>The first {} files are listed: the folder has more.</p>').format(
    TREE_ENTRIES
)
HTML, JSON = "text/html;charset=utf-8", "application/json"


class Outputs(Tab):
    key = "outputs"
    title = "Outputs"
    interests = frozenset(
        {
            "run.started",
            "run.finished",
            "run.failed",
            "run.paused",
            "liveness",
            "output",
            "handoff",
            "figures",
            "step.finished",
            "step.started",
        }
    )
    last: Shown | None = None

    def build(self) -> list[Any]:
        self.said, self.models, self.tree, self.checks = Fragment(), Fragment(), Fragment(), Fragment()
        self.downloads = Downloads(self._make)
        self.downloads.margin = self.said.pane.margin = self.models.pane.margin = (0, 0, 14, 0)
        for fragment in (self.tree, self.checks):
            fragment.pane.styles = {"flex": "1 1 340px", "min-width": "0"}
        pair = FlexBox(
            self.tree.pane, self.checks.pane, sizing_mode="stretch_width", gap="14px", align_items="start"
        )
        return [self.downloads, self.said.pane, self.models.pane, pair]

    def update(self, shown: Shown | None, changed: set[str] | None) -> None:
        self.last = shown
        self.downloads.visible = shown is not None
        if shown is None:
            self.models.set(
                empty("No run is open", "The packed and the dequantized model stand here side by side.")
            )
            for fragment in (self.said, self.tree, self.checks):
                fragment.set(Markup(""))
            return
        self.downloads.show(
            [
                ["html", "Report (HTML)", ""],
                ["json", "Report (JSON)", no_json(shown.state, shown.lost)],
                ["zip", zip_words(shown.state), ""],
            ]
        )
        tone, words = standing(shown.state, shown.lost, shown.remote)
        self.said.set(note(tone, words) if words else Markup(""))
        cards = join(map(_model, model_cards(shown.state, shown.lost)))
        self.models.set(Markup('<div class="pair">{}</div>').format(cards))
        over, done = broke_off(shown.state, shown.lost), shown.state["status"] == "finished"
        root = tree(shown.state)
        self.tree.set(
            panel(
                "Output directory",
                Markup('<div class="tree mono"><div class="root break">{}</div>{}</div>{}').format(
                    root.name, _nodes(root.children), CUT if root.cut else ""
                )
                if root
                else empty(
                    "No file was named" if done else "Nothing written" if over else "Nothing written yet",
                    "This run is finished, but told of no file that it wrote."
                    if done
                    else "The run ended before it wrote the models: they are written at once or not at all."
                    if over
                    else "The models are written in step 6, at once or not at all.",
                ),
            )
        )
        checks = checklist(shown.state)
        self.checks.set(
            panel(
                "Handoff checklist",
                Markup('<ul class="checks">{}</ul>').format(join(map(_check, checks)))
                if checks
                else empty(
                    "Not checked" if over or done else "Not checked yet",
                    "This run is finished, but told of no checks."
                    if done
                    else "The run ended before its outputs were checked."
                    if over
                    else "Every item is a check of step 7 that can fail.",
                ),
            )
        )

    # What is taken away

    def _make(self, key: str) -> None:
        """Make that file beside the server's loop and hand it to the browser."""
        shown, downloads = self.last, self.downloads
        if shown is None:
            downloads.fail("No run is open.")
            return
        work: dict[str, Callable[[Facts], Any]] = {"html": report_html, "json": report_json, "zip": bundle}

        def make() -> tuple[Facts, Any] | str:
            try:
                facts = read_facts(shown.path, shown.state, shown.lost)
                return facts, work[key](facts)
            except Exception as error:  # whatever a damaged run brings: the button must come back
                return f"The file was not made: {error}"

        def hand_over(result: tuple[Facts, Any] | str) -> None:
            if isinstance(result, str):
                downloads.fail(result)
                return
            facts, made = result
            if isinstance(made, Bundle):
                downloads.send_bundle(made.name, list(made.files), list(made.drawings))
            elif made is None:
                downloads.fail("This run has no report.json.")
            else:
                downloads.send_file(f"{facts.file_name}-report.{key}", made, HTML if key == "html" else JSON)

        self.page.background(make, hand_over, what="The file was not made")


def _model(card: ModelCard) -> Markup:
    if card.why:
        body: Markup = Markup('<p class="soft" style="margin-bottom:10px">{}</p>{}').format(
            card.about, empty("Not there", card.why)
        )
    else:
        rows = join(
            Markup(
                '<tr><td class="break">{}</td><td>{}</td><td class="mono" title="sha256 {}">'
                '<span data-no-csv>{}…</span> {}<span class="visually-hidden">{}</span></td></tr>'
            ).format(
                line.name,
                line.size,
                line.sha256,
                line.sha256[:12],
                copy_button(line.sha256, f"sha256 of {line.name}"),
                line.sha256,
            )
            for line in card.files
        )
        body = Markup(
            '<p class="soft">{}</p><div class="size" style="margin-top:8px">{}</div>'
            '<div class="soft small">{}</div>'
            '{}<div class="with-button" style="margin-top:12px"><b>Files</b>{}</div>'
            '<div class="scroll"><table><thead><tr><th>File</th><th>Size</th><th>sha256</th></tr></thead>'
            "<tbody>{}</tbody></table></div>"
            '<div class="with-button" style="margin-top:12px"><b>How to load it</b>{}</div>'
            '<pre class="mono" style="margin-top:6px" tabindex="0">{}</pre>'
        ).format(
            card.about,
            card.size,
            card.summary,
            _place(card),
            csv_button(f"{card.key}-files"),
            rows,
            copy_button(card.load, f"how to load the {card.key} model"),
            card.load,
        )
    return Markup('<section class="panel model" data-model="{}"><h2>{}</h2>{}</section>').format(
        card.key, card.title, body
    )


def _place(card: ModelCard) -> Markup:
    """Where the model lies: its path to copy where it is known, and which machine's it is."""
    path = Markup(
        '<div class="with-button" style="margin-top:8px"><span class="mono break">{}</span>{}</div>'
    ).format(card.path, copy_button(card.path, f"path of the {card.key} model"))
    place = Markup('<div class="soft small">{}</div>').format(card.place)
    return (path if card.path else Markup("")) + (place if card.place else Markup(""))


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
