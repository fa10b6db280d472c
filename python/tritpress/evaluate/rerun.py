"""The command line that repeats a run, with some of its options changed: what advice ends in."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritpress.config import beyond_defaults, toml_of

if TYPE_CHECKING:
    from tritpress.config import CompressionConfig

OPTION_OF = {
    "target_ratio": "--ratio",
    "planes": "--planes",
    "plan": "--plan",
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
    "weight_decay": "--weight-decay",
    "activation_bits": "--activation-bits",
    "text_field": "--text-field",
    "seed": "--seed",
    "device": "--device",
    "threads": "--threads",
}
"""Fields of the configuration that take one value on the command line -> their option."""

OWN_WORDS = frozenset({"text", "tasks", "overwrite", "finetune", "outputs"})
"""Fields that have words of their own there; what is in neither needs a file (`--config`)."""


@dataclass(frozen=True)
class Command:
    """A `tritpress compress` command line. `program` is how tritpress is called, words of a shell; `settings`
    a TOML file with what the command line has no option for; `runs` the folder of runs where it is not the
    usual one.
    """

    model: str = "MODEL"
    out: str = "OUT"
    options: Mapping[str, Any] = field(default_factory=dict)
    text: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    program: str = "tritpress"
    settings: str | None = None
    runs: str | None = None

    @classmethod
    def of(cls, config: CompressionConfig, model: str, out: str, **more: Any) -> Command:
        """The command line that repeats a run: only what differs from the defaults is said."""
        given = beyond_defaults(config.model_dump(mode="json"))
        carried = (OPTION_OF.keys() | OWN_WORDS) - {"text", "tasks"}
        known = {key: value for key, value in given.items() if key in carried}
        # Task files are found from any folder, names of lm-eval's own tasks stay names.
        tasks = (str(Path(task).absolute()) if Path(task).exists() else task for task in config.tasks or ())
        return cls(model, out, known, tuple(config.text), tuple(tasks), **more)

    def changed(self, **options: Any) -> Command:
        """The same with options set anew; None takes one away."""
        merged = {**self.options, **options}
        return replace(self, options={k: v for k, v in merged.items() if v is not None})

    def __str__(self) -> str:
        words = ["compress", self.model, "-o", self.out]
        if self.settings is not None:
            words += ["--config", self.settings]
        for key, option in OPTION_OF.items():
            if key in self.options:
                value = self.options[key]
                words += [option, _number(value) if isinstance(value, float) else str(value)]
        if "finetune" in self.options:
            words.append("--finetune" if self.options["finetune"] else "--no-finetune")
        if self.options.get("outputs") in ("packed", "dequantized"):
            words.append(f"--{self.options['outputs']}-only")
        for path in self.text:
            words += ["--text", path]
        for task in self.tasks:
            words += ["--tasks", task]
        if self.runs is not None:
            words += ["--runs", self.runs]
        return f"{self.program} {shlex.join([*words, '--overwrite'])}"


def _number(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def beyond_options(config: CompressionConfig) -> dict[str, Any]:
    """What a configuration asks for that the command line has no option for."""
    given = beyond_defaults(config.model_dump(mode="json"))
    return {key: value for key, value in given.items() if key not in OPTION_OF and key not in OWN_WORDS}


def write_settings(values: Mapping[str, Any], path: Path) -> None:
    """Write such fields of the configuration as a TOML file that `--config` takes."""
    path.write_text(toml_of(values), encoding="utf-8")
