"""What another threshold or sparsity would do to tensors of a run, foretold from what the run recorded.

The curves of a tensor are those of fitting its weights anew (`tritpress.ternarize.details`). A tensor's loss
is taken to scale with its squared error: its predicted loss (the plan's, nats a token) times the curve's
error at the setting over that of the tensor as it was planned. A threshold leaves the calibrated sweep no
choice of codes, which costs it what `LESS_MADE_UP` says. The losses add up; perplexity is the original's
times exp(loss). Where the run measured the packed model, the sum is scaled so that the present setting gives
what was measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tritpress.config import EXCLUSIVE, without_unused
from tritpress.errors import InputError, UsageError
from tritpress.events.snapshot import weights_of
from tritpress.plan import Plan
from tritpress.runs.details import TensorDetails, load_details

LESS_MADE_UP = {1: 1.4, 2: 1.4, 3: 4.0}
"""Planes -> how much more loss the calibrated sweep leaves, at the same error of a plain fit, where a
threshold sets the codes: it can then make up for errors by scales and between groups alone. Read off runs of
the reference model at thresholds from 0.2 to 1.1."""


@dataclass(frozen=True)
class Setting:
    """Threshold relative to the group's mean |w|, or share of zero codes: one of the two."""

    threshold: float | None = None
    sparsity: float | None = None

    @property
    def words(self) -> str:
        if self.threshold is not None:
            return f"threshold {self.threshold:g}"
        return f"sparsity {self.sparsity:g}"


@dataclass(frozen=True)
class TensorCurve:
    """What tuning needs of one pressed tensor. `zeros` and `error` are what the run made of it, `loss` the
    plan's prediction (nats a token), None where there is none. `swept` is by the calibrated method: others do
    not make up for errors.
    """

    name: str
    layer: int | None
    kind: str
    planes: int
    weights: int
    zeros: float
    error: float
    loss: float | None
    thresholds: np.ndarray
    zeros_at: np.ndarray
    error_at: np.ndarray
    planned_error: float
    planned_threshold: float | None = None
    shares: np.ndarray | None = None
    error_at_share: np.ndarray | None = None
    swept: bool = True

    def threshold_of(self, setting: Setting) -> float:
        """The threshold that the setting means for this tensor, within what the curve covers."""
        if setting.threshold is not None:
            return float(np.clip(setting.threshold, self.thresholds[0], self.thresholds[-1]))
        assert setting.sparsity is not None
        rising = np.maximum.accumulate(self.zeros_at)
        return float(np.interp(setting.sparsity, rising, self.thresholds))

    @property
    def present(self) -> float:
        """The threshold at which the curve has the zeros that the tensor has."""
        return self.threshold_of(Setting(sparsity=self.zeros))

    def zeros_with(self, threshold: float) -> float:
        return float(np.interp(threshold, self.thresholds, self.zeros_at))

    def factor(self, setting: Setting) -> float:
        """Squared error with that setting over squared error as planned."""
        if setting.sparsity is not None and self.shares is not None:
            return float(self._factors_at_shares(np.array([setting.sparsity]))[0])
        at = np.array([self.threshold_of(setting)])
        return float(self._over_planned(np.interp(at, self.thresholds, self.error_at))[0])

    def factors(self, by_share: bool) -> np.ndarray:
        """`factor` at every threshold, or at the share of zeros that it means."""
        if by_share and self.shares is not None:
            return self._factors_at_shares(self.zeros_at)
        return self._over_planned(self.error_at)

    def _factors_at_shares(self, shares: np.ndarray) -> np.ndarray:
        assert self.shares is not None and self.error_at_share is not None
        return self._over_planned(np.interp(shares, self.shares, self.error_at_share))

    def _over_planned(self, error: np.ndarray) -> np.ndarray:
        return error / self.planned_error if self.planned_error > 0 else np.ones_like(error)

    def loss_factor(self, setting: Setting) -> float:
        """Loss with that setting over loss as planned."""
        return self.factor(setting) * self.made_up(setting.threshold is not None)

    def made_up(self, by_threshold: bool) -> float:
        """What a threshold, or being rid of one, does to the loss beside what it does to the error."""
        same = by_threshold == (self.planned_threshold is not None)
        if same or not self.swept or self.planned_error <= 0:
            return 1.0
        less = LESS_MADE_UP[self.planes]
        return less if by_threshold else 1.0 / less


