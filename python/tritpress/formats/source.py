"""A Hugging Face directory as the source of a run: its tensors by name, read in pieces and never mapped.

Nothing here imports torch. Weights are read with `pread` into fresh arrays, so that the resident set is
what the caller holds, not what the file has.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tritpress.config import SIZE_CLASSES, size_class
from tritpress.errors import InputError
from tritpress.formats.header import DTYPE_BYTES, read_header

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
_NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "U64": "<u8", "I32": "<i4",
    "U32": "<u4", "I16": "<i2", "U16": "<u2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CHUNK_BYTES = 8 << 20
"""Bytes read at once by the streaming loops."""


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: `offset` is absolute in `file`, `nbytes` its length there."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def rows_cols(self) -> tuple[int, int]:
        """The two-dimensional view: the last dimension are the columns, all others the rows; a vector is
        one row.
        """
        cols = self.shape[-1] if self.shape else 1
        return (math.prod(self.shape[:-1]) if len(self.shape) > 1 else 1), cols

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOAT_DTYPES


@dataclass(frozen=True)
class SourceModel:
    """A model directory that passed every check of `open_source`.

    `tied` maps a name that is not stored (or stored a second time, byte for byte) to the stored one.
    `ignored` are stored tensors that are no weights (old causal masks, rotary tables, tied copies): they are
    neither counted nor written.
    """

    path: Path
    config: dict[str, Any]
    architecture: str
    model_type: str
    tensors: dict[str, TensorEntry]
    weight_files: list[Path]
    tied: dict[str, str]
    parameters: int
    source_dtype: str
    size_class: str
    class_ratio: float
    bytes_on_disk: int
    bytes_fp32: int
    ignored: dict[str, TensorEntry] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------ reading


def as_bytes(values: np.ndarray) -> memoryview:
    """The bytes of an array in C order; a contiguous one is not copied."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def pread_into(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from `offset`; returns the bytes read, fewer only at the end of the file."""
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def read_raw(entry: TensorEntry, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Elements `start:stop` of the flattened tensor in their stored dtype (bf16 as uint16), a new 1-D
    array.
    """
    stop = entry.size if stop is None else stop
    if not 0 <= start <= stop <= entry.size:
        raise ValueError(f"{entry.name}: elements {start}:{stop} of {entry.size}")
    if entry.dtype not in _NUMPY:
        raise InputError(
            f"{entry.file}: tensor {entry.name} has dtype {entry.dtype}, which tritpress cannot read"
        )
    out = np.empty(stop - start, dtype=_NUMPY[entry.dtype])
    if out.nbytes:
        try:
            fd = os.open(entry.file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"cannot read {entry.file}: {error.strerror}") from None
        try:
            got = pread_into(fd, as_bytes(out), entry.offset + start * out.itemsize)
        finally:
            os.close(fd)
        if got != out.nbytes:
            raise InputError(f"{entry.file} ends inside tensor {entry.name}: the file is truncated")
    return out


def to_float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Stored values as float32 (a view or a new array); bf16 is the upper half of a float32."""
    if dtype == "BF16":
        wide = raw.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    with np.errstate(over="ignore"):
        return raw.astype(np.float32, copy=False)


def read_tensor(entry: TensorEntry) -> np.ndarray:
    """The whole tensor as float32, in its stored shape."""
    _rows, _cols = entry.rows_cols
    out = np.empty(entry.size, dtype=np.float32)
    step = max(1, CHUNK_BYTES // 4)
    for start in range(0, entry.size, step):
        stop = min(entry.size, start + step)
        out[start:stop] = to_float32(read_raw(entry, start, stop), entry.dtype)
    return out.reshape(entry.shape)


def read_rows(entry: TensorEntry, start: int, stop: int) -> np.ndarray:
    """Rows `start:stop` of the 2-D view (`TensorEntry.rows_cols`) as float32 [stop - start, cols]."""
    rows, cols = entry.rows_cols
    if not 0 <= start <= stop <= rows:
        raise ValueError(f"{entry.name}: rows {start}:{stop} of {rows}")
    return to_float32(read_raw(entry, start * cols, stop * cols), entry.dtype).reshape(stop - start, cols)


def read_some_rows(entry: TensorEntry, rows: np.ndarray) -> np.ndarray:
    """Rows `rows` (ascending) of the 2-D view as float32 [n, cols]; neighbours in one go."""
    out = np.empty((len(rows), entry.rows_cols[1]), dtype=np.float32)
    ends = np.flatnonzero(np.diff(rows, append=np.iinfo(np.int64).max) != 1) + 1
    first = 0
    for end in ends.tolist():
        out[first:end] = read_rows(entry, int(rows[first]), int(rows[end - 1]) + 1)
        first = end
    return out


def row_chunks(rows: int, row_bytes: int, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, int]]:
    """(start, stop) pieces of about `chunk_bytes` that cover `rows`."""
    step = max(1, chunk_bytes // max(1, row_bytes))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


# ------------------------------------------------------------------------------------------------ opening


def safe_file(folder: Path, name: str) -> Path:
    """`folder/name`, refused when the name is not a plain file name or leads out of the folder.

    Links are followed only inside the folder, or into the `blobs` of a Hugging Face cache, whose snapshots
    are links by design.
    """
    if not isinstance(name, str) or not name or name in (".", "..") or any(c in name for c in "/\\\0"):
        raise InputError(f"{folder}: {name!r} is not a plain file name inside the model directory")
    path = folder / name
    if path.is_symlink():
        real, home = path.resolve(), folder.resolve()
        cache = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
        if home not in real.parents and (cache is None or real.parent != cache.resolve()):
            raise InputError(
                f"{path} is a link that leads out of the model directory; put the file itself there"
            )
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the model directory; `InputError` names the file when it is none."""
    try:
        value = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=_no_duplicates)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} appears twice")
    return value


def find_weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The weight files of a model directory and, for shards, the index's map of tensor to file name."""
    if (folder / "model.safetensors").exists():
        return [safe_file(folder, "model.safetensors")], None
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(safe_file(folder, index.name)).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index} has no weight_map, so the shards are unknown")
        files = []
        for name in sorted(set(map(str, weight_map.values()))):
            if not name.endswith(".safetensors"):
                raise InputError(f"{index} names {name!r}, which is not a .safetensors file")
            files.append(safe_file(folder, name))
            if not files[-1].is_file():
                raise InputError(f"{files[-1]} is missing, though {index.name} names it")
        return files, weight_map
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
    if pickles:
        raise InputError(
            f"{folder / pickles[0]} is a pickle checkpoint, which can run code when it is read; "
            "save the model as safetensors first (save_pretrained does)"
        )
    other = sorted(p.name for p in folder.glob("*.safetensors"))
    if other:
        raise InputError(
            f"{folder} has {other[0]} but neither model.safetensors nor model.safetensors.index.json"
        )
    raise InputError(f"{folder} has no weights: expected model.safetensors, or shards with their index")


def read_entries(files: list[Path], weight_map: dict[str, str] | None) -> dict[str, TensorEntry]:
    """All tensors of the weight files, sorted by name; shards and index must agree exactly."""
    entries: dict[str, TensorEntry] = {}
    for file in files:
        _, tensors = read_header(file)
        for name, dtype, shape, begin, end in tensors:
            if name in entries:
                raise InputError(f"tensor {name} is in both {entries[name].file.name} and {file}")
            if weight_map is not None and weight_map.get(name) != file.name:
                raise InputError(f"{file}: tensor {name} is not listed under this file in the index")
            entries[name] = TensorEntry(name, file, dtype, tuple(shape), begin, end - begin)
    weight_map = weight_map or {}
    for name in weight_map:
        if name not in entries:
            raise InputError(
                f"the index says that tensor {name} is in {weight_map[name]}, which does not have it"
            )
    return dict(sorted(entries.items()))


def tensor_entries(path: Path) -> dict[str, TensorEntry]:
    """Where every tensor of one safetensors file lies."""
    _, tensors = read_header(path)
    return {
        name: TensorEntry(name, path, dtype, tuple(shape), begin, end - begin)
        for name, dtype, shape, begin, end in tensors
    }


def open_source(path: str | Path) -> SourceModel:
    """Check a model directory and list its tensors; reads headers, no weights (but for tied copies).

    Raises `InputError`, naming the file or tensor, for: a path that does not exist, no `config.json` or
    one without `model_type`, no safetensors (a pickle checkpoint is named and refused), hostile, truncated or
    overlapping headers, an index that names files outside the directory or missing shards, duplicate
    tensors, weights that are quantized already.
    """
    folder = Path(path)
    if not folder.exists():
        raise InputError(f"{folder} does not exist; give the directory of a Hugging Face model")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; give the directory of a Hugging Face model")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json, so it is not a Hugging Face model directory")
    config = read_json(safe_file(folder, "config.json"))
    quantized = config.get("quantization_config")
    if quantized is not None:
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "unknown"
        raise InputError(
            f"{folder} is quantized already (quant_method {method!r} in config.json); give the original model"
        )
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise InputError(
            f"{folder / 'config.json'} names no model_type (such as llama), so the architecture is unknown"
        )
    files, weight_map = find_weight_files(folder)
    entries = read_entries(files, weight_map)
    for entry in entries.values():
        if entry.dtype not in _NUMPY:
            raise InputError(
                f"{entry.file}: tensor {entry.name} has dtype {entry.dtype}; "
                "weights in F32, F16, BF16 or F64 can be pressed"
            )
    ignored = {name: entry for name, entry in entries.items() if _is_buffer(entry)}
    tied, copies = _find_tied(config, entries)
    ignored |= {name: entries[name] for name in copies}
    tensors = {name: entry for name, entry in entries.items() if name not in ignored}
    floats = [entry for entry in tensors.values() if entry.is_float]
    parameters = sum(entry.size for entry in floats)
    if parameters == 0:
        raise InputError(f"{folder} has no floating-point weights to press")
    elements: dict[str, int] = {}
    for entry in floats:
        elements[entry.dtype] = elements.get(entry.dtype, 0) + entry.size
    dtype = max(elements, key=lambda key: elements[key])
    architectures = config.get("architectures")
    name = size_class(parameters)
    return SourceModel(
        path=folder,
        config=config,
        architecture=str(architectures[0])
        if isinstance(architectures, list) and architectures
        else model_type,
        model_type=model_type,
        tensors=tensors,
        weight_files=files,
        tied=tied,
        parameters=parameters,
        source_dtype=_DTYPE_NAMES[dtype],
        size_class=name,
        class_ratio=SIZE_CLASSES[name][1],
        bytes_on_disk=sum(file.stat().st_size for file in files),
        bytes_fp32=4 * parameters,
        ignored=ignored,
    )


