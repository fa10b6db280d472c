"""Dialogs: one that asks, one that edits what people write beside a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import panel as pn
import panel_material_ui as pmui

from tritpress.dashboard.components.html import Fragment, Markup
from tritpress.runs.labels import NAME_LENGTH, NOTE_LENGTH, Labels

BUTTON: dict[str, Any] = {"margin": (16, 8, 8, 0), "disable_elevation": True}


class Question:
    """A question with a few answers; an answer closes it. Cancel is always there."""

    def __init__(self, title: str, answers: Sequence[tuple[str, Callable[[], None]]]) -> None:
        self.text = Fragment()
        buttons = [
            pmui.Button(
                label=label,
                color="primary",
                variant="outlined" if i else "contained",
                on_click=lambda _, answer=answer: self._answer(answer),
                **BUTTON,
            )
            for i, (label, answer) in enumerate(answers)
        ]
        self.cancel = pmui.Button(
            label="Cancel", variant="text", on_click=lambda _: self._answer(self.cancelled), **BUTTON
        )
        self.dialog = pmui.Dialog(
            self.text.pane,
            pn.FlexBox(*buttons, self.cancel),
            title=title,
            title_variant="h6",
            close_on_click=True,
        )

    def ask(self, markup: Markup) -> None:
        """Open it with this text."""
        self.text.set(markup)
        self.dialog.open = True

    def cancelled(self) -> None:
        """Called when nobody wanted any of the answers by the button."""

    def _answer(self, answer: Callable[[], None]) -> None:
        self.dialog.open = False
        answer()


class LabelsDialog:
    """Edits name, tags and note of one run; `save(name, tags, note)` says what is wrong, "" when saved."""

    def __init__(self, save: Callable[[str, str, str], str]) -> None:
        self._save = save
        wide: dict[str, Any] = {"sizing_mode": "stretch_width", "margin": (8, 0), "size": "small"}
        self.name = pmui.TextInput(label="Name", max_length=NAME_LENGTH, **wide)
        self.tags = pmui.TextInput(label="Tags, with commas between", **wide)
        self.note = pmui.TextAreaInput(label="Note", rows=5, max_length=NOTE_LENGTH, **wide)
        self.error = Fragment()
        self.dialog: Any = pmui.Dialog(
            self.name,
            self.tags,
            self.note,
            self.error.pane,
            pn.FlexBox(
                pmui.Button(label="Save", color="primary", on_click=lambda _: self._saved(), **BUTTON),
                pmui.Button(
                    label="Cancel",
                    variant="text",
                    on_click=lambda _: self.dialog.param.update(open=False),
                    **BUTTON,
                ),
            ),
            title="Name, tags and note",
            title_variant="h6",
            close_on_click=True,
            width_option="sm",
        )

    def edit(self, name: str, labels: Labels) -> None:
        """Open it for a run of that name."""
        self.name.value = labels.name or name
        self.tags.value = ", ".join(labels.tags)
        self.note.value = labels.note
        self.error.set(Markup(""))
        self.dialog.open = True

    def _saved(self) -> None:
        # What is typed counts, also where the field was not left yet.
        problem = self._save(_typed(self.name), _typed(self.tags), _typed(self.note))
        if problem:
            self.error.set(Markup('<p class="bad small" role="alert">{}</p>').format(problem))
        else:
            self.dialog.open = False


def _typed(field: Any) -> str:
    return str(field.value_input or "")
