"""What the steps share: the run's folder, what is loaded so far, and what was measured."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tritpress.config import KEPT_PLAN, CompressionConfig, plan_to_name
from tritpress.devices import choose_device
from tritpress.errors import InputError, UsageError
from tritpress.events.context import RunContext
from tritpress.formats.checks import text_config
from tritpress.formats.output import write_atomically
from tritpress.formats.source import INPUT_EMBEDDINGS, SourceModel, TensorEntry, read_tensor, tensor_entries
from tritpress.formats.store import TensorStore
from tritpress.formats.targets import Target, embedding_targets
from tritpress.plan import Plan, read_plan
from tritpress.steps.torch_loading import load_torch
from tritpress.text import Splits

if TYPE_CHECKING:
    import numpy as np
    from torch import nn


PAGED_FROM = 50_000_000
"""Parameters from which a model on a CPU is read block by block rather than held (float32: 200 MB)."""
UNASKED_LIMIT = 50_000_000
"""Parameters from which a CPU is too slow to fine-tune without being asked."""


class RunFolder(Protocol):
    """The part of a run directory that the steps need (`tritpress.runs.directory.RunDirectory` is one)."""

    @property
    def id(self) -> str: ...

    @property
    def path(self) -> Path:
        """The run's folder."""
        ...

    @property
    def work(self) -> Path:
        """Folder of what a resumed run goes on from."""
        ...

    def read_run(self) -> dict[str, Any]:
        """The run's record: `model` and `out` are paths, `chosen` what was measured at its first start."""
        ...

    def choose(self, **measured: Any) -> dict[str, Any]:
        """Keep `measured` on the run's first start; return what was kept then on every later one."""
        ...


