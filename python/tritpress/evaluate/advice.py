"""What to do about a gate that fails: which tensors or setting, what it would cost, and the command line."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tritpress.config import CompressionConfig
    from tritpress.evaluate.gates import Measured

NAMED = 3
"""Tensors named in one sentence."""
FIRST_TOKENS = 500_000
LEAST_RATIO = 6.0

OPTIONS = {
    "target_ratio": "--ratio",
    "planes": "--planes",
    "method": "--method",
    "fit": "--fit",
    "group_size": "--group-size",
    "sparsity": "--sparsity",
    "threshold": "--threshold",
    "epochs": "--epochs",
    "tokens": "--tokens",
    "minutes": "--minutes",
    "optimizer": "--optimizer",
    "grokfast_lambda": "--grokfast-lambda",
    "learning_rate": "--learning-rate",
    "activation_bits": "--activation-bits",
    "seed": "--seed",
    "device": "--device",
    "threads": "--threads",
}
"""Fields of the configuration that the command line of a run can carry."""


@dataclass(frozen=True)
class Command:
    """A `tritpress compress` command line: that of the run itself, with some options changed."""

    model: str = "MODEL"
    out: str = "OUT"
    options: Mapping[str, Any] = field(default_factory=dict)
    text: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: CompressionConfig, model: str, out: str) -> Command:
        """The command line that repeats a run: only what differs from the defaults is said."""
        given = config.model_dump(exclude_defaults=True)
        return cls(model, out, {k: v for k, v in given.items() if k in OPTIONS}, tuple(config.text))

    def changed(self, **options: Any) -> Command:
        """The same with options set anew; None takes one away."""
        merged = {**self.options, **options}
        return replace(self, options={k: v for k, v in merged.items() if v is not None})

    def __str__(self) -> str:
        words = ["tritpress", "compress", self.model, "-o", self.out]
        for key, option in OPTIONS.items():
            if key in self.options:
                value = self.options[key]
                words += [option, f"{value:g}" if isinstance(value, float) else str(value)]
        for path in self.text:
            words += ["--text", path]
        return shlex.join([*words, "--overwrite"])


def for_ratio(m: Measured) -> str:
    """Fewer planes where they help least, embeddings as int8 rows; or that it is out of reach."""
    spare = sorted((x for x in m.layers if x["planes"] > 1), key=_error_of)
    saved = sum(_plane_bytes(x) * (x["planes"] - 1) for x in spare)
    largest = m.bytes_fp32 / (m.bytes_packed - saved) if m.bytes_packed > saved else 0.0
    if largest >= LEAST_RATIO or (m.embeddings == "fp16" and m.ratio_file is not None):
        command = m.command.changed(planes=None, target_ratio=LEAST_RATIO)
        what = []
        if m.embeddings == "fp16":
            what.append("embeddings as int8 rows")
        if spare:
            what.append(
                f"one plane fewer for the tensors that need it least, {_names(spare)} first "
                f"(each plane of the {len(spare)} tensors that have more than one: {_size(saved)} in all)"
            )
        if what:
            return f"Press harder: {', and '.join(what)}. Run {command}."
    return (
        "Every tensor has one plane and the embeddings are int8 rows already: what is not pressed takes too "
        f"large a share, and {m.ratio_file:.2f} is about the largest ratio of this model at "
        "this group size; a larger --group-size saves scales."
    )


def for_quality(m: Measured) -> str:
    """A second plane for the worst tensors (bytes and ratio after it), and more fine-tuning."""
    parts = []
    worst = _worst_within_reach(m)
    if worst:
        added = sum(_plane_bytes(x) for x in worst)
        ratio = m.bytes_fp32 / (m.bytes_packed + added)
        command = m.command.changed(planes=None, target_ratio=_down(ratio))
        parts.append(
            f"Give one plane more to the {len(worst)} tensors with the largest error, {_names(worst)} first: "
            f"{_size(added)} more, ratio from {m.ratio_file or 0:.2f} to {ratio:.2f}. Run {command}."
        )
    tokens = max(FIRST_TOKENS, 2 * m.fine_tuned_tokens)
    command = m.command.changed(epochs=None, minutes=None, tokens=tokens)
    before = f"({m.fine_tuned_tokens:,} so far) " if m.fine_tuned_tokens else ""
    parts.append(f"{'Or f' if parts else 'F'}ine-tune {tokens:,} tokens {before}at the same size: {command}.")
    return " ".join(parts)


def for_sparsity(m: Measured) -> str:
    """The tensors outside the band and the setting that holds them inside it."""
    low, high = 0.25, 0.45
    outside = [x for x in m.layers if not low <= x["sparsity"] <= high]
    outside.sort(key=lambda x: -abs(x["sparsity"] - 0.5 * (low + high)))
    named = ", ".join(f"{x['name']} ({x['sparsity']:.1%})" for x in outside[:NAMED])
    where = f"{len(outside)} of {len(m.layers)} tensors lie outside {low:.0%} to {high:.0%}: {named}. "
    given = next((key for key in ("sparsity", "threshold") if key in m.command.options), None)
    command = m.command.changed(sparsity=None, threshold=None)
    if given is not None:
        return (
            f"{where if outside else ''}{OPTIONS[given]} asks for it; without it zeros are held at 44 % or "
            f"less, the planes and the size staying as they are. Run {command}."
        )
    return (
        f"{where if outside else ''}Ask for a share of zeros inside the band, the size staying as it is: "
        f"{m.command.changed(threshold=None, sparsity=0.4)}."
    )


def for_gradients(m: Measured) -> str:
    """The tensors whose gradient is unsound, what is wrong, and a plane more for them."""
    if m.gradients is None:
        return ""
    failing = m.gradients.failing
    named = "; ".join(f"{name}: {fault}" for name, fault in failing[:NAMED])
    by_name = {x["name"]: x for x in m.layers}
    fixable = [by_name[name] for name, _ in failing if name in by_name and by_name[name]["planes"] < 3]
    text = f"{len(failing)} of {m.gradients.tensors} tensors fail: {named}."
    if not fixable or not m.bytes_packed:
        return text
    added = sum(_plane_bytes(x) for x in fixable)
    ratio = m.bytes_fp32 / (m.bytes_packed + added)
    command = m.command.changed(planes=None, target_ratio=_down(ratio))
    return (
        f"{text} A plane more for them is {_size(added)}, ratio from {m.ratio_file or 0:.2f} to {ratio:.2f}. "
        f"Run {command}."
    )


ADVICE: dict[str, Callable[[Measured], str]] = {
    "ratio": for_ratio,
    "accuracy": for_quality,
    "perplexity": for_quality,
    "sparsity": for_sparsity,
    "gradient_flow": for_gradients,
}


def _worst_within_reach(m: Measured) -> list[Mapping[str, Any]]:
    """The tensors with the largest error, as many as a tenth of all weights or the ratio gate allows."""
    if not m.bytes_packed or not m.bytes_fp32:
        return []
    candidates = sorted((x for x in m.layers if x["planes"] < 3), key=_error_of, reverse=True)
    room = m.bytes_fp32 / LEAST_RATIO - m.bytes_packed
    total = sum(x["weights"] for x in m.layers)
    chosen: list[Mapping[str, Any]] = []
    weights = 0
    for layer in candidates:
        if _plane_bytes(layer) > room:
            continue
        chosen.append(layer)
        room -= _plane_bytes(layer)
        weights += layer["weights"]
        if weights >= 0.1 * total and len(chosen) >= NAMED:
            break
    return chosen


def _error_of(layer: Mapping[str, Any]) -> float:
    """What the tensor costs per weight: the planner's predicted loss, or else its relative squared error."""
    if layer.get("predicted_loss") is not None:
        return float(layer["predicted_loss"]) / layer["weights"]
    return 1.0 - float(layer["cosine"]) ** 2


def _plane_bytes(layer: Mapping[str, Any]) -> int:
    """Bytes of one plane of codes and scales."""
    return int(layer["bytes"]) // int(layer["planes"])


def _names(layers: list[Mapping[str, Any]]) -> str:
    return ", ".join(str(x["name"]) for x in layers[:NAMED])


def _down(ratio: float) -> float:
    """Rounded down, so that the planner has room for what was promised."""
    return int(ratio * 100) / 100


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count:,} bytes"
