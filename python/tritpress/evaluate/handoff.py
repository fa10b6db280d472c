"""The handoff checklist: each item is a check that can fail, made on what lies on disk."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tritpress.errors import TritpressError
from tritpress.formats.source import SourceModel, TensorEntry, open_source, read_raw
from tritpress.formats.writing import NEVER_WRITTEN, companions, sha256_of

if TYPE_CHECKING:
    from tritpress.formats.packed import PackedModel

LOGIT_TOLERANCE = 1e-3
"""Norm of the difference of the two models' float32 logits over the norm of the logits."""
CHUNK = 4 * 1024 * 1024
"""Weights decoded at once, so that a large model is checked in little memory."""
TOKENIZER_FILES = (
    "vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json", "added_tokens.json", "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
"""Files of tokenizers whose names do not begin with tokenizer."""
SAMPLE = "def press(weights):\n    return [sign(w) for w in weights]  # naïve, but ternary\n"


class Failed(Exception):
    """An item that does not hold; the message is its detail."""


class Unmeasured(Exception):
    """An item that cannot be checked here; the message says why."""


def check_handoff(
    packed_dir: str | Path,
    dequantized_dir: str | Path,
    source: SourceModel,
    *,
    models: Mapping[str, Any] | None = None,
    windows: np.ndarray | None = None,
    gates: list[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """[{name, passed, detail}]: both directories read again and compared with each other and with the source.

    `models`, when torch is at hand: "packed" (on `TernaryLinear`) and "dequantized", as loaded from these
    directories; `windows` int64 [n, window] for their logits. `passed` is None for an item that cannot be
    checked here (the detail says why). A check that breaks is an item that failed, never an exception.
    """
    check = _Checks(Path(packed_dir), Path(dequantized_dir), source, models or {}, windows, gates or [])
    items: tuple[tuple[str, Callable[[], str]], ...] = (
        ("packed files are those that were written", check.checksums),
        ("packed model passes the strict reader", check.strict_reader),
        ("dequantized model is complete", check.complete),
        ("packed decodes to dequantized bit for bit", check.bit_for_bit),
        ("no value is NaN or infinite", check.finite),
        ("configurations fit the files", check.configurations),
        ("tokenizer round trips", check.tokenizer),
        ("no code and no leftovers in the directories", check.clean),
        ("dequantized opens in stock transformers", check.stock),
        ("packed and dequantized give the same logits", check.logits),
        ("gradients reach every pressed tensor", check.gradients),
        ("size on disk is the one the ratio was judged by", check.size),
    )
    return [_item(name, function) for name, function in items]


def _item(name: str, function: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"name": name, "passed": True, "detail": function()}
    except Unmeasured as why:
        return {"name": name, "passed": None, "detail": f"not checked: {why}"}
    except (Failed, TritpressError, OSError, ValueError, KeyError, RuntimeError) as fault:
        return {"name": name, "passed": False, "detail": str(fault) or type(fault).__name__}


class _Checks:
    def __init__(
        self,
        packed_dir: Path,
        dequantized_dir: Path,
        source: SourceModel,
        models: Mapping[str, Any],
        windows: np.ndarray | None,
        gates: list[dict[str, Any]],
    ) -> None:
        self.packed_dir, self.dequantized_dir, self.source = packed_dir, dequantized_dir, source
        self.models, self.windows, self.gates = models, windows, gates
        self._packed: PackedModel | None = None

    def checksums(self) -> str:
        """Bytes and sha256 of every weight file, and of the source's, are those in `tritpress.json`."""
        told = _json(self.packed_dir / "tritpress.json")
        on_disk = {path.name for path in self.packed_dir.glob("*.safetensors")}
        if on_disk != set(told["weights"]):
            raise Failed(f"tritpress.json lists {sorted(told['weights'])}, the folder has {sorted(on_disk)}")
        for folder, files in ((self.packed_dir, told["weights"]), (self.source.path, told["source"])):
            for name, expected in files.items():
                path = folder / name
                if path.stat().st_size != expected["bytes"] or sha256_of(path) != expected["sha256"]:
                    raise Failed(f"{path} is not the file that tritpress.json describes")
        return f"{len(told['weights'])} weight files, {len(told['source'])} of the source: sha256 as told"

    def strict_reader(self) -> str:
        packed = self._open()
        return f"{len(packed.tensors)} ternary tensors, every code and scale in range"

    def complete(self) -> str:
        """Every tensor of the source is in the dequantized model, in its own shape, and nothing else is."""
        ours = self._dequantized().tensors
        missing = sorted(self.source.tensors.keys() - ours.keys())
        extra = sorted(ours.keys() - self.source.tensors.keys())
        if missing or extra:
            raise Failed(f"missing: {missing[:3]}, not in the source: {extra[:3]}")
        for name, entry in self.source.tensors.items():
            if tuple(ours[name].shape) != tuple(entry.shape):
                raise Failed(f"{name} is {list(ours[name].shape)}, in the source {list(entry.shape)}")
        return f"{len(ours)} tensors, each in the source's shape"

    def bit_for_bit(self) -> str:
        """Decode the codes here, with numpy and the format's description alone, and compare the bits."""
        packed, dequantized = self._open(), self._dequantized()
        for name in packed.names():
            for value, written in _pairs(packed, name, dequantized.tensors[name]):
                # equal bits, which for float16 is more than equal values: -0 is not 0
                if value.dtype != written.dtype or value.tobytes() != written.tobytes():
                    raise Failed(f"{name} in {self.dequantized_dir} is not what its packed form decodes to")
        return f"{len(packed.names())} tensors decode to the same bits"

    def finite(self) -> str:
        count = 0
        for name, entry in self._dequantized().tensors.items():
            for start in range(0, entry.size, CHUNK):
                values = read_raw(entry, start, min(entry.size, start + CHUNK))
                if values.dtype.kind == "f" and not np.isfinite(values).all():
                    raise Failed(f"{name} in {self.dequantized_dir} holds NaN or infinity")
                count += values.size
        return f"{count:,} values"

    def configurations(self) -> str:
        packed, plain = (_json(folder / "config.json") for folder in (self.packed_dir, self.dequantized_dir))
        if packed.get("quantization_config", {}).get("quant_method") != "tritpress":
            raise Failed(f"{self.packed_dir / 'config.json'} does not say quant_method tritpress")
        if "quantization_config" in plain:
            raise Failed(f"{self.dequantized_dir / 'config.json'} has a quantization_config")
        if plain.get("dtype", plain.get("torch_dtype")) != "float16":
            raise Failed(f"{self.dequantized_dir / 'config.json'} does not say dtype float16")
        for config in (packed, plain):
            for key in ("model_type", "architectures"):
                if config.get(key) != self.source.config.get(key):
                    raise Failed(f"{key} is {config.get(key)}, in the source {self.source.config.get(key)}")
        named = self.source.config.get("architectures")
        if not self.source.model_type or not self.source.architecture or named == []:
            raise Failed("the configurations name no model_type or no architecture")
        return f"{self.source.architecture}, dtype float16"

    def tokenizer(self) -> str:
        """The files are the source's own, and text survives encoding and decoding as with the source's."""
        files = [self.source.path / n for n in companions(self.source.path) if _is_tokenizer(n)]
        if not files:
            raise Unmeasured("the source has no tokenizer")
        for folder in (self.packed_dir, self.dequantized_dir):
            for path in files:
                copy = folder / path.name
                if not copy.is_file() or copy.read_bytes() != path.read_bytes():
                    raise Failed(f"{copy} is missing or differs from the source's")
        if any(importlib.util.find_spec(package) is None for package in ("torch", "transformers")):
            return f"{len(files)} files, equal to the source's (transformers is not here to run it)"
        from tritpress.formats.huggingface import load_tokenizer

        known, ours = (load_tokenizer(folder) for folder in (self.source.path, self.packed_dir))
        ids = ours.encode(SAMPLE, add_special_tokens=False)
        text = ours.decode(ids)
        if ids != known.encode(SAMPLE, add_special_tokens=False) or text != known.decode(ids):
            raise Failed(f"the tokenizer in {self.packed_dir} does not encode as the source's does")
        return f"{len(files)} files; a sample of {len(ids)} tokens " + (
            "comes back unchanged" if text == SAMPLE else "comes back as from the source's (not reversible)"
        )

    def clean(self) -> str:
        paths = [p for folder in (self.packed_dir, self.dequantized_dir) for p in folder.rglob("*")]
        for path in paths:
            if path.is_symlink() or path.suffix in NEVER_WRITTEN:
                raise Failed(f"{path} does not belong there")
        return f"{len(paths)} files"

    def stock(self) -> str:
        """Every parameter of the loaded model has the file's value: none was newly initialised or changed.

        Parameters that transformers makes of several of the file's tensors (stacked experts) are taken apart
        again by transformers itself; one whose origin cannot be found fails.
        """
        model = self._model("dequantized")  # first: without it there may be no torch either
        import torch

        from tritpress.formats.huggingface import file_tensors, load_original, model_name
        from tritpress.nn.paging import is_paged

        if is_paged(model):  # not read by transformers itself: open it the stock way, in float16
            model = load_original(self.dequantized_dir, dtype=torch.float16)
        if not type(model).__module__.startswith("transformers."):
            raise Failed(f"{type(model).__name__} is not a model of transformers")
        entries = self._dequantized().tensors
        parameters = dict(model.named_parameters())
        left, checked = dict(parameters), 0
        for name, entry in entries.items():
            known = model_name(model, name, parameters)
            if known is not None:
                _compare(name, left.pop(known), entry)
                checked += 1
        for name, value in file_tensors(model, left).items():
            known = name if name in entries else model_name(model, name, entries)
            if known is None:
                raise Failed(f"parameter {name} of the loaded model is not in the file")
            _compare(known, value, entries[known])
            checked += 1
        return f"{type(model).__name__}, {len(parameters)} parameters, {checked} tensors as in the file"

    def logits(self) -> str:
        """Float32 logits of both, the packed one with float32 activations, within the tolerance."""
        packed, dequantized = self._model("packed"), self._model("dequantized")
        if self.windows is None or not len(self.windows):
            raise Unmeasured("no text")
        difference = relative_difference(packed, dequantized, self.windows)
        words = f"norm of the difference {difference:.2e} of the logits' norm (at most {LOGIT_TOLERANCE:g})"
        if not difference <= LOGIT_TOLERANCE:
            raise Failed(words)
        return words

    def gradients(self) -> str:
        gate = self._gate("gradient_flow")
        if gate["passed"] is None:
            raise Unmeasured(str(gate["advice"]))
        if not gate["passed"]:
            raise Failed(f"{gate['actual']:.1%} of them: {gate['advice']}")
        return "each finite, above 0 and within 0.01 to 100 times the original's"

    def size(self) -> str:
        gate = self._gate("ratio")
        size = sum(path.stat().st_size for path in self.packed_dir.glob("*.safetensors"))
        ratio = self.source.bytes_fp32 / size
        if gate["actual"] is None or abs(gate["actual"] - ratio) > 1e-9 * ratio:
            raise Failed(f"{size:,} bytes give ratio {ratio:.4f}, the gate read {gate['actual']}")
        return f"{size:,} bytes of weight files, ratio {ratio:.3f}"

    def _open(self) -> PackedModel:
        if self._packed is None:
            from tritpress.formats.packed import open_packed

            self._packed = open_packed(self.packed_dir)
        return self._packed

    def _dequantized(self) -> SourceModel:
        return open_source(self.dequantized_dir)

    def _model(self, which: str) -> Any:
        if which not in self.models:
            raise Unmeasured("the models were not loaded (no torch, or evaluation switched off)")
        return self.models[which]

    def _gate(self, name: str) -> dict[str, Any]:
        for gate in self.gates:
            if gate["name"] == name:
                return gate
        raise Unmeasured(f"the gate {name} was not judged")


def decode(codes: np.ndarray, scales: np.ndarray, columns: int, group_size: int) -> np.ndarray:
    """float16 [..., out, in]: the planes' scale * T summed in order in float32, rounded once."""
    trits = np.stack([(codes >> shift) & 3 for shift in (0, 2, 4, 6)], axis=-1)
    trits = trits.reshape(*codes.shape[:-1], -1)[..., :columns].astype(np.float32) - 1.0
    spread = np.repeat(scales.astype(np.float32), group_size or columns, axis=-1)[..., :columns]
    total = spread[0] * trits[0]
    for plane in range(1, len(trits)):
        total += spread[plane] * trits[plane]
    return total.astype(np.float16)


def relative_difference(packed: Any, dequantized: Any, windows: np.ndarray) -> float:
    """Norm of the two models' logit difference over the dequantized model's norm, both in float32.

    The packed model's int8 activations are switched off meanwhile.
    """
    import torch

    from tritpress.evaluate.perplexity import device_of, logits_of
    from tritpress.nn.ternary_linear import TernaryLinear

    layers = [(m, m.activation_bits) for m in packed.modules() if isinstance(m, TernaryLinear)]
    ids = torch.from_numpy(np.ascontiguousarray(windows, dtype=np.int64)).to(device_of(dequantized))
    try:
        for layer, _ in layers:
            layer.activation_bits = None
        with torch.inference_mode():
            expected = logits_of(dequantized, ids).double()
            found = logits_of(packed, ids.to(device_of(packed))).double().to(expected.device)
    finally:
        for layer, bits in layers:
            layer.activation_bits = bits
    return float((found - expected).norm() / expected.norm())


def _pairs(packed: PackedModel, name: str, entry: TensorEntry) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(decoded, as written in the dequantized model) of one tensor, in pieces of limited size."""
    if name not in packed.tensors:
        at = 0
        for value in packed.dense_chunks(name):
            yield value.reshape(-1), read_raw(entry, at, at + value.size)
            at += value.size
        return
    info = packed.tensors[name]
    rows, columns = info.shape[-2:]
    step = max(1, CHUNK // columns)
    for first in range(0, info.rows, rows):  # one expert after the other; most tensors are one
        swapped = None
        if info.transposed:
            swapped = read_raw(entry, first * columns, (first + rows) * columns).reshape(columns, rows)
        for start in range(0, rows, step):
            stop = min(rows, start + step)
            value = decode(*packed.ternary_rows(name, first + start, first + stop), columns, info.group_size)
            if swapped is None:
                yield value.reshape(-1), read_raw(entry, (first + start) * columns, (first + stop) * columns)
            else:
                yield value, np.ascontiguousarray(swapped[:, start:stop].T)


def _compare(name: str, value: Any, entry: TensorEntry) -> None:
    """Fail unless a tensor of the loaded model has the shape and the values of the file's."""
    if tuple(value.shape) != entry.shape:
        raise Failed(f"{name} is {list(value.shape)} in the loaded model, {list(entry.shape)} in the file")
    flat = value.detach().reshape(-1)
    for start in range(0, entry.size, CHUNK):
        stop = min(entry.size, start + CHUNK)
        if not np.array_equal(
            flat[start:stop].cpu().float().numpy(), read_raw(entry, start, stop).astype(np.float32)
        ):
            raise Failed(f"{name} in the loaded model is not what the file holds")


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _is_tokenizer(name: str) -> bool:
    return name.startswith("tokenizer") or name in TOKENIZER_FILES

