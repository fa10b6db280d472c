"""Whether an event that was pushed is one: its fields against the schema, its size, its characters."""

from __future__ import annotations

import functools
import re
import types
import typing
from collections.abc import Collection
from typing import Any, Literal, Union

from tritpress.config import UNSAFE_OVER_API, CompressionConfig, make_config, without_unused
from tritpress.errors import UsageError
from tritpress.events.schema import (
    EVENT_TYPES,
    Event,
    HandoffItem,
    ModelFacts,
    ModelTarget,
    PlannedTensor,
    encode,
)

TYPE = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*", re.ASCII)

LONG = re.compile(r"[0-9]{19}")
"""Digits of a whole number that may be beyond 64 bits."""

NAME = 300
"""Characters of a name of a tensor, a metric, a gate."""

NEEDED: dict[str, tuple[str, ...]] = {
    "step.started": ("step",),
    "step.progress": ("step",),
    "step.finished": ("step",),
    "model": ("model", "targets"),
    "plan": ("tensors",),
    "layer.finished": ("name", "kind", "rows", "cols"),
    "evaluation": ("when",),
    "finetune.step": ("step",),
    "gradient": ("layer",),
    "gate": ("name",),
    "handoff": ("items",),
    "output": ("path", "bytes"),
    "metric": ("name", "value"),
    "alert": ("message",),
    "log": ("message",),
    "command.ack": ("id",),
    "run.failed": ("error",),
}
"""What the fields of a type must hold at least; further ones may be left out where they are not known."""

ITEMS: dict[tuple[str, str], tuple[str, ...]] = {
    ("model", "targets"): ("name", "layer", "kind", "rows", "cols"),
    ("plan", "tensors"): ("name", "planes"),
    ("handoff", "items"): ("name", "passed"),
}
"""The same for the entries of lists."""

PARTS: dict[tuple[str, str], type] = {
    ("model", "model"): ModelFacts,
    ("model", "targets"): ModelTarget,
    ("plan", "tensors"): PlannedTensor,
    ("handoff", "items"): HandoffItem,
}
"""What the entries of a list, or an object, hold: fields that are known must have their types there too."""

CAPS = {
    "layer.finished": ("layers", "name", 200_000),
    "gradient": ("gradients", "layer", 200_000),
    "metric": ("metrics", "name", 1000),
    "gate": ("gates", "name", 100),
    "evaluation": ("evaluations", "when", 100),
}
"""Type -> where the state keeps it, under which field, and how many it may keep."""

LOCAL = {"out": "remote_out", "report": "remote_report", "pid": "remote_pid", "host": "remote_host"}
"""Fields that would name something of this machine: kept under another name."""


def check_event(
    event: Any, state: dict[str, Any], coming: dict[str, set[Any]] | None = None
) -> tuple[str, dict[str, Any]]:
    """(type, fields without the common ones) of a pushed event. Raises `UsageError` in one sentence.

    `coming`: what the events before it in the same push add to the state, which this one is added to.
    """
    kind = event["type"]
    what = f"event {event['seq']} ({kind[:40]!r})"
    if not TYPE.fullmatch(kind) or len(kind) > 100:
        raise UsageError(f"{what}: a type is words of small letters with dots, as in 'layer.finished'")
    fields = {LOCAL.get(key, key): value for key, value in event.items() if key not in Event.__annotations__}
    for key in NEEDED.get(kind, ()):
        if fields.get(key) is None and not (kind == "metric" and key == "value"):
            raise UsageError(f"{what} lacks {key!r}")
    for key, hint in hints(kind).items():
        if fields.get(key) is not None and not matches(fields[key], hint):
            raise UsageError(f"{what}: {key!r} is {_brief(fields[key])}, which the schema does not allow")
    for (of, key), parts in ITEMS.items():
        for item in fields[key] if of == kind else ():
            if not isinstance(item, dict) or not all(part in item for part in parts):
                raise UsageError(f"{what}: every entry of {key!r} needs {', '.join(parts)}")
            if not isinstance(item["name"], str):
                raise UsageError(f"{what}: 'name' in {key!r} must be a text")
    for (of, key), parts_of in PARTS.items():
        if of == kind:
            _check_parts(what, key, fields[key], typing.get_type_hints(parts_of), ITEMS.get((of, key), ()))
    if isinstance(fields.get("name"), str) and len(fields["name"]) > NAME:
        raise UsageError(f"{what}: a name has at most {NAME} characters")
    if kind in CAPS:
        place, field, most = CAPS[kind]
        new = set() if coming is None else coming.setdefault(place, set())
        if fields[field] not in state[place] and fields[field] not in new:
            new.add(fields[field])
            if len(state[place]) + len(new) > most:
                raise UsageError(f"{what}: a run keeps at most {most:,} of these")
    if isinstance(fields.get("config"), dict):
        fields["config"] = check_config(fields["config"])
    return kind, fields


def check_config(values: dict[str, Any]) -> dict[str, Any]:
    """What a pushed configuration says of fields that are known here, but for those that start programs.

    Raises `UsageError` for a bad value.
    """
    allowed = CompressionConfig.model_fields.keys() - UNSAFE_OVER_API
    known = {key: value for key, value in values.items() if key in allowed}
    return make_config(without_unused(known)).model_dump() if known else {}


def check_values(value: Any) -> None:
    """Raises `UsageError` when some text in `value` is no text (half of a surrogate pair), or some whole
    number is beyond 64 bits.
    """
    text = encode(value)
    if "\\ud" in text or LONG.search(text):  # rare enough to look closer only then
        _whole(value)


@functools.cache
def hints(kind: str) -> dict[str, Any]:
    """Field -> its type, for a type of event that is known."""
    found = EVENT_TYPES.get(kind)
    if found is None:
        return {}
    common = Event.__annotations__
    return {key: hint for key, hint in typing.get_type_hints(found).items() if key not in common}


def matches(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of that type. null stands for any number: JSON has no NaN."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(matches(value, part) for part in arguments)
    if origin is Literal:
        return isinstance(value, str | int | float | bool) and value in arguments
    if hint is float:
        return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is None or hint is types.NoneType:
        return value is None
    if origin is list:
        return isinstance(value, list) and all(matches(item, arguments[0]) for item in value)
    if origin is dict or hint is dict:
        return isinstance(value, dict)
    if typing.is_typeddict(hint):
        parts = typing.get_type_hints(hint)
        return isinstance(value, dict) and all(
            matches(value[key], part) for key, part in parts.items() if key in value
        )
    return isinstance(value, hint)


def _check_parts(
    what: str, key: str, found: Any, parts: dict[str, Any], needed: Collection[str]
) -> None:
    for item in found if isinstance(found, list) else [found]:
        for part, hint in parts.items():
            left_out = item.get(part) is None and part not in needed  # null says as little as nothing
            if not left_out and not matches(item.get(part), hint):
                raise UsageError(
                    f"{what}: {part!r} in {key!r} is {_brief(item[part])}, which the schema does not allow"
                )


def _whole(value: Any) -> None:
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise UsageError("a text holds half of a surrogate pair, which is no character") from None
    elif isinstance(value, int) and abs(value) >= 1 << 63:
        raise UsageError(f"the whole number {str(value)[:24]}… is beyond 64 bits")
    elif isinstance(value, dict):
        for key, item in value.items():
            _whole(key)
            _whole(item)
    elif isinstance(value, list):
        for item in value:
            _whole(item)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