def curve_of(
    name: str, layer: Mapping[str, Any], planned: Mapping[str, Any], d: TensorDetails
) -> TensorCurve:
    """The curve of one tensor from its event, which tells its size, its part of the plan and its details."""
    weights = weights_of(layer)
    assert weights
    return TensorCurve(
        name,
        layer.get("layer"),
        str(layer.get("kind") or "other"),
        d.planes,
        weights,
        float(layer["sparsity"]),
        d.relative_error,
        planned.get("predicted_loss"),
        d.thresholds,
        d.all_zeros_at,
        d.all_error_at,
        d.planned_error,
        d.planned_threshold,
        d.shares,
        d.error_at_share,
        planned.get("method") in ("gptq", None),
    )


def read_curves(
    run_path: str | Path, state: Mapping[str, Any], known: Mapping[str, TensorCurve] | None = None
) -> dict[str, TensorCurve]:
    """Curves of all pressed tensors of a size that is told and with details; those in `known` are taken from
    there.
    """
    planned = {tensor["name"]: tensor for tensor in (state.get("plan") or {}).get("tensors") or []}
    found = {}
    for name, layer in state["layers"].items():
        if known and name in known:
            found[name] = known[name]
            continue
        details = load_details(run_path, name) if weights_of(layer) else None
        if details is not None:
            found[name] = curve_of(name, layer, planned.get(name, {}), details)
    return found


@dataclass(frozen=True)
class Basis:
    """What perplexity can be foretold from. `reason` says why it cannot; `scale` is measured over predicted
    loss, 1 where nothing was measured.
    """

    perplexity: float | None = None
    loss: float | None = None
    scale: float = 1.0
    measured: float | None = None
    reason: str | None = None
    note: str = ""

    def perplexity_with(self, change: float) -> float | None:
        """Perplexity when the predicted loss changes by that much."""
        if self.reason is not None or self.perplexity is None or self.loss is None:
            return None
        exponent = self.scale * (self.loss + change)
        return self.perplexity * math.exp(exponent) if exponent < 50 else None


def basis_of(state: Mapping[str, Any]) -> Basis:
    """From the run's plan and its evaluations."""
    plan = state.get("plan")
    if not plan:
        return Basis(reason="the plan is not made yet")
    if plan.get("basis") == "weights":
        return Basis(
            reason="the plan was made from the weights alone: without calibration it foretells no loss"
        )
    losses = [tensor.get("predicted_loss") for tensor in plan.get("tensors") or []]
    if not losses or any(not _number(loss) for loss in losses):
        return Basis(reason="the plan foretells no loss for its tensors")
    before = (state["evaluations"].get("before") or {}).get("perplexity")
    if before is None or not _number(before):
        return Basis(reason="the original's perplexity was not measured")
    total = plan.get("predicted_loss")
    loss = float(total) if _number(total) else float(sum(losses))
    after = (state["evaluations"].get("packed") or {}).get("perplexity")
    if after is None or not _number(after):
        return Basis(before, loss, note="Not measured yet: the plan's losses are taken as they are.")
    rise = math.log(after / before)
    if rise <= 0 or loss <= 0:
        return Basis(
            before,
            loss,
            measured=after,
            note="The packed model measured no worse than the original: the plan's losses are taken as they "
            "are.",
        )
    trained = any(step["n"] == 5 and step["state"] == "done" for step in state["steps"])
    note = (
        f"Calibrated: the run measured {rise:.3g} nats a token where its plan foretold {loss:.3g}, so all "
        f"losses are scaled by {rise / loss:.3g}"
    )
    note += "; that is after fine-tuning, which a new run would do again." if trained else "."
    return Basis(before, loss, rise / loss, after, note=note)


@dataclass(frozen=True)
class Sweep:
    """Zeros, relative error (means by weights) and the model's perplexity at every threshold."""

    thresholds: np.ndarray
    zeros: np.ndarray
    error: np.ndarray
    perplexity: list[float] | None


def sweep(
    curves: Mapping[str, TensorCurve], chosen: Iterable[str], basis: Basis, by_share: bool = False
) -> Sweep | None:
    """The chosen tensors at each threshold, the others as they are; None without any of them. With `by_share`
    each has the share of zeros that the threshold means for it, and is fitted to that.
    """
    picked = [curves[name] for name in chosen if name in curves]
    if not picked:
        return None
    weights = np.array([curve.weights for curve in picked], dtype=np.float64)
    weights /= weights.sum()
    factors = np.array([curve.factors(by_share) for curve in picked])
    error = weights * [curve.error for curve in picked] @ factors
    perplexity = None
    losses = [curve.loss for curve in picked]
    if basis.reason is None and all(loss is not None for loss in losses):
        less = np.array([[curve.made_up(not by_share)] for curve in picked])
        changes = np.array(losses, dtype=np.float64) @ (less * factors - 1)
        found = [basis.perplexity_with(float(change)) for change in changes]
        perplexity = [value if value is not None else math.nan for value in found]
    zeros = weights @ np.array([curve.zeros_at for curve in picked])
    return Sweep(picked[0].thresholds, zeros, error, perplexity)


