"""Reading a packed model: nothing of the file is believed before it is checked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from tritpress.config import GROUP_SIZES
from tritpress.errors import InputError
from tritpress.formats.dense import decode_rows
from tritpress.formats.header import read_header
from tritpress.formats.layout import PACKED_METADATA, code_bytes, group_count
from tritpress.formats.source import (
    CHUNK_BYTES,
    TensorEntry,
    find_weight_files,
    read_entries,
    read_json,
    read_raw,
    row_chunks,
    safe_file,
)
from tritpress.formats.writing import sha256_of

_KEPT_DTYPES = ("F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")


@dataclass(frozen=True)
class TernaryInfo:
    """A ternary weight of the file: `shape` is (experts.., out, in); `transposed`: the source has [in,
    out].
    """

    name: str
    shape: tuple[int, ...]
    planes: int
    group_size: int
    transposed: bool

    @property
    def cols(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """Rows of one plane, those of all experts together."""
        return math.prod(self.shape[:-1])

    @property
    def kernel_group_size(self) -> int:
        """The group size as the kernels and `TernaryLinear` take it: 0 is the whole row."""
        return self.group_size if self.group_size in GROUP_SIZES else 0

    @property
    def source_shape(self) -> tuple[int, ...]:
        """The shape in the source and in the dequantized model."""
        return (*self.shape[:-2], self.shape[-1], self.shape[-2]) if self.transposed else self.shape


def check_codes(codes: np.ndarray, cols: int, file: Path, name: str) -> None:
    """Refuse the code 3 and padding other than 1 in uint8 [rows, ceil(cols / 4)]."""
    if (codes & (codes >> 1) & 0x55).any():
        raise InputError(
            f"{file}: the codes of {name} hold the value 3, which stands for nothing; the file is damaged"
        )
    if cols % 4 and codes.size:
        used = 2 * (cols % 4)
        if ((codes[..., -1] >> used) != (0x55 >> used)).any():
            raise InputError(f"{file}: the codes of {name} are padded with something other than 1")


def check_scales(scales: np.ndarray, file: Path, name: str) -> None:
    """Refuse negative, NaN and infinite scales."""
    if not np.isfinite(scales).all():
        raise InputError(f"{file}: the scales of {name} hold NaN or infinity; the file is damaged")
    if (scales < 0).any():
        raise InputError(f"{file}: the scales of {name} hold a negative value; the file is damaged")


@dataclass(frozen=True)
class PackedModel:
    """A packed directory whose names, shapes and dtypes agree; made by `open_packed`.

    `tensors` are the ternary weights; `int8` and `kept` the names of the others.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, TernaryInfo]
    int8: tuple[str, ...]
    kept: tuple[str, ...]
    tied: tuple[str, ...]
    weight_files: list[Path]
    entries: dict[str, TensorEntry]

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of the weight files."""
        return sum(file.stat().st_size for file in self.weight_files)

    def names(self) -> list[str]:
        """All of the model's tensors by the source's names, sorted."""
        return sorted([*self.tensors, *self.int8, *self.kept])

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape in the source."""
        if name in self.tensors:
            return self.tensors[name].source_shape
        return self.entries[f"{name}.q8" if name in self.int8 else name].shape

    def ternary(self, name: str) -> tuple[np.ndarray, np.ndarray, TernaryInfo]:
        """(codes uint8 [planes, .., out, ceil(in / 4)], scales float16 [planes, .., out, groups], info),
        checked.
        """
        info = self._info(name)
        codes, scales = self.entries[f"{name}.codes"], self.entries[f"{name}.scales"]
        code_values = read_raw(codes).reshape(codes.shape)
        scale_values = read_raw(scales).reshape(scales.shape)
        check_codes(code_values, info.cols, codes.file, name)
        check_scales(scale_values, scales.file, name)
        return code_values, scale_values, info

    def ternary_rows(self, name: str, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(codes [planes, stop - start, bytes], scales [planes, stop - start, groups]) of some of the rows
        that `TernaryInfo.rows` counts, checked.
        """
        info = self._info(name)
        found = []
        for entry in (self.entries[f"{name}.codes"], self.entries[f"{name}.scales"]):
            width = entry.shape[-1]
            planes = [
                read_raw(entry, (p * info.rows + start) * width, (p * info.rows + stop) * width)
                for p in range(info.planes)
            ]
            found.append(np.stack(planes).reshape(info.planes, stop - start, width))
        check_codes(found[0], info.cols, self.entries[f"{name}.codes"].file, name)
        check_scales(found[1], self.entries[f"{name}.scales"].file, name)
        return found[0], found[1]

    def dense(self, name: str) -> np.ndarray:
        """A tensor that is not ternary: float16 (int8 rows decoded) or its integers, in the source's
        shape.
        """
        chunks = list(self.dense_chunks(name))
        return (np.concatenate(chunks) if chunks else np.zeros(0, np.float16)).reshape(self.shape(name))

    def dense_chunks(self, name: str) -> Iterator[np.ndarray]:
        """The same in row chunks, flattened or [rows, cols]."""
        if name in self.int8:
            q8, scale = self.entries[f"{name}.q8"], self.entries[f"{name}.q8_scale"]
            rows, cols = q8.shape
            for start, stop in row_chunks(rows, 4 * cols):
                values = read_raw(q8, start * cols, stop * cols).reshape(stop - start, cols)
                scales = read_raw(scale, start, stop)
                check_scales(scales, scale.file, name)
                yield decode_rows(values, scales, name)
            return
        if name not in self.kept:
            raise InputError(f"{self.path} has no tensor {name} outside its ternary weights")
        entry = self.entries[name]
        step = CHUNK_BYTES // 4
        for start in range(0, entry.size, step):
            values = read_raw(entry, start, min(entry.size, start + step))
            if entry.dtype == "F16" and not np.isfinite(values).all():
                raise InputError(f"{entry.file}: tensor {name} holds NaN or infinity; the file is damaged")
            yield values

    def dequantized_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """float16 [stop - start, in]: sum over planes of scale * T in float32, planes in order, rounded
        once.
        """
        from tritpress import _core
        from tritpress.formats.dense import to_half

        info = self._info(name)
        codes, scales = self.ternary_rows(name, start, stop)
        return to_half(np.asarray(_core.dequantize(codes, scales, info.cols, info.kernel_group_size)), name)

    def check_values(self) -> None:
        """Read every value once and refuse what no writer makes: code 3, negative or infinite scales, NaN."""
        for name, info in self.tensors.items():
            for start, stop in row_chunks(info.rows, info.cols):
                self.ternary_rows(name, start, stop)
        for name in (*self.int8, *self.kept):
            for _ in self.dense_chunks(name):
                pass

    def verify_checksums(self) -> dict[str, dict[str, Any]]:
        """Compare every weight file with `tritpress.json`; returns its entries. `InputError` where they
        differ.
        """
        path = self.path / "tritpress.json"
        if not path.exists():
            raise InputError(f"{path} is missing, so the weights cannot be verified")
        description = read_json(safe_file(self.path, path.name))
        _check_version(description, path)
        weights = description.get("weights")
        if not isinstance(weights, dict) or set(weights) != {file.name for file in self.weight_files}:
            raise InputError(f"{path} does not list the weight files that are there")
        for file in self.weight_files:
            said = weights[file.name]
            size = file.stat().st_size
            if not isinstance(said, dict) or said.get("bytes") != size:
                raise InputError(f"{file} has {size} bytes, which is not what tritpress.json says")
            if said.get("sha256") != sha256_of(file):
                raise InputError(
                    f"{file} is not the file that was written: its sha256 is not that of tritpress.json"
                )
        return weights

    def _info(self, name: str) -> TernaryInfo:
        if name not in self.tensors:
            raise InputError(f"{self.path} has no ternary tensor {name}")
        return self.tensors[name]


def is_packed(path: str | Path) -> bool:
    """Whether a directory says of itself that it is a packed model."""
    try:
        config = json.loads((Path(path) / "config.json").read_bytes())
        return config["quantization_config"]["quant_method"] == "tritpress"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def open_packed(path: str | Path, *, values: bool = True) -> PackedModel:
    """Open a packed directory and check it: version, names, shapes, dtypes, and (unless `values` is False)
    every code and scale. `ternary`, `ternary_rows` and `dense` check the values they return in any case.

    Raises `InputError` that names the file and the tensor.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{folder} is not the directory of a packed model")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json, so it is not a model directory")
    config = read_json(safe_file(folder, "config.json"))
    config_path = folder / "config.json"
    told = config.get("quantization_config")
    if not isinstance(told, dict) or told.get("quant_method") != "tritpress":
        raise InputError(
            f"{config_path} is not that of a packed model (quantization_config with tritpress is missing)"
        )
    _check_version(told, config_path)
    files, weight_map = find_weight_files(folder)
    for file in files:
        metadata, _ = read_header(file)
        for key, value in PACKED_METADATA.items():
            if metadata.get(key) != value:
                raise InputError(
                    f"{file}: metadata {key} is {metadata.get(key)!r}; this version reads {value!r}"
                )
    entries = read_entries(files, weight_map)
    tensors = _ternary_infos(told, config_path)
    left = dict(entries)
    for info in tensors.values():
        _take_ternary(left, info, files)
    int8 = _take_int8(left, files)
    for name, entry in left.items():
        if name.endswith((".codes", ".scales")):
            raise InputError(f"{entry.file}: {name} belongs to no tensor that config.json lists")
        if entry.dtype not in _KEPT_DTYPES:
            raise InputError(f"{entry.file}: tensor {name} is {entry.dtype}; what is not ternary must be F16")
        if name in tensors or name in int8:
            raise InputError(f"{entry.file}: tensor {name} is stored twice, plain and packed")
    tied = _names(told, "tied", config_path)
    stored = {*tensors, *int8, *left}
    for name in tied:
        if name not in stored:
            raise InputError(f"{config_path} lists {name} as tied, but it is not stored")
    model = PackedModel(folder, config, tensors, tuple(int8), tuple(left), tuple(tied), files, entries)
    if values:
        model.check_values()
    return model