def _is_buffer(entry: TensorEntry) -> bool:
    """Tables that old checkpoints store beside the weights and that transformers makes anew when loading."""
    if entry.name.endswith((".attn.bias", ".attention.bias")):
        return len(entry.shape) == 4
    return entry.name.endswith((".masked_bias", ".rotary_emb.inv_freq"))


INPUT_EMBEDDINGS = (
    "embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "tokens_embed", "embeddings",
)  # fmt: skip
OUTPUT_HEADS = ("lm_head", "embed_out", "output")
TIED_BY_DEFAULT = frozenset({
    "albert", "aya_vision", "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "biogpt",
    "blenderbot", "blenderbot-small", "blip", "blip_text_model", "bloom", "camembert", "canary", "cohere",
    "cohere2", "cohere2_moe", "cohere2_vision", "cohere_compass_text", "convbert", "cpmant", "csm", "ctrl",
    "d_fine", "dab-detr", "data2vec-text", "deberta", "deberta-v2", "deepseek_vl", "deepseek_vl_hybrid",
    "deformable_detr", "deimv2", "diffusion_gemma", "diffusion_gemma_text", "distilbert", "electra", "ernie",
    "ernie4_5", "ernie4_5_moe", "ernie4_5_vl_moe", "ernie4_5_vl_moe_text", "esm", "falcon", "falcon_mamba",
    "flaubert", "flava", "florence2", "fnet", "fun_asr_nano", "funnel", "gemma", "gemma2", "gemma3",
    "gemma3_text", "gemma3n", "gemma3n_text", "gemma4", "gemma4_assistant", "gemma4_text", "gemma4_unified",
    "gemma4_unified_assistant", "gemma4_unified_text", "glmasr", "got_ocr2", "gpt-sw3", "gpt2", "gpt_bigcode",
    "gpt_neo", "gpt_neox_japanese", "granite_docling", "granite_docling_text", "granite_speech",
    "granite_speech5_ctc", "granite_speech_plus", "granite_swa", "grounding-dino", "gte", "hunyuan_vl",
    "hunyuan_vl_text", "hyperclovax_vision_v2", "ibert", "internvl", "janus", "jetmoe", "jina_embeddings_v3",
    "kimi_k25", "kosmos-2", "kosmos-2.5", "kosmos_2_5_text_model", "kosmos_2_text_model", "layoutlm", "led",
    "lfm2", "lfm2_moe", "lfm2_vl", "lfm3", "lfm3_vl", "lighton_ocr", "longformer", "longt5", "luke", "lxmert",
    "m2m_100", "mamba", "marian", "mbart", "megatron-bert", "mimi", "mimi_decoder", "mimi_encoder",
    "minicpm3", "minicpm_ocr", "mistral3", "mm-grounding-dino", "mobilebert", "modernbert",
    "modernbert-decoder", "moonshine", "moss_transcribe_diarize", "mpnet", "mpt", "mra", "mt5", "mvp",
    "neomme", "nllb-moe", "nomic_bert", "nystromformer", "openai-gpt", "opt", "ovis2", "paddleocr_vl",
    "paddleocr_vl_text", "paligemma", "pe_audio_video", "pegasus", "pegasus_x", "plbart", "pop2piano",
    "pp_chart2table", "pp_doclayout_v3", "pp_doclayout_v4", "prophetnet", "qwen2_5_omni_text", "qwen3_asr",
    "qwen3_vl_moe_text", "recurrent_gemma", "roberta", "roberta-prelayernorm", "roc_bert", "roformer",
    "rt_detr_v2", "sam", "sam_hq", "seamless_m4t", "seamless_m4t_v2", "shieldgemma2", "smollm3",
    "speech_to_text", "speecht5", "squeezebert", "starcoder2", "switch_transformers", "t5", "t5_gemma_module",
    "t5gemma", "t5gemma2", "t5gemma2_decoder", "t5gemma2_encoder", "t5gemma2_text", "tapas", "trocr", "udop",
    "umt5", "vaultgemma", "vilt", "visual_bert", "voxtral_realtime", "whisper", "xglm", "xlm", "xlm-roberta",
    "xlm-roberta-xl", "xlnet", "xmod", "yoso", "youtu", "zamba", "zamba2", "zaya",
})  # fmt: skip
"""Kinds of models whose head is the embedding where their configuration does not say (transformers')."""