@dataclass(frozen=True)
class Forecast:
    """The whole model now and with the setting. Errors are means of the relative errors, by weights."""

    tensors: int
    zeros: float
    zeros_now: float
    error: float
    error_now: float
    chosen_zeros: float
    chosen_zeros_now: float
    chosen_error: float
    chosen_error_now: float
    perplexity: float | None
    perplexity_now: float | None
    reason: str | None


def forecast(
    curves: Mapping[str, TensorCurve], chosen: Iterable[str], setting: Setting | None, basis: Basis
) -> Forecast | None:
    """What the setting would make of the chosen tensors and so of the model; None without any of them."""
    names = [name for name in chosen if name in curves]
    if not names or not curves:
        return None
    picked = set(names)
    weights = np.array([curve.weights for curve in curves.values()], dtype=np.float64)
    now = np.array([(curve.zeros, curve.error) for curve in curves.values()])
    then = now.copy()
    inside = np.array([name in picked for name in curves])
    change: float | None = 0.0
    if setting is not None:
        for place, (name, curve) in enumerate(curves.items()):
            if name not in picked:
                continue
            zeros = curve.zeros_with(curve.threshold_of(setting))
            then[place] = zeros, curve.error * curve.factor(setting)
            if change is not None:
                grown = curve.loss_factor(setting) - 1
                change = change + curve.loss * grown if curve.loss is not None else None

    def mean(values: np.ndarray, where: np.ndarray) -> float:
        return float((values[where] * weights[where]).sum() / weights[where].sum())

    every = np.ones(len(now), dtype=bool)
    return Forecast(
        len(names),
        mean(then[:, 0], every),
        mean(now[:, 0], every),
        mean(then[:, 1], every),
        mean(now[:, 1], every),
        mean(then[:, 0], inside),
        mean(now[:, 0], inside),
        mean(then[:, 1], inside),
        mean(now[:, 1], inside),
        basis.perplexity_with(change) if change is not None else None,
        basis.perplexity_with(0.0),
        basis.reason,
    )


def plan_of_run(run_path: str | Path) -> Plan:
    """The plan that the run pressed by. Raises `InputError` when it has none."""
    path = Path(run_path)
    kept = path / "work" / "plan.json"
    if kept.is_file():
        return Plan.load(kept)
    try:
        return Plan.model_validate(json.loads((path / "report.json").read_bytes())["plan"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"the run {path.name} has kept no plan: a new one cannot be made from it") from None


def tuned_plan(
    plan: Plan, chosen: Iterable[str], setting: Setting, curves: Mapping[str, TensorCurve]
) -> Plan:
    """`plan` with the setting for the chosen tensors, their predicted losses scaled with their errors.

    Raises `UsageError` when a tensor is not in the plan.
    """
    made = plan.model_copy(deep=True)
    change = 0.0
    for name in chosen:
        tensor = made.tensors.get(name)
        if tensor is None:
            raise UsageError(f"the plan has no tensor {name}")
        tensor.threshold, tensor.sparsity, tensor.max_sparsity = setting.threshold, setting.sparsity, None
        if tensor.predicted_loss is not None and name in curves:
            factor = curves[name].loss_factor(setting)
            change += tensor.predicted_loss * (factor - 1)
            tensor.predicted_loss *= factor
    if made.predicted_loss is not None:
        made.predicted_loss += change
    return made


def tuned_config(config: Mapping[str, Any], plan: Path) -> dict[str, Any]:
    """The configuration of a new run by that plan, without what a plan decides in its place.

    BitNet's fit sets its own zeros; "absmean", its rule by groups, is what the curves show and what takes the
    plan's.
    """
    decided = {field for fields in EXCLUSIVE if "plan" in fields for field in fields}
    kept = {key: value for key, value in config.items() if key not in decided}
    if kept.get("fit") == "bitnet":
        kept["fit"] = "absmean"
    return {**without_unused(kept), "plan": str(plan), "overwrite": False}


def toml_of_config(config: Mapping[str, Any]) -> str:
    """What of the configuration differs from the default, as a file for `--config`; the plan stays out."""
    from tritpress.config import beyond_defaults, toml_of

    chosen = beyond_defaults(config)
    return toml_of({key: value for key, value in chosen.items() if key != "plan" and value is not None})


def write_plan(path: Path, plan: Plan, config: Mapping[str, Any]) -> None:
    """Write the plan to `path` and the configuration beside it, as `.toml`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plan.save(path)
    path.with_suffix(".toml").write_text(toml_of_config(config), encoding="utf-8")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