def _check_version(told: dict[str, Any], path: Path) -> None:
    version = told.get("version")
    if type(version) is not int or version != 1:
        raise InputError(
            f"{path} says version {version!r} of the packed format; this tritpress reads version 1"
        )
    if told.get("format", "tritpress") != "tritpress":
        raise InputError(f"{path} says format {told['format']!r}; this tritpress reads its own 2-bit format")


def _names(told: dict[str, Any], key: str, path: Path) -> list[str]:
    names = told.get(key, [])
    if (
        not isinstance(names, list)
        or not all(isinstance(n, str) for n in names)
        or len(set(names)) != len(names)
    ):
        raise InputError(f"{path}: quantization_config.{key} must be a list of different tensor names")
    return names


def _ternary_infos(told: dict[str, Any], path: Path) -> dict[str, TernaryInfo]:
    listed = told.get("tensors")
    if not isinstance(listed, dict) or not listed:
        raise InputError(f"{path}: quantization_config.tensors must list the packed tensors")
    transposed = set(_names(told, "transposed", path))
    if transposed - set(listed):
        raise InputError(
            f"{path} lists {min(transposed - set(listed))} as transposed, but not as a packed tensor"
        )
    infos = {}
    for name, entry in sorted(listed.items()):
        fields = entry if isinstance(entry, dict) else {}
        shape, planes = fields.get("shape"), fields.get("planes")
        group_size = fields.get("group_size", told.get("group_size"))
        if not isinstance(shape, list) or len(shape) < 2 or not all(_positive(n) for n in shape):
            raise InputError(f"{path}: the shape of {name} must be [out, in] in numbers above 0")
        if not _positive(planes) or not _positive(group_size):
            raise InputError(f"{path}: planes and group_size of {name} must be numbers above 0")
        if group_size not in GROUP_SIZES and group_size != shape[-1]:
            raise InputError(
                f"{path}: group_size {group_size} of {name} is neither 32, 64, 128, 256 nor the whole row "
                f"({shape[-1]})"
            )
        infos[name] = TernaryInfo(name, tuple(shape), planes, group_size, name in transposed)
    return infos