def _find_tied(config: dict[str, Any], entries: dict[str, TensorEntry]) -> tuple[dict[str, str], list[str]]:
    """(alias -> stored name, names of stored copies): the head that shares the input embedding's weight.

    A head that is not stored is tied, unless the configuration denies it. One that is stored is a copy when
    the configuration, or the default of the model's kind, says so and both tensors have the same bytes.
    """

    def named(modules: tuple[str, ...]) -> str | None:
        found = [name for name in entries if name.endswith(".weight") and name.split(".")[-2] in modules]
        return min(found, key=lambda name: (name.count("."), name)) if found else None

    embedding, head = named(INPUT_EMBEDDINGS), named(OUTPUT_HEADS)
    text_config = config.get("text_config")
    inner = text_config.get("tie_word_embeddings") if isinstance(text_config, dict) else None
    told = config.get("tie_word_embeddings", inner)
    if embedding is None or told is False:
        return {}, []
    if head is None:
        return {
            ("embed_out.weight" if embedding.endswith("embed_in.weight") else "lm_head.weight"): embedding
        }, []
    tied = config["model_type"] in TIED_BY_DEFAULT if told is None else bool(told)
    if tied and _same_bytes(entries[embedding], entries[head]):
        return {head: embedding}, [head]
    return {}, []


def _same_bytes(a: TensorEntry, b: TensorEntry) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    step = max(1, CHUNK_BYTES // DTYPE_BYTES[a.dtype])
    return all(
        read_raw(a, i, min(a.size, i + step)).tobytes() == read_raw(b, i, min(b.size, i + step)).tobytes()
        for i in range(0, a.size, step)
    )
