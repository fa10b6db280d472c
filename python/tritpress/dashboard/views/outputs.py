"""The Outputs tab as data: what was written, side by side, as a tree, and the checks before handing on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.ending import broke_off
from tritpress.dashboard.views.status import State, headline, passed_of, sentence
from tritpress.dashboard.views.written import model_of, out_folder, parts_below, written_bytes

MODELS = {
    "packed": (
        "Packed",
        "Ternary codes and scales; runs on the CPU kernels.",
        'import tritpress\n\nmodel = tritpress.load("{path}")',
    ),
    "dequantized": (
        "Dequantized",
        "fp16 safetensors; opens in stock transformers and trains on.",
        "from transformers import AutoModelForCausalLM\n\n"
        'model = AutoModelForCausalLM.from_pretrained("{path}")',
    ),
}

TREE_ENTRIES = 400
"""So many files of the output directory are listed."""

ZIPPED_TENSORS = 48
"""So many tensors have charts of their own in the zip: one's take 0.2 MB, and the browser paints each."""


ELSEWHERE = "on the machine that worked on this run"
UNKNOWN = "OUT is the folder that it was written to, on the machine that worked on this run."
"""Of runs that are only told of here: where their models lie."""


@dataclass(frozen=True)
class FileLine:
    name: str
    size: str
    sha256: str


@dataclass(frozen=True)
class ModelCard:
    """One of the two models. `files` is empty until it is written; `why` then says what it waits for. `path`
    is empty where the run did not tell it; `place` says that it lies on another machine.
    """

    key: str
    title: str
    about: str
    path: str
    size: str
    summary: str
    files: tuple[FileLine, ...]
    load: str
    why: str
    place: str = ""


def model_cards(state: State, lost: bool = False) -> list[ModelCard]:
    """The packed and the dequantized model."""
    return [_card(key, state, lost) for key in MODELS]


def standing(state: State, lost: bool = False, remote: bool = False) -> tuple[str, str]:
    """(tone, sentence) on a run whose outputs are not the whole of a finished run; two empty texts else.
    `remote`: the run is worked on elsewhere and only told of here.
    """
    written = bool(state["outputs"])
    if lost:
        gone = "Nothing more is heard of this run." if remote else "The worker process is gone."
        return "bad", gone + (
            " What it wrote is listed here; it was not checked." if written and not state["handoff"] else ""
        )
    if state["status"] == "failed":
        return "bad", f"The run failed: {sentence(state.get('error') or 'no reason was given')}" + (
            " What it wrote before is listed here."
            if written
            else " It told of nothing that it wrote."
            if remote
            else " Nothing was written."
        )
    if state["status"] == "stopped":
        how = "it can be resumed where it was worked on" if remote else "Resume goes on from what is finished"
        return "warning", f"The run was stopped; {how}."
    if state["status"] != "finished":
        asked = (state.get("config") or {}).get("outputs", "both")
        what = f"the {asked} model is" if asked in MODELS else "both models are"
        return "live", f"The run is at work: {what} written in step 6 and checked in step 7."
    return "", ""


def no_json(state: State, lost: bool = False) -> str:
    """Why there is no report.json to download; "" when there is."""
    if state["status"] == "finished":
        return "" if state.get("report") else "This run wrote no report.json."
    if broke_off(state, lost):
        return (
            "report.json is written when a run finishes; this one has not. The HTML report has what is known."
        )
    return "report.json is written when the run finishes."


def zip_words(state: State) -> str:
    """What the zip of charts and tables holds, as its button says it."""
    count = len(state["layers"])
    if count <= ZIPPED_TENSORS:
        return "All charts and tables (ZIP)"
    return f"Charts and tables, {ZIPPED_TENSORS} worst of {count:,} tensors (ZIP)"


