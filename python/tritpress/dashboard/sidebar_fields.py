"""The fields of the sidebar: what stands in them, and how they become a form and back."""

from __future__ import annotations

from typing import Any

import panel as pn
import panel_material_ui as pmui

from tritpress.dashboard.components.html import Fragment, Markup
from tritpress.dashboard.theme import STEPPERS
from tritpress.dashboard.views.form import Form
from tritpress.events.rules import DEFAULT_RULES, GRAMMAR, parse_rules

MARGIN = (8, 14, 4, 14)
BUDGET_LABELS = {"epochs": "Epochs", "tokens": "Tokens", "minutes": "Minutes"}
AMOUNT_LABELS = {
    "epochs": "Epochs of training",
    "tokens": "Tokens of training",
    "minutes": "Minutes of training",
}
BUDGET_START = {"epochs": 1.0, "tokens": 100_000.0, "minutes": 5.0}
LEAST = {"epochs": 1.0, "tokens": 256.0, "minutes": 0.1}
STEP = {"epochs": 1.0, "tokens": 1000.0, "minutes": 0.5}
TARGETS = {"Size class": "class", "Own ratio": "ratio", "Planes": "planes"}
ZEROS = {"Auto": "auto", "Target": "target", "Threshold": "threshold", "Free": "free"}
ZEROS_WORDS = {
    "auto": "At most 44 % zeros, so that the sparsity gate can pass.",
    "target": "The share of zeros that every tensor gets.",
    "threshold": "Weights below this many times the group's mean |w| become 0.",
    "free": "As many zeros as fit the weights best; the sparsity gate may fail.",
}
ALERTS = {"Default rules": "default", "None": "none", "Own rules": "own"}