def _positive(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 < value < 2**48


def _take_ternary(left: dict[str, TensorEntry], info: TernaryInfo, files: list[Path]) -> None:
    lead = (info.planes, *info.shape[:-1])
    widths = {
        "codes": ("U8", code_bytes(info.cols)),
        "scales": ("F16", group_count(info.cols, info.group_size)),
    }
    for part, (dtype, width) in widths.items():
        _take(left, f"{info.name}.{part}", dtype, (*lead, width), files)


def _take(
    left: dict[str, TensorEntry], name: str, dtype: str, shape: tuple[int, ...] | None, files: list[Path]
) -> TensorEntry:
    entry = left.pop(name, None)
    if entry is None:
        raise InputError(f"{files[0].parent}: tensor {name} is missing from the weight files")
    if entry.dtype != dtype or (shape is not None and entry.shape != shape):
        wanted = f"{dtype} {list(shape)}" if shape is not None else dtype
        raise InputError(f"{entry.file}: {name} is {entry.dtype} {list(entry.shape)} where {wanted} is due")
    return entry


def _take_int8(left: dict[str, TensorEntry], files: list[Path]) -> dict[str, None]:
    found: dict[str, None] = {}
    for stored in [name for name in left if name.endswith(".q8")]:
        name = stored.removesuffix(".q8")
        q8 = _take(left, stored, "I8", None, files)
        if len(q8.shape) != 2:
            raise InputError(f"{q8.file}: {stored} is {list(q8.shape)}, int8 rows have two dimensions")
        _take(left, f"{name}.q8_scale", "F16", q8.shape[:1], files)
        found[name] = None
    for name, entry in left.items():
        if name.endswith(".q8_scale"):
            raise InputError(
                f"{entry.file}: {name} has no rows beside it ({name.removesuffix('_scale')} is missing)"
            )
    return found