def _card(key: str, state: State, lost: bool) -> ModelCard:
    title, about, load = MODELS[key]
    out = out_folder(state)
    files = [output for output in state["outputs"] if model_of(output.get("path", ""), out) == key]
    path = os.path.join(out, key) if out else ""
    lines = tuple(
        FileLine(os.path.basename(str(f["path"])), fig.size(f.get("bytes")), str(f.get("sha256") or ""))
        for f in sorted(files, key=lambda f: (not str(f["path"]).endswith(".safetensors"), str(f["path"])))
    )
    summary = ""
    if key == "packed" and headline(state).measured:
        head = headline(state)
        summary = f"{head.ratio} smaller than float32 · {head.bits} · {head.planes}"
    elif key == "dequantized":
        summary = "16 bits a weight"
    return ModelCard(
        key,
        title,
        about,
        path,
        fig.size(written_bytes(state, key)),
        summary,
        lines,
        load.format(path=(path or f"OUT/{key}").replace("\\", "\\\\").replace('"', '\\"')),
        "" if files else _why(key, state, lost),
        "" if state.get("out") else ELSEWHERE if out else UNKNOWN,
    )


def _why(key: str, state: State, lost: bool) -> str:
    asked = (state.get("config") or {}).get("outputs", "both")
    if asked not in ("both", key):
        return f"Not asked for: this run writes the {asked} model only."
    step = state["steps"][5]
    if step["state"] == "skipped":
        return f"Not written: {step['reason']}"
    if broke_off(state, lost):
        return "Not written: the run ended before it was."
    if state["status"] == "finished":
        return "This run is finished, but named no file of it."
    return "Written in step 6."


@dataclass
class Node:
    """A folder or file of the output directory; `cut` at its root where not all files are listed."""

    name: str
    size: str = ""
    children: list[Node] = field(default_factory=list)
    folder: bool = False
    cut: bool = False


def tree(state: State) -> Node | None:
    """The output directory as it lies on disk; from the run's own list of files where it cannot be read."""
    if not state["outputs"]:
        return None
    local, out = state.get("out"), out_folder(state)
    root = Node(out or "OUT", folder=True)
    found: list[tuple[Sequence[str], Any]] = []
    if local:
        found, root.cut = _walk(Path(local))
    if not found:
        told = state["outputs"]
        found = [(parts_below(str(o.get("path", "")), out), o.get("bytes")) for o in told[:TREE_ENTRIES]]
        root.cut = len(told) > TREE_ENTRIES
    for parts, size in found:
        if parts:
            _insert(root, parts, size)
    order = list(MODELS)
    root.children.sort(
        key=lambda node: (not node.folder, order.index(node.name) if node.name in order else 9)
    )
    return root


def _walk(out: Path) -> tuple[list[tuple[Sequence[str], Any]], bool]:
    """The first files below `out` with their sizes, and whether there are more."""
    found: list[tuple[Sequence[str], Any]] = []
    try:
        for folder, folders, files in os.walk(out):
            folders.sort()
            for name in sorted(files):
                if len(found) == TREE_ENTRIES:
                    return found, True
                path = os.path.join(folder, name)
                size = os.stat(path, follow_symlinks=False).st_size
                found.append((Path(path).relative_to(out).parts, size))
    except OSError:
        return found, False
    return found, False


def _insert(node: Node, parts: Iterable[str], size: int | None) -> None:
    *folders, name = parts
    for part in folders:
        child = next((c for c in node.children if c.folder and c.name == part), None)
        if child is None:
            child = Node(part, folder=True)
            node.children.append(child)
        node = child
    node.children.append(Node(name, fig.size(size)))


@dataclass(frozen=True)
class CheckLine:
    mark: str
    word: str
    tone: str
    title: str
    detail: str


def checklist(state: State) -> list[CheckLine]:
    """The handoff checklist; empty until step 7 made it."""
    words = {
        True: ("✓", "passed", "good"),
        False: ("✕", "failed", "bad"),
        None: ("?", "not checked", "neutral"),
    }
    return [
        CheckLine(
            *words[passed_of(item.get("passed"))],
            str(item.get("name", "")).replace("_", " "),
            str(item.get("detail") or ""),
        )
        for item in state["handoff"]
    ]
