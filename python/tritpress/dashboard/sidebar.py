"""The sidebar: what to press and how, and the buttons that start and steer the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import panel as pn
import panel_material_ui as pmui

from tritpress.dashboard.components.html import Fragment, Markup, join
from tritpress.dashboard.views.form import Controls, Form, ModelCheck, check_model, command_of, toml_of
from tritpress.errors import UsageError

if TYPE_CHECKING:
    from bokeh.server.callbacks import TimeoutCallback

MARGIN = (8, 14, 4, 14)
BUDGET_LABELS = {"epochs": "Epochs", "tokens": "Tokens", "minutes": "Minutes"}
AMOUNT_LABELS = {
    "epochs": "Epochs of training",
    "tokens": "Tokens of training",
    "minutes": "Minutes of training",
}
BUDGET_START = {"epochs": 1.0, "tokens": 100_000.0, "minutes": 5.0}
CHECK_DELAY = 250
"""Milliseconds without typing after which the path is looked at."""


class Sidebar:
    """The form and the buttons. What a button does is the session's business (`actions`)."""

    def __init__(self, form: Form, actions: dict[str, Callable[[], None]]) -> None:
        self.default = form
        self.check = ModelCheck(False, "", ())
        self._check_due: TimeoutCallback | None = None
        self._filling = False
        self._build()
        self._connect(actions)
        self.fill(form)

    def _build(self) -> None:
        wide: dict[str, Any] = {"sizing_mode": "stretch_width", "margin": MARGIN, "size": "small"}
        self.model = pmui.TextInput(label="Model folder", placeholder="/path/to/a/model", **wide)
        self.found = Fragment()
        self.found.pane.margin = (0, 14, 6, 14)
        self.own_ratio = pmui.Switch(
            label="Own target ratio", value=False, size="small", margin=(6, 14, 0, 16)
        )
        self.ratio = pmui.FloatSlider(
            label="Ratio",
            start=4,
            end=12,
            step=0.25,
            value=6,
            sizing_mode="stretch_width",
            size="small",
            margin=(0, 20, 0, 20),
            format="0.00",
        )
        self.own_sparsity = pmui.Switch(
            label="Own sparsity", value=False, size="small", margin=(6, 14, 0, 16)
        )
        self.sparsity = pmui.FloatSlider(
            label="Sparsity",
            start=0.2,
            end=0.6,
            step=0.01,
            value=0.35,
            sizing_mode="stretch_width",
            size="small",
            margin=(0, 20, 0, 20),
            format="0 %",
        )
        self.finetune = pmui.Switch(label="Fine-tune", value=True, size="small", margin=(6, 14, 4, 16))
        self.budget = pmui.RadioButtonGroup(
            label="",
            options={title: key for key, title in BUDGET_LABELS.items()},
            value="tokens",
            size="small",
            margin=(4, 14, 4, 14),
            color="primary",
        )
        self.amount = pmui.FloatInput(
            label="Tokens of training", value=100_000, start=0.1, format="0,0.[0]", **wide
        )
        self.grokfast = pmui.FloatInput(
            label="Grokfast λ (lambda)", value=0.1, start=0.0, end=10.0, step=0.05, **wide
        )
        self.method = pmui.Select(
            label="Method",
            options={"Automatic": "auto", "Fast (no text)": "fast", "GPTQ sweep": "gptq"},
            **wide,
        )
        self.planes = pmui.Select(
            label="Planes",
            options={"By the ratio": 0, "1 (1.58-bit)": 1, "2": 2, "3": 3},
            value=0,
            **wide,
        )
        self.seed = pmui.IntInput(label="Seed", value=0, start=0, **wide)
        self.calibration = pmui.IntInput(
            label="Calibration tokens", value=16_384, start=256, step=1024, **wide
        )
        self.evaluation = pmui.IntInput(label="Evaluation tokens", value=32_768, start=256, step=1024, **wide)
        self.equal = Fragment()
        self.equal.pane.margin = (4, 14, 8, 14)
        self.more = pmui.Accordion(
            (
                "More settings",
                pn.Column(
                    self.method,
                    self.planes,
                    self.seed,
                    self.calibration,
                    self.evaluation,
                    self.equal.pane,
                    sizing_mode="stretch_width",
                    margin=0,
                ),
            ),
            sizing_mode="stretch_width",
            margin=(6, 14, 6, 14),
            title_variant="body2",
            disable_gutters=True,
        )
        button: dict[str, Any] = {"sizing_mode": "stretch_width", "size": "medium", "disable_elevation": True}
        self.start = pmui.Button(
            label="Start", icon="play_arrow", color="primary", margin=(10, 14, 4, 14), **button
        )
        self.toggle = pmui.Button(
            label="Pause", icon="pause", variant="outlined", margin=(4, 4, 4, 14), **button
        )
        self.stop = pmui.Button(label="Stop", icon="stop", variant="outlined", margin=(4, 14, 4, 4), **button)
        self.reset = pmui.Button(
            label="Reset", icon="restart_alt", variant="text", margin=(4, 14, 4, 14), **button
        )
        self.message = Fragment()
        self.message.pane.margin = (4, 14, 12, 14)
        self.fields = (
            self.model,
            self.own_ratio,
            self.ratio,
            self.own_sparsity,
            self.sparsity,
            self.finetune,
            self.budget,
            self.amount,
            self.grokfast,
            self.method,
            self.planes,
            self.seed,
            self.calibration,
            self.evaluation,
        )
        self.objects = [
            _heading("Model"),
            self.model,
            self.found.pane,
            _heading("Compression"),
            self.own_ratio,
            self.ratio,
            self.own_sparsity,
            self.sparsity,
            _heading("Fine-tuning"),
            self.finetune,
            self.budget,
            self.amount,
            self.grokfast,
            self.more,
            self.start,
            pn.Row(self.toggle, self.stop, sizing_mode="stretch_width", margin=0),
            self.reset,
            self.message.pane,
        ]

    def _connect(self, actions: dict[str, Callable[[], None]]) -> None:
        def act(name: str, _event: Any) -> None:
            actions[name]()

        for button, name in (
            (self.start, "start"),
            (self.toggle, "toggle"),
            (self.stop, "stop"),
            (self.reset, "reset"),
        ):
            button.on_click(partial(act, name))
        self.model.param.watch(self._typed, "value_input")
        self.model.param.watch(lambda _: self.look(), "value")
        self.budget.param.watch(self._budget_chosen, "value")
        for field in self.fields[1:]:
            field.param.watch(lambda _: self._settle(), "value")

    def form(self) -> Form:
        """What is chosen now."""
        return Form(
            model=self.check.path or self.model.value.strip(),
            ratio=float(self.ratio.value) if self.own_ratio.value else None,
            sparsity=float(self.sparsity.value) if self.own_sparsity.value else None,
            finetune=self.finetune.value,
            budget=self.budget.value,
            amount=self.amount.value or 0,
            grokfast_lambda=self.grokfast.value if self.grokfast.value is not None else 0.0,
            method=self.method.value,
            planes=self.planes.value or None,
            seed=self.seed.value or 0,
            calibration_tokens=self.calibration.value or 0,
            evaluation_tokens=self.evaluation.value or 0,
        )

    def fill(self, form: Form) -> None:
        """Show these choices."""
        self._filling = True
        try:
            self.own_ratio.value = form.ratio is not None
            if form.ratio is not None:
                self.ratio.param.update(start=min(4, form.ratio), end=max(12, form.ratio), value=form.ratio)
            self.own_sparsity.value = form.sparsity is not None
            if form.sparsity is not None:
                self.sparsity.param.update(
                    start=min(0.2, form.sparsity), end=max(0.6, form.sparsity), value=form.sparsity
                )
            self.finetune.value = form.finetune
            self.budget.value = form.budget
            self.amount.param.update(label=AMOUNT_LABELS[form.budget], value=float(form.amount))
            self.grokfast.value = form.grokfast_lambda
            self.method.value = form.method if form.method in self.method.options.values() else "auto"
            self.planes.value = form.planes or 0
            self.seed.value = form.seed
            self.calibration.value = form.calibration_tokens
            self.evaluation.value = form.evaluation_tokens
            self.model.value = form.model
        finally:
            self._filling = False
        self.look()

    def look(self) -> None:
        """Look at the model's folder now and say what it is."""
        if self._filling:
            return
        self.check = check_model(self.model.value_input or self.model.value or "")
        if self.check.default_ratio is not None and not self.own_ratio.value:
            self.ratio.value = min(max(self.check.default_ratio, self.ratio.start), self.ratio.end)
        tone, mark = ("good", "✓") if self.check.ok else ("bad", "✕")
        first, *rest = self.check.lines
        self.found.set(
            Markup('<div class="small" data-check="{}"><b class="{}">{}</b> {}{}</div>').format(
                "ok" if self.check.ok else "bad",
                tone,
                mark,
                Markup('<span class="break">{}</span>').format(first),
                join(Markup('<div class="soft break">{}</div>').format(line) for line in rest),
            )
        )
        self._settle()

    def apply(self, controls: Controls) -> None:
        """Enable what means something."""
        self._controls = controls
        _set(self.start, disabled=not controls.start)
        resume = controls.toggle == "Resume"
        _set(
            self.toggle,
            label=controls.toggle,
            icon="play_arrow" if resume else "pause",
            disabled=not (controls.resume if resume else controls.pause),
        )
        _set(self.stop, disabled=not controls.stop)
        _set(self.reset, disabled=not controls.reset)
        self._settle()

    def say(self, tone: str, text: str) -> None:
        """Show a message under the buttons; an empty text takes it away."""
        self.message.set(
            Markup('<div class="note {}" role="alert"><span>{}</span></div>').format(tone, text)
            if text
            else Markup("")
        )

    _controls = Controls(False, False, False, False, False, True, "Pause")

    def _settle(self) -> None:
        if self._filling:
            return
        editable = self._controls.form
        enabled = {
            self.ratio: self.own_ratio.value and not self.planes.value,
            self.own_ratio: not self.planes.value,
            self.sparsity: self.own_sparsity.value,
            self.budget: self.finetune.value,
            self.amount: self.finetune.value,
            self.grokfast: self.finetune.value,
        }
        for field in self.fields:
            _set(field, disabled=not (editable and enabled.get(field, True)))
        try:
            form = self.form()
            text = command_of(form)
            toml = toml_of(form)
        except UsageError as error:
            self.equal.set(Markup('<p class="small bad">{}</p>').format(error))
            return
        self.equal.set(
            Markup(
                '<div class="soft small">The same on the command line</div><pre class="code mono">{}</pre>'
                '<div class="soft small" style="margin-top:8px">The same as a TOML file</div>'
                '<pre class="code mono">{}</pre>'
            ).format(text, toml or "# every setting at its default")
        )

    def _typed(self, event: Any) -> None:
        doc = pn.state.curdoc
        if self._filling or doc is None or event.new == event.old:
            return
        if self._check_due is not None:
            doc.remove_timeout_callback(self._check_due)
        self._check_due = doc.add_timeout_callback(self._check_now, CHECK_DELAY)

    def _check_now(self) -> None:
        self._check_due = None
        self.look()
        self.on_checked()

    def on_checked(self) -> None:
        """Called after the model's folder was looked at; the session sets it."""

    def _budget_chosen(self, event: Any) -> None:
        if not self._filling:
            self.amount.param.update(label=AMOUNT_LABELS[event.new], value=BUDGET_START[event.new])

    def set_default(self, **changes: Any) -> None:
        """Change what Reset goes back to."""
        self.default = dataclasses.replace(self.default, **changes)


def _set(part: Any, **values: Any) -> None:
    changed = {key: value for key, value in values.items() if getattr(part, key) != value}
    if changed:
        part.param.update(**changed)


def _heading(text: str) -> pn.pane.HTML:
    fragment = Fragment(Markup('<h2 style="margin:0">{}</h2>').format(text))
    fragment.pane.margin = (14, 14, 2, 14)
    return fragment.pane