@dataclass
class Work:
    """State of one run in memory; everything worth keeping also lies in `folder`."""

    config: CompressionConfig
    directory: RunFolder
    context: RunContext

    # set by step 1
    source: SourceModel = field(init=False)
    targets: list[Target] = field(init=False)
    method: str = field(init=False)
    splits: Splits | None = None
    no_text_reason: str | None = None
    chosen: dict[str, Any] = field(default_factory=dict)

    # measured by later steps
    plan: Plan | None = None
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    gates: list[dict[str, Any]] = field(default_factory=list)
    task_results: dict[str, Any] | None = None
    gradient_norms: dict[str, float | None] = field(default_factory=dict)
    handoff: list[dict[str, Any]] = field(default_factory=list)
    output_files: list[dict[str, Any]] = field(default_factory=list)
    output_bytes: dict[str, int] = field(default_factory=dict)
    fine_tuning: dict[str, Any] | None = None
    text_facts: dict[str, Any] | None = None
    records: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def folder(self) -> Path:
        """The run's work folder, made when it is not there."""
        folder = Path(self.directory.work)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def request(self) -> dict[str, Any]:
        """The run's record as it was when the worker started."""
        return self.directory.read_run()

    @property
    def kept(self) -> dict[str, Any]:
        """What was chosen at the run's first start; nothing before that has ended its first step."""
        return self.request.get("chosen") or {}

    @property
    def out(self) -> Path:
        """Where the models and the report go."""
        return Path(self.request["out"])

    def given_plan(self) -> Plan | None:
        """The plan that the run was given, held against the model: as it was when the run was made, where its
        folder has that. Raises `UsageError` naming the file that was given, and the tensor that does not fit.
        """
        given = self.config.plan
        if given is None:
            return None
        kept = self.directory.path / KEPT_PLAN
        if not kept.is_file():  # the run is of an older version, or none
            return read_plan(given, self.source, self.targets, self.config.fit)
        try:
            return read_plan(kept, self.source, self.targets, self.config.fit)
        except UsageError as error:
            words = str(error).replace(str(kept), given)
            if not Path(given).is_file():
                words += f" (its copy in the run's folder, {KEPT_PLAN}, was read: {given} is gone)"
            elif plan_to_name(given, self.directory.path) != given:
                words += f" (as {given} was when the run was made; a new run reads it as it is now)"
            raise UsageError(words) from None

    @property
    def config_again(self) -> CompressionConfig:
        """The configuration to do this run again with: by its own copy of a plan that is not as it was."""
        if self.config.plan is None:
            return self.config
        plan = plan_to_name(str(self.config.plan), Path(self.directory.path))
        return self.config.model_copy(update={"plan": plan})

    @cached_property
    def store(self) -> TensorStore:
        """Codes and scales as step 4 made them."""
        return TensorStore(self.folder / "tensors")

    @cached_property
    def finetuned_store(self) -> TensorStore:
        """Codes and scales as step 5 left them."""
        return TensorStore(self.folder / "finetuned")

    @property
    def may_train(self) -> bool:
        """Whether step 5 is to train, as far as options, device and the model's size tell."""
        if self.config.finetune is False or self.torch_missing:
            return False
        quick = self.source.parameters < UNASKED_LIMIT
        return self.asked_to_train or self.device != "cpu" or quick

    @property
    def asked_to_train(self) -> bool:
        """Whether the options ask for a training, by word or by a budget."""
        config = self.config
        asked = config.finetune or config.tokens or config.epochs or config.minutes
        return config.finetune is not False and bool(asked)

    @property
    def embeddings(self) -> list[Target]:
        """Token embeddings and output heads that the plan presses; none before there is a plan."""
        return [] if self.plan is None else self._embeddings_in(self.plan)

    @property
    def pressed(self) -> list[Target]:
        """Everything that the plan presses: embeddings first, then the linear layers."""
        return [*self.embeddings, *self.targets]

    def pressed_by(self, plan: Plan) -> list[Target]:
        """Everything that another plan than the run's presses, in the same order."""
        return [*self._embeddings_in(plan), *self.targets]

    def _embeddings_in(self, plan: Plan) -> list[Target]:
        return [target for target in embedding_targets(self.source) if target.name in plan.tensors]

    @property
    def final_store(self) -> TensorStore:
        """The codes that are written out: those of step 5 where it ran, else those of step 4."""
        healed = all(self.finetuned_store.has(target.name) for target in self.pressed)
        return self.finetuned_store if healed else self.store

    @property
    def rest_path(self) -> Path:
        """Where step 5 keeps what it trained beside the codes (embeddings, norms, biases), float32."""
        return self.folder / "finetuned-rest.safetensors"

    @property
    def trained_rest(self) -> dict[str, TensorEntry]:
        """The tensors of `rest_path` by their source's name; none where the codes of step 4 are written."""
        if self.final_store is self.store or not self.rest_path.is_file():
            return {}
        return tensor_entries(self.rest_path)

    @cached_property
    def device(self) -> str:
        """The device, cpu or cuda; a resumed run's is the one that it began on.

        Raises `UsageError` when CUDA was asked for, or the run began on it, and it is not there.
        """
        wanted = self.kept.get("device") or self.config.device
        if self.torch_missing:
            if wanted == "cuda":
                raise UsageError(f"--device cuda: {self.torch_missing}")
            return "cpu"
        if wanted != "cpu":
            load_torch()
        try:
            return choose_device(wanted)
        except UsageError:
            if self.config.device == "cuda" or not self.kept:
                raise
            raise UsageError(
                f"run {self.directory.id} began on a CUDA device, and torch finds none here: resume it where "
                "there is one, or start a new run"
            ) from None

    @cached_property
    def torch_missing(self) -> str | None:
        """Why the steps that need torch cannot run; None when they can."""
        missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
        return f"{' and '.join(missing)} not installed (pip install 'tritpress[hf]')" if missing else None

    @property
    def cannot_measure(self) -> str | None:
        """Why nothing can be evaluated; None when it can."""
        if not self.config.evaluate:
            return "evaluation switched off"
        return self.torch_missing or self.no_text_reason

    @property
    def needs_torch(self) -> bool:
        """Whether any step of this run evaluates, calibrates or trains."""
        if self.torch_missing:
            return False
        if self.config.tasks:
            return True
        if self.splits is None:
            return False
        return self.config.evaluate or self.calibrates or self.config.finetune is not False

    @property
    def calibrates(self) -> bool:
        """Whether the method needs what step 3 finds in the calibration text."""
        return self.method != "fast"

    @cached_property
    def tokenizer(self) -> Any:
        from tritpress.formats.huggingface import load_tokenizer

        return load_tokenizer(self.source.path)

    @cached_property
    def tasks(self) -> Any:
        """The tasks of `config.tasks` with their data sets (`evaluate.tasks.Tasks`)."""
        from tritpress.evaluate.tasks import open_tasks

        return open_tasks(self.config.tasks)

    @cached_property
    def original(self) -> nn.Module:
        """The original model in float32 on `device`; loaded when first needed."""
        from tritpress.nn.paging import is_paged

        model = self.open_dense(self.source)
        if is_paged(model):
            entries = self.source.tensors
            values: Iterator[Any] = ((name, read_tensor(e)) for name, e in entries.items() if e.is_float)
        else:
            values = ((name, p.detach().cpu().numpy()) for name, p in model.named_parameters())
        for name, value in values:
            if not all_finite(value):
                raise InputError(
                    f"{self.source.path}: tensor {name} holds NaN or infinity; repair the model first"
                )
        return model

    def open_dense(self, source: SourceModel) -> nn.Module:
        """A model directory in float32 on `device`, in evaluation mode.

        On a CPU a large model that is not to be trained has its blocks left on disk (`nn.paging`): they are
        read as they run.
        """
        from tritpress.formats.huggingface import load_original
        from tritpress.formats.paged import load_paged

        if self.device == "cpu" and source.parameters >= PAGED_FROM and not self.asked_to_train:
            model = load_paged(source)
            if model is not None:
                return model
            self.context.emit(
                "log",
                message=f"{source.path} is held in memory whole: its blocks cannot be read one by one, since "
                "its parameters are not the tensors of its files one to one",
            )
        return load_original(source, device=self.device)

    @cached_property
    def reference(self) -> nn.Module:
        """The original as evaluations compare with it: a paged one's hidden states are computed once."""
        return self.for_evaluation(self.original, keep=self.folder / "held-out-hidden.npy")

    def forget_original(self) -> None:
        """Let go of the original in memory; it is loaded again when it is next asked for."""
        self.__dict__.pop("reference", None)
        self.__dict__.pop("original", None)

    def forget_reference(self) -> None:
        """Drop what `reference` keeps, in memory and in the work folder."""
        self.__dict__.pop("reference", None)
        (self.folder / "held-out-hidden.npy").unlink(missing_ok=True)

    def for_evaluation(self, model: nn.Module, keep: Path | None = None) -> nn.Module:
        """`model`, or where it is paged a wrapper that runs all held-out windows block by block at once."""
        from tritpress.nn.paging import is_paged

        if not is_paged(model):
            return model
        from tritpress.evaluate.streamed import Streamed

        if isinstance(model, Streamed):
            return model
        return Streamed(model, self.windows("held_out"), self.context, keep)

    def windows(self, split: str) -> np.ndarray:
        """Token windows int64 [n, window] of a split, the same every time in one run."""
        assert self.splits is not None
        if split not in self._windows:
            from tritpress.text import token_windows

            limit = {
                "calibration": self.config.calibration_tokens,
                "validation": self.config.evaluation_tokens // 2,
                "held_out": self.config.evaluation_tokens,
            }[split]
            found = token_windows(
                self.tokenizer,
                getattr(self.splits, split),
                window=self.window,
                limit=max(1, limit // self.window),
                seed=self.config.seed,
                part=split.replace("_", "-"),
                vocabulary=self.vocabulary,
            )
            self._windows[split] = found
        return self._windows[split]

    @cached_property
    def _windows(self) -> dict[str, np.ndarray]:
        return {}

    @cached_property
    def vocabulary(self) -> int | None:
        """Tokens that the model has an embedding for; None where neither files nor config tell."""
        found = embedding_targets(self.source)
        rows = {target.rows for target in found if target.name.split(".")[-2] in INPUT_EMBEDDINGS}
        if len(rows) == 1:
            return rows.pop()
        told = text_config(self.source).get("vocab_size")
        return told if isinstance(told, int) else None

    @property
    def longest(self) -> int:
        """Tokens that the model takes at once; 2048 where its config does not say."""
        config = self.source.config
        return int(config.get("max_position_embeddings") or config.get("n_positions") or 2048)

    @cached_property
    def window(self) -> int:
        """Tokens in a window: what was asked for, or fewer when the model takes fewer."""
        config = self.source.config
        longest = config.get("max_position_embeddings") or config.get("n_positions") or self.config.window
        return min(self.config.window, int(longest))

    def read_json(self, name: str) -> Any | None:
        """A JSON file of the work folder; None when it is not there; `InputError` if it cannot be read."""
        path = self.folder / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except (OSError, ValueError) as error:
            raise InputError(f"what the run kept in {path} cannot be read ({error})") from None

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the work folder at once or not at all."""
        write_atomically(self.folder / name, json.dumps(value, indent=1))


def all_finite(values: Any) -> bool:
    """Whether a numpy array holds neither NaN nor infinity, seen piece by piece."""
    import numpy as np

    flat, step = values.reshape(-1), 1 << 22
    return all(bool(np.isfinite(flat[i : i + step]).all()) for i in range(0, flat.size, step))
