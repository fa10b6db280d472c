"""Tuning: another threshold or sparsity for some tensors, what it would change, and a run that does it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import panel as pn
import panel_material_ui as pmui

from tritpress.dashboard.components.export import command_block, csv_button, csv_tools
from tritpress.dashboard.components.html import Fragment, Markup, empty, join, note, panel
from tritpress.dashboard.components.soon import soon
from tritpress.dashboard.components.tuningcharts import TuningCharts
from tritpress.dashboard.tabs.base import Shown, Tab
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.diff import error_words
from tritpress.dashboard.views.ending import over
from tritpress.dashboard.views.status import status_of
from tritpress.dashboard.views.tuning import (
    ALL,
    REFITTED,
    SETS_ITS_OWN,
    Charts,
    Line,
    Mark,
    Scope,
    basis_words,
    by_bitnet,
    charts,
    choice,
    command_of_plan,
    lines,
    plan_path,
    run_name,
    scopes,
    unforeseen_words,
)
from tritpress.errors import TritpressError
from tritpress.runs.tuning import (
    Setting,
    TensorCurve,
    basis_of,
    forecast,
    plan_of_run,
    read_curves,
    sweep,
    tuned_config,
    tuned_plan,
    write_plan,
)

REST = 0.1
"""Least seconds between two drawings while the slider moves."""

SETTLED = 0.5
"""Seconds without a move after which the URL names the setting."""

MODES = {"threshold": (0.0, 3.0, 0.01), "sparsity": (0.0, 0.95, 0.005)}


class Tuning(Tab):
    key = "tuning"
    title = "Tuning"
    interests = frozenset(
        {
            "run.started", "run.paused", "run.resumed", "run.finished", "run.failed", "liveness", "model",
            "plan", "evaluation", "layer.finished", "layer.started", "command.ack", "step.finished",
        }
    )  # fmt: skip

    def __init__(self, page: Any) -> None:
        super().__init__(page)
        self._plain()

    def _plain(self) -> None:
        self.scope, self.mode = Scope(), "threshold"
        self.value: float | None = None
        self.curves: dict[str, TensorCurve] = {}
        self.marks: dict[str, Any] = {}
        self.loading, self.dirty, self.drawn_at = "", False, 0.0
        self.moved_at: float | None = None
        self.swept: tuple[Any, Any] = (None, None)  # what the curves rest on, and they
        self.last: Shown | None = None
        self.said = Markup("")

    def forget(self) -> None:
        super().forget()
        self._plain()

    @property
    def setting(self) -> Setting | None:
        """What is chosen; None while the slider was not moved."""
        if self.value is None:
            return None
        return Setting(threshold=self.value) if self.mode == "threshold" else Setting(sparsity=self.value)

    @property
    def pending(self) -> bool:
        return self.dirty or self._at_rest

    @property
    def _at_rest(self) -> bool:
        """The slider was moved and has come to rest: the URL may say where."""
        return self.moved_at is not None and time.monotonic() - self.moved_at > SETTLED

    def take_up(self) -> None:
        if self.dirty and self.last is not None and self.built:
            self._draw(self.last)
        elif self._at_rest:
            self.moved_at = None
            self.page.navigate()

    def query(self) -> dict[str, str]:
        found = {}
        if self.scope.kind != ALL:
            found["kind"] = self.scope.kind
        if self.scope.layer != ALL:
            found["layer"] = self.scope.layer
        if self.value is not None or self.mode != "threshold":
            found[self.mode] = "" if self.value is None else f"{self.value:g}"
        return found

    def go(self, query: Mapping[str, str]) -> None:
        self.scope = Scope(query.get("kind", ALL)[:40], query.get("layer", ALL)[:10])
        self.mode = "sparsity" if "sparsity" in query else "threshold"
        self.value = None
        try:
            wanted = float(query[self.mode])
            low, high, _ = MODES[self.mode]
            self.value = wanted if low <= wanted <= high else None
        except (KeyError, ValueError):
            pass

    def build(self) -> list[Any]:
        self.placeholder, self.table, self.under, self.equal = (Fragment() for _ in range(4))
        small: dict[str, Any] = {"size": "small", "margin": (0, 12, 0, 0), "width": 150}
        self.kind = pmui.Select(label="Parameter", options={"All": ALL}, value=ALL, **small)
        self.layer = pmui.Select(label="Layer", options={"All": ALL}, value=ALL, **small)
        self.which = pmui.RadioButtonGroup(
            label="", options={"Threshold": "threshold", "Sparsity": "sparsity"}, value=self.mode,
            size="small", margin=(0, 12, 0, 0), color="primary",
        )  # fmt: skip
        low, high, step = MODES[self.mode]
        self.slider = pmui.FloatSlider(
            label="Threshold", start=low, end=high, step=step, value=low, size="small", format="0.00",
            sizing_mode="stretch_width", margin=(0, 12, 0, 12), styles={"flex": "1 1 260px"},
        )  # fmt: skip
        self.back = pmui.Button(label="Back to now", variant="text", size="small", icon="undo")
        button: dict[str, Any] = {"size": "small", "disable_elevation": True, "margin": (0, 12, 8, 0)}
        self.apply = pmui.Button(
            label="Start a new run with this", icon="play_arrow", color="primary", **button
        )
        self.save = pmui.Button(label="Write the plan only", icon="save", variant="outlined", **button)
        self.set = pmui.Button(label="Set", icon="tune", variant="outlined", color="primary", **button)
        self.kind.param.watch(self._scoped, "value")
        self.layer.param.watch(self._scoped, "value")
        self.which.param.watch(self._switched, "value")
        self.slider.param.watch(self._moved, "value")
        self.back.on_click(lambda _: soon(self._undo))
        self.apply.on_click(lambda _: soon(self._start))
        self.save.on_click(lambda _: soon(self._save))
        self.set.on_click(lambda _: soon(self._set))
        self.tools = pn.FlexBox(
            self.kind, self.layer, self.which, self.slider, self.back,
            sizing_mode="stretch_width", align_items="center", gap="8px", margin=(0, 0, 12, 0),
        )  # fmt: skip
        self.charts = TuningCharts()
        self.actions = pn.FlexBox(
            self.apply, self.save, self.set, sizing_mode="stretch_width", margin=(16, 0, 0, 0)
        )
        self.table.pane.margin = (0, 0, 16, 0)
        self.body = pn.Column(
            self.tools, self.table.pane, self.charts.row, self.under.pane, self.actions, self.equal.pane,
            sizing_mode="stretch_width",
        )  # fmt: skip
        return [self.placeholder.pane, self.body]

    def update(self, shown: Shown | None, changed: set[str] | None) -> None:
        self.last = shown
        if shown is not None and shown.state["targets"]:
            self._offer_scopes(shown.state)
        if shown is None or not (shown.state["layers"] or self._may_set(shown)):
            self._nothing(shown)
            return
        self._load(shown)
        self._draw(shown)

    def _offer_scopes(self, state: dict[str, Any]) -> None:
        kinds, layers = scopes(state)
        kind = self.scope.kind if self.scope.kind in kinds.values() else ALL
        layer = self.scope.layer if self.scope.layer in layers.values() else ALL
        self._quietly(self.kind, options=kinds, value=kind)
        self._quietly(self.layer, options=layers, value=layer)
        self.scope = Scope(kind, layer)

    # Curves come from files: beside the server's loop, new ones only

    def _load(self, shown: Shown) -> None:
        basis = (shown.state.get("plan") or {}).get("predicted_loss")
        marks = {
            name: (layer.get("cosine"), layer.get("mse"), basis)
            for name, layer in shown.state["layers"].items()
        }
        if self.loading or marks == self.marks:
            return
        known = {name: c for name, c in self.curves.items() if self.marks.get(name) == marks.get(name)}
        run = self.loading = shown.path.name

        def done(found: dict[str, TensorCurve]) -> None:
            self.loading = ""
            if self.last is None or self.last.path.name != run:
                return
            self.curves, self.marks = found, marks
            if self.built:
                self.update(self.last, None)

        self.page.background(
            lambda: read_curves(shown.path, shown.state, known), done, what="The curves could not be read"
        )

    def _draw(self, shown: Shown) -> None:
        self.dirty = False
        names = self.scope.names(shown.state)
        basis = basis_of(shown.state)
        found = forecast(self.curves, names, self.setting, basis)
        rests_on = (self.scope, id(self.curves), basis, self.mode)
        if self.swept[0] != rests_on:
            self.swept = (rests_on, sweep(self.curves, names, basis, self.mode == "sparsity"))
        swept = self.swept[1]
        if found is None or swept is None:
            if self._may_set(shown):
                self._unforeseen(shown, names)
            else:
                self._no_curves(shown)
            return
        made = charts(swept, found, self.curves, names, self.setting)
        self.placeholder.pane.visible, self.body.visible = False, True
        self._place_slider(made.now)
        missing = len(names) - found.tensors
        self.table.set(_table(lines(found, self.scope, self.setting is not None), found.tensors, missing))
        self.charts.show(made)
        self.under.set(
            Markup('<p class="soft small" data-basis style="margin-top:8px">{}</p>{}').format(
                basis_words(basis), _twin(made)
            )
        )
        self._show_actions(shown, names)
        self.drawn_at = time.monotonic()

    def _place_slider(self, now: Mark | None) -> None:
        low, high, step = MODES[self.mode]
        value = self.value
        if value is None:
            value = low if now is None else now.threshold if self.mode == "threshold" else now.zeros
            value = min(max(round(value / step) * step, low), high)
        self._quietly(self.which, value=self.mode)
        title = "Threshold, relative to the group's mean |w|" if self.mode == "threshold" else "Zero codes"
        shown_as = "0.00" if self.mode == "threshold" else "0.0 %"
        # What the browser's slider says is never said back: it may have moved on meanwhile.
        same = (self.slider.start, self.slider.end) == (low, high)
        there = same and abs(self.slider.value - value) < step / 2
        at = self.slider.value if there else round(value, 6)
        self._quietly(self.slider, label=title, start=low, end=high, step=step, format=shown_as, value=at)
        self._quietly(self.back, disabled=self.value is None)

    def _show_actions(self, shown: Shown, names: list[str]) -> None:
        why_not = "" if self.page.may_act else self.page.why_not or "This page only shows runs."
        if shown.gone:
            why_not = why_not or "This run's folder, and its plan with it, is no longer there."
        can = choice(shown.state, shown.lost, names, self.setting, why_not, shown.remote)
        for part in (self.apply, self.save):
            self._quietly(part, disabled=not can.new_run)
        self._quietly(
            self.set,
            visible=can.live,
            disabled=bool(can.why_no_set) or self.setting is None,
            label=f"Set for {fig.plural(len(can.left), 'tensor')} not begun",
        )
        answer = _answer(shown.state)
        live = Markup("")
        if can.live and can.why_no_set and not why_not:
            live = Markup('<p class="soft small" data-why-no-set>{}</p>').format(can.why_no_set)
        if by_bitnet(shown.state) and not why_not and not shown.remote:
            live = Markup('<p class="soft small" data-refitted>{}</p>').format(REFITTED) + live
        if self.setting is None or not can.new_run:
            why = Markup('<p class="soft small">{}</p>').format(can.why_no_run)
            self.equal.set(why + live + answer + self.said)
            return
        path = plan_path(self.page.store.runs_dir, shown.path.name, self.scope, self.setting)
        command = command_of_plan(shown.state["model"]["path"], path)
        self.equal.set(
            answer
            + self.said
            + live
            + Markup(
                '<div class="soft small">The same on the command line, once the plan is written</div>'
                "<div data-command>{}</div>"
            ).format(command_block(command))
        )

    # What the controls do

    def _scoped(self, _: Any) -> None:
        if not self._quiet:
            self.scope = Scope(self.kind.value, self.layer.value)
            self._again()

    def _switched(self, event: Any) -> None:
        if not self._quiet and event.new in MODES:
            self.mode, self.value = event.new, None
            self._again()

    def _moved(self, event: Any) -> None:
        if not self._quiet and event.new is not None:
            self.value = round(float(event.new), 6)
            self.said = Markup("")
            self.moved_at = time.monotonic()
            self.dirty = True  # a slider that is drawn along tells more than there is time to draw
            if time.monotonic() - self.drawn_at > REST:
                self.take_up()

    def _undo(self) -> None:
        self.value, self.said = None, Markup("")
        self._again()

    def _again(self) -> None:
        self.update(self.last, None)
        self.page.navigate()

    def _write(self) -> tuple[Any, dict[str, Any]] | None:
        """Write plan and settings; (path, configuration of the new run)."""
        shown, setting = self.last, self.setting
        if shown is None or setting is None or not self.page.may_act:
            return None
        names = self.scope.names(shown.state)
        path = plan_path(self.page.store.runs_dir, shown.path.name, self.scope, setting)
        config = tuned_config(shown.state["config"], path)
        try:
            plan = tuned_plan(plan_of_run(shown.path), names, setting, self.curves)
            write_plan(path, plan, config)
        except (TritpressError, OSError) as error:
            self._say("bad", str(error))
            return None
        return path, config

    def _start(self) -> None:
        written = self._write()
        if written is None or self.last is None or self.setting is None:
            return
        state = self.last.state
        name = run_name(state, self.last.path.name, self.scope, self.setting)
        self._say("live", "The new run is starting.")
        self.page.start_run(state["model"]["path"], written[1], name)

    def _save(self) -> None:
        written = self._write()
        if written is not None:
            self._say("good", f"Written: {written[0]}, and the other settings beside it as .toml.")

    def _set(self) -> None:
        shown, setting = self.last, self.setting
        if shown is None or setting is None:
            return
        names = self.scope.names(shown.state)
        can = choice(shown.state, shown.lost, names, setting, "")
        key = "threshold" if setting.threshold is not None else "sparsity"
        asked: Any = ALL if self.scope == Scope() else list(can.left)
        self.page.send(shown.path.name, "set", tensors=asked, **{key: self.value})

    def _say(self, tone: str, text: str) -> None:
        self.said = note(tone, text)
        if self.last is not None:
            self._show_actions(self.last, self.scope.names(self.last.state))

    # States without curves

    def _may_set(self, shown: Shown) -> bool:
        """Whether some of the chosen tensors can still be set, curves or none; in a new run alone where the
        fit sets its own zeros."""
        names = self.scope.names(shown.state)
        waits = self.loading and any(name in shown.state["layers"] for name in names)
        can = choice(shown.state, shown.lost, names, self.setting, "")
        return not waits and (not can.why_no_set or (can.why_no_set == SETS_ITS_OWN and bool(can.left)))

    def _unforeseen(self, shown: Shown, names: list[str]) -> None:
        self.placeholder.pane.visible, self.body.visible = False, True
        self._place_slider(None)
        self.table.set(empty("No forecast", unforeseen_words(shown.state, self.scope)))
        self.charts.hide()
        self.under.set(Markup(""))
        self._show_actions(shown, names)
        self.drawn_at = time.monotonic()

    def _no_curves(self, shown: Shown) -> None:
        self.body.visible = bool(self.curves)
        self.charts.hide()
        self.placeholder.pane.visible = True
        self.table.set(Markup(""))
        self.under.set(Markup(""))
        self.equal.set(Markup(""))
        for part in (self.apply, self.save, self.set):
            self._quietly(part, disabled=True)
        if self.loading:
            self.placeholder.set(empty("Reading the curves", "They were recorded beside each tensor."))
        elif not self.curves:
            self.placeholder.set(
                empty("Nothing recorded", "The run kept no curves of its tensors: it is of an older version.")
            )
        else:
            ended = over(shown.state, shown.lost)
            self.placeholder.set(
                empty("Not pressed", f"No tensor of {self.scope.words} was pressed.")
                if ended
                else empty("Not pressed yet", f"No tensor of {self.scope.words} is pressed so far.")
            )

    def _nothing(self, shown: Shown | None) -> None:
        self.body.visible, self.placeholder.pane.visible = False, True
        if shown is None:
            words = empty("No run is open", "What another threshold would do to a run's tensors stands here.")
        else:
            words = empty("No tensor is pressed yet", "The curves come with each tensor of step 4.")
            if over(shown.state, shown.lost):
                status = status_of(shown.state, shown.lost, remote=shown.remote)
                words = empty("No tensor was pressed", status.sentence)
        self.placeholder.set(words)

    _quiet = False

    def _quietly(self, part: Any, **values: Any) -> None:
        changed = {key: value for key, value in values.items() if getattr(part, key) != value}
        if changed:
            self._quiet = True
            try:
                part.param.update(**changed)
            finally:
                self._quiet = False


def _table(rows: tuple[Line, ...], tensors: int, missing: int) -> Markup:
    body = join(
        Markup(
            '<tr><th>{}</th><td data-now="{}">{}</td><td data-then="{}">{}</td>'
            '<td data-change="{}">{}</td></tr>'
        ).format(row.title, row.key, row.now, row.key, row.then, row.key, row.change)
        for row in rows
    )
    about = fig.plural(tensors, "tensor") + (f", {missing} more not pressed yet" if missing else "")
    return panel(
        f"Now and with the setting · {about}",
        Markup(
            '<div class="scroll"><table><thead><tr><th><span class="visually-hidden">Figure</span></th>'
            "<th>Now</th><th>With the setting</th><th>Change</th></tr></thead><tbody>{}</tbody></table></div>"
        ).format(body),
        csv_button("setting"),
    )


def _twin(made: Charts) -> Markup:
    rows = []
    for at in range(0, len(made.thresholds), 8):
        rows.append(
            Markup("<tr><th>{}</th><td>{}</td><td>{}</td><td>{}</td></tr>").format(
                f"{made.thresholds[at]:.2f}",
                fig.percent(made.zeros[at]),
                error_words(made.error[at]),
                fig.significant(made.perplexity[at], 4) if made.perplexity else fig.NOTHING,
            )
        )
    return Markup(
        '<details class="small"><summary class="soft">The curves as a table</summary><div class="scroll">'
        "{}<table><thead><tr><th>Threshold</th><th>Zero codes</th><th>Relative error</th>"
        "<th>Perplexity</th></tr></thead><tbody>{}</tbody></table></div></details>"
    ).format(csv_tools("setting-curves"), join(rows))


def _answer(state: dict[str, Any]) -> Markup:
    """What the worker answered to the last `set`."""
    answers = [ack for ack in state["acks"].values() if ack.get("command") == "set"]
    if not answers:
        return Markup("")
    last = answers[-1]
    return note("good" if last.get("ok") else "bad", f"Worker: {last.get('detail') or ''}")
