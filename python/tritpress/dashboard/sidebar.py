"""The sidebar: what to press and how, presets, and the buttons that start and steer the run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any

import panel as pn
import panel_material_ui as pmui

from tritpress.dashboard.components.copybox import CopyBox
from tritpress.dashboard.components.html import Fragment, Markup, join
from tritpress.dashboard.presets import (
    BUILT_IN,
    NAME_LENGTH,
    apply_preset,
    delete_preset,
    load_presets,
    save_preset,
)
from tritpress.dashboard.sidebar_fields import MARGIN, Fields, heading, put
from tritpress.dashboard.views.checks import (
    ModelCheck,
    TextCheck,
    check_model,
    check_text,
    unseen_model,
    unseen_text,
)
from tritpress.dashboard.views.form import SETTINGS_FILE, Controls, Form, command_of, toml_of
from tritpress.errors import TritpressError, UsageError

if TYPE_CHECKING:
    from bokeh.server.callbacks import TimeoutCallback

    from tritpress.dashboard.context import PageContext

CHECK_DELAY = 250
"""Milliseconds without typing after which a path is looked at."""

ANOTHER = "Settings for another run. This one goes on; the new one can wait for it or run beside it"

NO_PRESET = "Choose a preset"


class Sidebar:
    """The form and the buttons. What a button does is the session's business (`actions`)."""

    def __init__(self, page: PageContext, form: Form, actions: dict[str, Callable[[], None]]) -> None:
        self.page = page
        self.default = form
        self.check = ModelCheck(False, "", ())
        self.text_check = TextCheck(True, "")
        self.elsewhere: frozenset[str] = frozenset()
        self._check_due: TimeoutCallback | None = None
        self._controls = Controls(False, False, False, False, False, True, "Pause")
        self.fields = Fields()
        self._build()
        self._connect(actions)
        self.fill(form)

    def _build(self) -> None:
        fields = self.fields
        self.found, self.text_found, self.extra = Fragment(), Fragment(), Fragment()
        for fragment in (self.found, self.text_found, self.extra):
            fragment.pane.margin = (0, 14, 6, 14)
        self.equal_command = CopyBox(title="The same on the command line", margin=(8, 14, 4, 14))
        self.equal_toml = CopyBox(title=f"The same as {SETTINGS_FILE}", margin=(8, 14, 8, 14))
        self.wrong = Fragment()
        self.wrong.pane.margin = (4, 14, 4, 14)
        self.message = Fragment()
        self.message.pane.margin = (4, 14, 12, 14)
        self._build_presets()
        self.more = pmui.Accordion(
            (
                "More settings",
                _column(
                    fields.method,
                    fields.optimizer,
                    fields.weight_decay,
                    fields.outputs,
                    fields.device,
                    fields.seed,
                    fields.calibration,
                    fields.evaluation,
                    fields.alerts,
                    fields.rules,
                    fields.rules_words.pane,
                    fields.webhook,
                    self.extra.pane,
                ),
            ),
            ("Command line and TOML", _column(self.equal_command, self.equal_toml)),
            ("Presets", _column(self.preset_name, pn.Row(self.preset_save, self.preset_delete, margin=0))),
            sizing_mode="stretch_width",
            margin=(6, 14, 6, 14),
            title_variant="body2",
            disable_gutters=True,
        )
        self._build_buttons()
        self.objects = [
            heading("Model"),
            fields.model,
            self.found.pane,
            self.preset,
            heading("Compression"),
            fields.target,
            fields.ratio,
            fields.planes,
            heading("Zeros"),
            fields.zeros,
            fields.zeros_words.pane,
            fields.sparsity,
            fields.threshold,
            heading("Text"),
            fields.text,
            self.text_found.pane,
            heading("Fine-tuning"),
            fields.finetune,
            fields.budget,
            fields.amount,
            fields.grokfast,
            self.more,
            self.wrong.pane,
            *self.buttons,
            self.message.pane,
        ]

    def _build_presets(self) -> None:
        self.own: dict[str, dict[str, Any]] = {}
        self.preset = pmui.Select(
            label="Preset", options=[NO_PRESET], sizing_mode="stretch_width", margin=MARGIN, size="small"
        )
        self.preset_name = pmui.TextInput(
            label="Name of a preset",
            placeholder="what these settings are for",
            max_length=NAME_LENGTH,
            sizing_mode="stretch_width",
            margin=MARGIN,
            size="small",
        )
        small: dict[str, Any] = {"size": "small", "variant": "outlined", "margin": (4, 4, 10, 14)}
        self.preset_save = pmui.Button(label="Save preset", icon="bookmark_add", **small)
        self.preset_delete = pmui.Button(label="Delete", icon="bookmark_remove", **small)
        self.list_presets()

    def _build_buttons(self) -> None:
        button: dict[str, Any] = {"sizing_mode": "stretch_width", "size": "medium", "disable_elevation": True}
        self.start = pmui.Button(label="Start", icon="play_arrow", color="primary", margin=0, **button)
        self.another = pmui.Button(label="New run…", icon="add", color="primary", margin=0, **button)
        self.pause = pmui.Button(label="Pause", icon="pause", variant="outlined", margin=0, **button)
        self.resume = pmui.Button(label="Resume", icon="play_arrow", variant="outlined", margin=0, **button)
        self.stop = pmui.Button(label="Stop", icon="stop", variant="outlined", margin=0, **button)
        self.reset = pmui.Button(label="Reset", icon="restart_alt", variant="text", margin=0, **button)
        # A disabled button shows no tooltip of its own: what is around it does.
        self.hints = {
            name: pmui.Tooltip(
                part,
                title="",
                placement="top",
                describe_child=True,
                sizing_mode="stretch_width",
                margin=margin,
            )
            for name, part, margin in (
                ("start", self.start, (10, 14, 4, 14)),
                ("another", self.another, (10, 14, 4, 14)),
                ("pause", self.pause, (4, 4, 4, 14)),
                ("resume", self.resume, (4, 4, 4, 14)),
                ("stop", self.stop, (4, 14, 4, 4)),
                ("reset", self.reset, (4, 14, 4, 14)),
            )
        }
        hints = self.hints
        hints["another"].param.update(visible=False, title=ANOTHER)
        hints["resume"].visible = False
        self.buttons = [
            hints["start"],
            hints["another"],
            pn.Row(hints["pause"], hints["resume"], hints["stop"], sizing_mode="stretch_width", margin=0),
            hints["reset"],
        ]

    def _connect(self, actions: dict[str, Callable[[], None]]) -> None:
        def act(name: str, _event: Any) -> None:
            actions[name]()

        for button, name in (
            (self.start, "start"),
            (self.another, "another"),
            (self.pause, "pause"),
            (self.resume, "resume"),
            (self.stop, "stop"),
            (self.reset, "reset"),
        ):
            button.on_click(partial(act, name))
        fields = self.fields
        for typed in fields.typed:
            typed.param.watch(self._typed, "value_input")
            typed.param.watch(lambda _: self._look(), "value")
        for field in fields.all:
            if field not in fields.typed:
                field.param.watch(lambda _: self._settle(), "value")
        self.preset.param.watch(self._preset_chosen, "value")
        self.preset_save.on_click(lambda _: self._change_presets(self._save_preset))
        self.preset_delete.on_click(lambda _: self._change_presets(self._delete_preset))
        self.preset_name.param.watch(lambda _: self._settle_presets(), "value_input")

    def form(self) -> Form:
        """What is chosen now."""
        return self.fields.form(self.check.path or self.fields.model.value.strip())

    def fill(self, form: Form, elsewhere: Collection[str] = ()) -> None:
        """Show these choices. `elsewhere`: paths of another machine, not to be looked at on this one."""
        self.fields.fill(form)
        self.elsewhere = frozenset(path.strip() for path in elsewhere) - {self.default.model}
        self._look()

    def look(self) -> None:
        """Look at the model's folder and the texts now, whosever paths they are, and say what they are."""
        self.elsewhere = frozenset()
        self._look()

    def _look(self) -> None:
        fields = self.fields
        if fields.filling:
            return
        if not self.page.may_act:  # who may start nothing is told nothing of this machine's folders either
            self.check = ModelCheck(False, "", (self.page.why_not,))
            self._settle()
            return
        model = str(fields.model.value_input or fields.model.value or "").strip()
        unseen = model in self.elsewhere
        self.check = unseen_model(model) if unseen else check_model(model)
        if self.check.default_ratio is not None and fields.target.value == "class":
            put(fields.ratio, value=min(max(self.check.default_ratio, fields.ratio.start), fields.ratio.end))
        tone, mark = ("good", "✓") if self.check.ok else ("bad", "✕")
        if unseen:
            tone, mark = "soft", "○"
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
        paths = fields.paths()
        if self.elsewhere.isdisjoint(paths):
            self.text_check = check_text(paths, self.check.reference)
        else:
            self.text_check = unseen_text(paths)
        self.text_found.set(
            Markup('<div class="small {} break" data-text-check="{}">{}{}</div>').format(
                "soft" if self.text_check.ok else "bad",
                "ok" if self.text_check.ok else "bad",
                "" if self.text_check.ok else "✕ ",
                self.text_check.words,
            )
        )
        self._settle()

    @property
    def ready(self) -> bool:
        """Whether a run can start with what is chosen."""
        return self.check.ok and self.text_check.ok

    def apply(self, controls: Controls) -> None:
        """Enable what means something; the tooltips say why the rest does not."""
        self._controls = controls
        resume = controls.toggle == "Resume"
        # Two buttons, not one that means either: a click may come when the run has just ended or paused.
        put(self.hints["start"], visible=not controls.another)
        put(self.hints["another"], visible=controls.another)
        put(self.hints["pause"], visible=not resume)
        put(self.hints["resume"], visible=resume)
        put(self.start, disabled=not controls.start)
        put(self.pause, disabled=not controls.pause)
        put(self.resume, disabled=not controls.resume)
        put(self.stop, disabled=not controls.stop)
        put(self.reset, disabled=not controls.reset)
        for name, hint in self.hints.items():
            part = getattr(self, name)
            if part is not self.another:
                key = "toggle" if part in (self.pause, self.resume) else name
                put(hint, title=controls.why.get(key, "") if part.disabled else "")
        self._settle()

    def say(self, tone: str, text: str) -> None:
        """Show a message under the buttons; an empty text takes it away."""
        self.message.set(
            Markup('<div class="note {}" role="alert"><span>{}</span></div>').format(tone, text)
            if text
            else Markup("")
        )

    def _settle(self) -> None:
        if self.fields.filling:
            return
        self.fields.settle(self._controls.form)
        self._settle_presets()
        extra = self.fields.extra
        self.extra.set(
            Markup('<p class="soft small">Also as in the run that was opened: {}</p>').format(
                ", ".join(f"{key} {value}" for key, value in extra.items())
            )
            if extra
            else Markup("")
        )
        try:
            form = self.form()
            command, toml = command_of(form), toml_of(form)
        except UsageError as error:
            self.wrong.set(Markup('<p class="small bad" role="alert">✕ {}</p>').format(error))
            return
        self.wrong.set(Markup(""))
        put(self.equal_command, text=command)
        put(self.equal_toml, text=toml or "# every setting at its default")

    def _typed(self, event: Any) -> None:
        doc = pn.state.curdoc
        if self.fields.filling or doc is None or event.new == event.old:
            return
        if self._check_due is not None:
            doc.remove_timeout_callback(self._check_due)
        self._check_due = doc.add_timeout_callback(self._check_now, CHECK_DELAY)

    def _check_now(self) -> None:
        self._check_due = None
        self._look()
        self.on_checked()

    def on_checked(self) -> None:
        """Called after the paths were looked at; the session sets it."""

    # Presets

    def list_presets(self, value: str = NO_PRESET) -> None:
        """Offer what the presets' file holds now."""
        try:
            self.own = load_presets(self.page.store.runs_dir)
        except TritpressError as error:
            self.own = {}
            self.say("warning", str(error))
        self.preset.param.update(options=[NO_PRESET, *BUILT_IN, *self.own], value=value)

    def _preset_chosen(self, event: Any) -> None:
        settings = BUILT_IN.get(event.new, self.own.get(event.new))
        if settings is None or event.new == event.old:
            return
        try:
            self.fill(apply_preset(self.form(), settings, self.default), self.elsewhere)
        except UsageError as error:
            self.page.say("bad", f"The preset {event.new} cannot be used: {error}")
        self.preset_name.value = event.new if event.new in self.own else ""

    def _change_presets(self, change: Callable[[], str]) -> None:
        if not self.page.may_act:
            self.page.say("bad", self.page.why_not)
            return
        try:
            value = change()
        except TritpressError as error:
            self.page.say("bad", str(error))
            return
        self.list_presets(value)
        self._settle_presets()

    def _save_preset(self) -> str:
        return save_preset(self.page.store.runs_dir, self.preset_name.value_input or "", self.form())

    def _delete_preset(self) -> str:
        delete_preset(self.page.store.runs_dir, self.preset_name.value_input or "")
        self.preset_name.value = ""
        return NO_PRESET

    def _settle_presets(self) -> None:
        name = (self.preset_name.value_input or "").strip()
        may = self.page.may_act
        put(self.preset, disabled=not self._controls.form)
        put(self.preset_save, disabled=not (may and name and name not in BUILT_IN))
        put(self.preset_delete, disabled=not (may and name in self.own))


def _column(*parts: Any) -> pn.Column:
    return pn.Column(*parts, sizing_mode="stretch_width", margin=0)