class Fields:
    """One widget for each choice of a `Form`."""

    def __init__(self) -> None:
        wide: dict[str, Any] = {"sizing_mode": "stretch_width", "margin": MARGIN, "size": "small"}
        slider: dict[str, Any] = {
            "sizing_mode": "stretch_width",
            "size": "small",
            "margin": (4, 20, 0, 20),
        }
        choice: dict[str, Any] = {
            "size": "small",
            "margin": (4, 14, 4, 14),
            "color": "primary",
            "sx": {"& .MuiToggleButton-root": {"whiteSpace": "nowrap"}},
        }
        self.model = pmui.TextInput(label="Model folder", placeholder="/path/to/a/model", **wide)
        self.target = pmui.RadioButtonGroup(label="", options=TARGETS, value="class", **choice)
        self.ratio = pmui.FloatSlider(
            label="Ratio", start=4, end=12, step=0.25, value=6, format="0.00", **slider
        )
        self.planes = pmui.Select(
            label="Planes", options={"1 (1.58-bit)": 1, "2": 2, "3": 3}, value=1, **wide
        )
        self.zeros = pmui.RadioButtonGroup(label="", options=ZEROS, value="auto", **choice)
        self.zeros_words = Fragment()
        self.zeros_words.pane.margin = (0, 14, 2, 14)
        self.sparsity = pmui.FloatSlider(
            label="Sparsity", start=0.2, end=0.6, step=0.01, value=0.35, format="0 %", **slider
        )
        self.threshold = pmui.FloatSlider(
            label="Threshold", start=0.2, end=1.5, step=0.05, value=0.7, format="0.00", **slider
        )
        self.method = pmui.Select(
            label="Method",
            options={
                "Automatic": "auto",
                "Fast (no text)": "fast",
                "Fast, inputs weighed": "weighted",
                "GPTQ sweep": "gptq",
            },
            **wide,
        )
        self.finetune = pmui.Switch(label="Fine-tune", value=True, size="small", margin=(6, 14, 4, 16))
        self.budget = pmui.RadioButtonGroup(
            label="", options={title: key for key, title in BUDGET_LABELS.items()}, value="tokens", **choice
        )
        self.amount = pmui.FloatInput(
            label="Tokens of training",
            value=100_000,
            start=LEAST["tokens"],
            step=STEP["tokens"],
            format="0,0.[0]",
            theme_config=STEPPERS,
            **wide,
        )
        self.grokfast = pmui.FloatInput(
            label="Grokfast λ (lambda)",
            value=0.1,
            start=0.0,
            end=10.0,
            step=0.05,
            theme_config=STEPPERS,
            **wide,
        )
        self.optimizer = pmui.Select(
            label="Optimizer",
            options={"AdamW": "adamw", "Muon": "muon", "Muon with Grokfast": "mugrokfast"},
            **wide,
        )
        self.weight_decay = pmui.FloatInput(
            label="Weight decay", value=0.0, start=0.0, step=0.01, theme_config=STEPPERS, **wide
        )
        self.text = pmui.TextAreaInput(
            label="Text files and folders, one a line", rows=2, auto_grow=True, max_rows=6, **wide
        )
        self.outputs = pmui.Select(
            label="Outputs",
            options={"Packed and dequantized": "both", "Packed": "packed", "Dequantized": "dequantized"},
            **wide,
        )
        self.device = pmui.Select(
            label="Device", options={"Automatic": "auto", "CPU": "cpu", "CUDA": "cuda"}, **wide
        )
        self.seed = pmui.IntInput(label="Seed", value=0, start=0, theme_config=STEPPERS, **wide)
        self.calibration = pmui.IntInput(
            label="Calibration tokens", value=16_384, start=256, step=1024, theme_config=STEPPERS, **wide
        )
        self.evaluation = pmui.IntInput(
            label="Evaluation tokens", value=32_768, start=256, step=1024, theme_config=STEPPERS, **wide
        )
        self.alerts = pmui.Select(label="Alerts", options=ALERTS, value="default", **wide)
        self.rules = pmui.TextAreaInput(
            label="Alert rules, one a line", rows=2, auto_grow=True, max_rows=8, visible=False, **wide
        )
        self.rules_words = Fragment()
        self.rules_words.pane.margin = (0, 14, 2, 14)
        self.webhook = pmui.TextInput(
            label="Webhook that gets every alert", placeholder="https://example.org/hook", **wide
        )
        self.all = (
            self.model,
            self.target,
            self.ratio,
            self.planes,
            self.zeros,
            self.sparsity,
            self.threshold,
            self.method,
            self.finetune,
            self.budget,
            self.amount,
            self.grokfast,
            self.optimizer,
            self.weight_decay,
            self.text,
            self.outputs,
            self.device,
            self.seed,
            self.calibration,
            self.evaluation,
            self.alerts,
            self.rules,
            self.webhook,
        )
        self.typed = (self.model, self.text, self.rules, self.webhook)
        """Fields that are looked at while something is typed into them."""
        self.extra: dict[str, Any] = {}
        self.filling = False
        self.budget.param.watch(self._budget_chosen, "value")
        self.alerts.param.watch(self._alerts_chosen, "value")

    def form(self, model: str) -> Form:
        """What is chosen now, for that model."""
        target, zeros = self.target.value, self.zeros.value
        return Form(
            model=model,
            ratio=float(self.ratio.value) if target == "ratio" else None,
            planes=self.planes.value if target == "planes" else None,
            sparsity=float(self.sparsity.value) if zeros == "target" else "free" if zeros == "free" else None,
            threshold=float(self.threshold.value) if zeros == "threshold" else None,
            method=self.method.value,
            finetune=self.finetune.value,
            budget=self.budget.value,
            amount=self.amount.value or 0,
            optimizer=self.optimizer.value,
            grokfast_lambda=self.grokfast.value if self.grokfast.value is not None else 0.0,
            weight_decay=self.weight_decay.value or 0.0,
            outputs=self.outputs.value,
            text=self.paths(),
            device=self.device.value,
            seed=self.seed.value or 0,
            calibration_tokens=self.calibration.value or 0,
            evaluation_tokens=self.evaluation.value or 0,
            alerts=self.alert_rules(),
            alert_webhook=str(self.webhook.value_input or "").strip() or None,
            extra=dict(self.extra),
        )

    def paths(self) -> tuple[str, ...]:
        """The texts, one a line."""
        return _lines(self.text)

    def alert_rules(self) -> tuple[str, ...]:
        """The rules that are chosen; own ones of which none is written yet are ("",), which is refused."""
        return {"default": DEFAULT_RULES, "none": ()}.get(self.alerts.value, _lines(self.rules) or ("",))

    def fill(self, form: Form) -> None:
        """Show these choices."""
        self.filling = True
        try:
            self.target.value = (
                "planes" if form.planes is not None else "ratio" if form.ratio is not None else "class"
            )
            _slide(self.ratio, form.ratio, 4, 12)
            if form.planes is not None:
                self.planes.value = form.planes
            share = form.sparsity if isinstance(form.sparsity, int | float) else None
            self.zeros.value = (
                "free"
                if form.sparsity == "free"
                else "target"
                if share is not None
                else "threshold"
                if form.threshold is not None
                else "auto"
            )
            _slide(self.sparsity, share, 0.2, 0.6)
            _slide(self.threshold, form.threshold, 0.2, 1.5)
            self.finetune.value = form.finetune
            self.budget.value = form.budget
            self._ask_amount(form.budget, float(form.amount))
            self.grokfast.value = form.grokfast_lambda
            self.weight_decay.value = form.weight_decay
            for field, value in (
                (self.method, form.method),
                (self.optimizer, form.optimizer),
                (self.outputs, form.outputs),
                (self.device, form.device),
            ):
                field.value = value
            self.text.value = "\n".join(form.text)
            self.seed.value = form.seed
            self.calibration.value = form.calibration_tokens
            self.evaluation.value = form.evaluation_tokens
            own = form.alerts not in ((), DEFAULT_RULES)
            self.alerts.value = "own" if own else "default" if form.alerts else "none"
            self.rules.value = "\n".join(form.alerts) if own else ""
            self.webhook.value = form.alert_webhook or ""
            self.model.value = form.model
            self.extra = dict(form.extra)
        finally:
            self.filling = False

    def settle(self, editable: bool) -> None:
        """Show and enable what the other choices leave to be chosen."""
        target, zeros = self.target.value, self.zeros.value
        shown: tuple[tuple[Any, bool], ...] = (
            (self.ratio, target == "ratio"),
            (self.planes, target == "planes"),
            (self.sparsity, zeros == "target"),
            (self.threshold, zeros == "threshold"),
            (self.rules, self.alerts.value == "own"),
        )
        for field, seen in shown:
            put(field, visible=seen)
        self.zeros_words.set(Markup('<p class="soft small">{}</p>').format(ZEROS_WORDS[zeros]))
        self.rules_words.set(self._rules_words())
        training = (self.budget, self.amount, self.grokfast, self.optimizer, self.weight_decay)
        unused = set() if self.finetune.value else set(training)
        if self.optimizer.value != "mugrokfast":
            unused.add(self.grokfast)
        for field in self.all:
            put(field, disabled=not editable or field in unused)

    def _budget_chosen(self, event: Any) -> None:
        if not self.filling:
            self._ask_amount(event.new, BUDGET_START[event.new])

    def _ask_amount(self, budget: str, value: float) -> None:
        words = AMOUNT_LABELS[budget]
        self.amount.param.update(label=words, start=LEAST[budget], step=STEP[budget], value=value)

    def _rules_words(self) -> Markup:
        """What is wrong with the own rules, else what rules there are; nothing where none are written."""
        if self.alerts.value != "own":
            return Markup("")
        try:
            parse_rules(self.alert_rules())
        except ValueError as error:
            return Markup('<p class="small bad break" data-rules="bad">✕ {}</p>').format(error)
        return Markup('<p class="soft small break" data-rules="ok">Rules are {}.</p>').format(GRAMMAR)

    def _alerts_chosen(self, event: Any) -> None:
        if not self.filling and event.new == "own" and not _lines(self.rules):
            self.rules.value = "\n".join(DEFAULT_RULES)


def put(part: Any, **values: Any) -> None:
    """Change what differs, in one go."""
    changed = {key: value for key, value in values.items() if getattr(part, key) != value}
    if changed:
        part.param.update(**changed)


def heading(text: str) -> pn.pane.HTML:
    """A heading of the sidebar."""
    fragment = Fragment(Markup('<h2 style="margin:0">{}</h2>').format(text))
    fragment.pane.margin = (14, 14, 2, 14)
    return fragment.pane


def _lines(area: Any) -> tuple[str, ...]:
    lines = str(area.value_input or "").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def _slide(slider: Any, value: float | None, low: float, high: float) -> None:
    if value is not None:
        slider.param.update(start=min(low, value), end=max(high, value), value=value)
