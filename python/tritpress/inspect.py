"""What lies in a model directory, read from its files alone: what `tritpress inspect` prints. No torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from tritpress.errors import InputError
from tritpress.formats.layout import code_bytes, group_count
from tritpress.formats.packed_reader import PackedModel, TernaryInfo, is_packed, open_packed
from tritpress.formats.source import open_source, read_json, row_chunks
from tritpress.formats.targets import find_embeddings, layer_of, linear_layers

_POPCOUNT = np.array([bin(i).count("1") for i in range(256)], dtype=np.uint8)


def inspect_path(path: str | Path) -> dict[str, Any]:
    """Tensors, planes, sparsity and sizes of a packed or plain model directory.

    A packed one is verified completely: names, shapes, every code and scale, and the checksums of
    `tritpress.json`; without that file there are none: `verified` and `checksums` are None and `note` says
    so. Raises `InputError` that names the file and tensor when something is wrong, and the method of a model
    that another program has quantized.
    """
    if is_packed(path):
        return _inspect_packed(Path(path))
    _refuse_foreign(Path(path))
    return _inspect_plain(Path(path))


def _refuse_foreign(path: Path) -> None:
    if not (path / "config.json").is_file():
        return  # `open_source` says what is missing
    told = read_json(path / "config.json").get("quantization_config")
    if told is not None:
        method = told.get("quant_method") if isinstance(told, dict) else None
        said = f"with quant_method {method!r}" if method else "without saying by which quant_method"
        raise InputError(
            f"{path / 'config.json'} describes a model quantized {said}; inspect reads packed models of "
            "tritpress and models that are not quantized"
        )


def _inspect_packed(path: Path) -> dict[str, Any]:
    packed = open_packed(path, values=False)
    tensors: list[dict[str, Any]] = []
    for name in packed.names():
        entry = _ternary(packed, packed.tensors[name]) if name in packed.tensors else _dense(packed, name)
        tensors.append({"name": name, "layer": layer_of(name), **entry})
    described = os.path.lexists(path / "tritpress.json")
    checksums = packed.verify_checksums() if described else None
    ternary = [tensor for tensor in tensors if tensor["storage"] == "ternary"]
    weights = sum(tensor["weights"] for tensor in ternary)
    codes = sum(tensor["weights"] * tensor["planes"] for tensor in ternary)
    parameters = sum(tensor["weights"] for tensor in tensors if tensor["storage"] != "kept")
    ternary_bytes = sum(tensor["bytes"] for tensor in ternary)
    total = packed.bytes_on_disk
    description = read_json(path / "tritpress.json") if described else {}
    return {
        "path": str(path),
        "kind": "packed",
        "architecture": _architecture(packed.config),
        "version": 1,
        "parameters": parameters,
        "bytes": total,
        "bytes_fp32": 4 * parameters,
        "ratio_file": 4 * parameters / total,
        "ratio_layers": 4 * weights / ternary_bytes,
        "bits_per_weight": 8 * ternary_bytes / weights,
        "planes_mean": codes / weights,
        "sparsity": sum(t["sparsity"] * t["weights"] * t["planes"] for t in ternary) / codes,
        "zeros_all_planes": sum(t["zeros_all_planes"] * t["weights"] for t in ternary) / weights,
        "ternary_tensors": len(ternary),
        "tied": list(packed.tied),
        "files": [
            {"path": file.name, **(checksums[file.name] if checksums else {"bytes": file.stat().st_size})}
            for file in packed.weight_files
        ],
        "checksums": "verified" if checksums else None,
        "verified": True if checksums else None,
        "note": None if checksums else "there is no tritpress.json, so there are no checksums to verify",
        "source": description.get("source"),
        "seed": description.get("seed"),
        "versions": description.get("versions"),
        "tensors": tensors,
    }


def _ternary(packed: PackedModel, info: TernaryInfo) -> dict[str, Any]:
    zeros, all_planes = zero_counts(packed, info)
    weights = info.rows * info.cols
    nbytes = info.planes * info.rows * (code_bytes(info.cols) + 2 * group_count(info.cols, info.group_size))
    return {
        "storage": "ternary",
        "shape": list(info.shape),
        "transposed": info.transposed,
        "planes": info.planes,
        "group_size": info.group_size,
        "weights": weights,
        "bytes": nbytes,
        "bits": 8 * nbytes / weights,
        "sparsity": zeros / (weights * info.planes),
        "zeros_all_planes": all_planes / weights,
    }


def zero_counts(packed: PackedModel, info: TernaryInfo) -> tuple[int, int]:
    """(zero codes over all planes together, weights that are zero in every plane); checks all values on the
    way.
    """
    padding = -info.cols % 4
    zeros = all_planes = 0
    for start, stop in row_chunks(info.rows, info.cols):
        codes, _ = packed.ternary_rows(info.name, start, stop)
        zero = codes & ~(codes >> 1) & 0x55  # code 1 is T = 0: low bit set, high bit not
        zeros += int(_POPCOUNT[zero].sum(dtype=np.int64)) - padding * (stop - start) * info.planes
        every = np.bitwise_and.reduce(zero, axis=0)
        all_planes += int(_POPCOUNT[every].sum(dtype=np.int64)) - padding * (stop - start)
    return zeros, all_planes


def _dense(packed: PackedModel, name: str) -> dict[str, Any]:
    for _ in packed.dense_chunks(name):  # values are checked as they are read
        pass
    shape = packed.shape(name)
    int8 = name in packed.int8
    parts = [f"{name}.q8", f"{name}.q8_scale"] if int8 else [name]
    weights = int(np.prod(shape, dtype=np.int64))
    nbytes = sum(packed.entries[part].nbytes for part in parts)
    dtype = packed.entries[parts[0]].dtype
    return {
        "storage": "int8" if int8 else "fp16" if dtype == "F16" else "kept",
        "shape": list(shape),
        "weights": weights,
        "bytes": nbytes,
        "bits": 8 * nbytes / weights if weights else None,
    }


def _inspect_plain(path: Path) -> dict[str, Any]:
    source = open_source(path)
    # a model without linear layers can be looked at, only not pressed
    targets = {target.name: target for target in linear_layers(source)}
    embeddings = set(find_embeddings(source))
    tensors = []
    for name, entry in source.tensors.items():
        tensor: dict[str, Any] = {
            "name": name,
            "layer": layer_of(name),
            "storage": entry.dtype.lower(),
            "shape": list(entry.shape),
            "weights": entry.size,
            "bytes": entry.nbytes,
            "role": "ternarizable" if name in targets else "embedding" if name in embeddings else "kept",
        }
        if name in targets:
            tensor["kind"] = targets[name].kind
            tensor["transposed"] = targets[name].transposed
        tensors.append(tensor)
    return {
        "path": str(path),
        "kind": "plain",
        "architecture": source.architecture,
        "parameters": source.parameters,
        "size_class": source.size_class,
        "source_dtype": source.source_dtype,
        "bytes": source.bytes_on_disk,
        "bytes_fp32": source.bytes_fp32,
        "bits_per_weight": 8 * source.bytes_on_disk / source.parameters,
        "ternarizable_tensors": len(targets),
        "ternarizable_weights": sum(target.entry.size for target in targets.values()),
        "tied": sorted(set(source.tied.values())),
        "files": [{"path": file.name, "bytes": file.stat().st_size} for file in source.weight_files],
        "tensors": tensors,
    }


def _architecture(config: dict[str, Any]) -> str:
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else str(config.get("model_type", ""))
