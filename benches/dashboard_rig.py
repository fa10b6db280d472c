"""What `dashboard.py` measures with: a server and a replay in processes of their own, and eyes in the page.

`python benches/dashboard_rig.py RUNS ID --layers 126 --rate 50` is the replay: it writes the log of a run up
to the pressing of its tensors, waits for a line on its standard input, then writes 50 events a second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from dashboard_log import events, make_run  # noqa: E402
from tritpress.errors import TritpressError  # noqa: E402
from tritpress.events import EventWriter  # noqa: E402
from tritpress.events.schema import encode, make_event  # noqa: E402
from tritpress.events.snapshot import fold, save_snapshot  # noqa: E402
from tritpress.runs.worker import EVENTS_TOGETHER  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")

EYES = """(() => {
  if (window.top !== window) return
  const roots = [document], eyes = window.eyes = {paints: {}, cells: {}, switches: [], armed: null}
  const attach = Element.prototype.attachShadow
  Element.prototype.attachShadow = function (options) {
    const root = attach.call(this, options)
    roots.push(root)
    return root
  }
  const early = () => document.getElementById("opening")?.shadowRoot?.querySelector("[data-early-status]")
  eyes.shows = (selector) => roots.some((root) => root.querySelector(selector) !== null)
  const find = (view, name) => {
    if (view.model && view.model.type === "Figure" && view.model.name === name) return view
    for (const child of view.children()) { const hit = find(child, name); if (hit) return hit }
    return null
  }
  eyes.grid = () => {
    for (const root of (window.Bokeh && Bokeh.index && Bokeh.index.roots) || []) {
      const view = find(root, "layers-and-parameters")
      if (view) return view
    }
    return null
  }
  let grid = null, source = null, awake = false
  const look = () => {
    if (!grid || !grid.el.isConnected) grid = eyes.grid()
    if (grid) for (const view of grid.renderer_views.values()) {
      const found = view.model.data_source
      if (!found || found.name !== "grid" || found === source) continue
      source = found
      grid.connect(source.patching, wake)
      grid.connect(source.properties.data.change, wake)
    }
    return grid && source && grid.frame && grid.canvas_view && grid.frame.bbox.width > 50
  }
  const pixels = (x, y, width, height) => {
    const layer = grid.canvas_view.primary, ratio = layer.pixel_ratio
    const at = [x, y].map((place) => Math.round(place * ratio))
    return layer.ctx.getImageData(...at, ...[width, height].map((n) => Math.max(1, Math.round(n * ratio)))
    ).data
  }
  // Left of a cell's number: there is only its colour.
  const across = (x) => grid.frame.x_scale.compute(x - 0.4)
  const colour = (x, y) => pixels(across(x), grid.frame.y_scale.compute(y), 0, 0).join()
  const column = () => pixels(across(0), grid.frame.bbox.top, 0, grid.frame.bbox.height)
  const visible = (y) => {
    const {start, end} = grid.frame.y_scale.source_range
    return Math.min(start, end) < y && y < Math.max(start, end)
  }
  const now = () => performance.timeOrigin + performance.now()
  let waiting = null, before = null
  // Looking at every frame makes the browser draw sixty of them a second: once cells are followed it is
  // done from when the grid's data change until their colours are there.
  const wake = () => {
    if (!awake) { awake = true; requestAnimationFrame(frame) }
  }
  const frame = () => {
    awake = false
    if (see() || !eyes.following || eyes.armed !== null) wake()
  }
  const see = () => {
    let pending = false
    if (!("first" in eyes.paints) && early()) eyes.paints.first = performance.now()
    for (const [name, selector] of Object.entries(eyes.watch || {}))
      if (!(name in eyes.paints) && eyes.shows(selector)) eyes.paints[name] = performance.now()
    if (!look()) return true
    const {x, y, value} = source.data
    if (!("grid" in eyes.paints)) {
      for (let i = 0; i < value.length; i++) if (Number.isFinite(value[i]) && visible(y[i])) {
        if (colour(x[i], y[i]).endsWith(",255")) eyes.paints.grid = performance.now()
        break
      }
    }
    if (eyes.following) {
      if (waiting === null) for (let i = 0; i < value.length; i++)
        if (!Number.isFinite(value[i]) && visible(y[i])) { waiting = colour(x[i], y[i]); break }
      for (let i = 0; i < value.length; i++) {
        const name = source.data.name[i]
        if (name in eyes.cells || !Number.isFinite(value[i])) continue
        if (!visible(y[i])) { eyes.cells[name] = null; continue }
        if (waiting !== null && colour(x[i], y[i]) !== waiting) eyes.cells[name] = now()
        else pending = true
      }
    }
    if (eyes.armed !== null) {
      const after = column()
      if (after.length !== before.length || after.some((byte, i) => byte !== before[i])) {
        eyes.switches.push(performance.now() - eyes.armed)
        eyes.armed = null
      }
    }
    return pending
  }
  eyes.follow = () => {
    for (let i = 0; look() && i < source.data.value.length; i++)
      if (Number.isFinite(source.data.value[i])) eyes.cells[source.data.name[i]] = null
    eyes.following = true
    wake()
  }
  window.addEventListener("click", (event) => {
    if (eyes.timing && look()) { before = column(); eyes.armed = event.timeStamp; wake() }
  }, true)
  wake()
})()"""
"""Looks at the page's own pixels after every frame: when the words stand there, when a cell of the grid has
changed its colour on the canvas, when another page of the grid is drawn after a click."""


class Server:
    """`tritpress dashboard` on its own."""

    def __init__(self, runs: Path, log: Path) -> None:
        from browser_helpers import free_port

        port = free_port()
        code = f"from tritpress.dashboard.app import serve; serve({str(runs)!r}, {port}, require_token=False)"
        with open(log, "wb") as file:
            self.process = subprocess.Popen([sys.executable, "-c", code], stdout=file, stderr=file)
        self.url = f"http://127.0.0.1:{port}/dashboard"
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=20).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not come up: {log.read_text()}") from None
                time.sleep(0.1)

    @property
    def cpu(self) -> float:
        """Seconds of CPU so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    @property
    def memory(self) -> float:
        """Resident memory of its own, MB."""
        found = Path(f"/proc/{self.process.pid}/status").read_text().split("RssAnon:")[1].split()[0]
        return int(found) * 1024 / 1e6

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


class Replay:
    """A replay that waits for `go`."""

    def __init__(self, runs: Path, run_id: str, layers: int, rate: float, skip: int = 0) -> None:
        self.events_path = runs / run_id / "events.jsonl"
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(runs), run_id, "--layers", str(layers), "--rate", str(rate),
             "--skip", str(skip)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def stop(self) -> dict[str, float]:
        """End it; {share: of its time that went into events, rate: events a second}."""
        out, _ = self.process.communicate("\n")
        return dict(json.loads(out.splitlines()[-1]))

    def written(self) -> dict[str, float]:
        """Tensor -> when its `layer.finished` was written (seconds since 1970)."""
        lines = self.events_path.read_bytes().split(b"\n")[:-1]
        found = [json.loads(line) for line in lines if b'"layer.finished"' in line[:200]]
        return {event["name"]: event["t"] for event in found}


def replay(runs: Path, run_id: str, layers: int, rate: float, skip: int) -> None:
    run = make_run(runs, run_id, name=f"Replay of {layers} layers")
    writer = EventWriter(run.path, together=EVENTS_TOGETHER)
    script = events(run, layers, steps=100_000, name=f"Replay of {layers} layers")
    pressed = 0
    for kind, fields in script:
        writer.emit(kind, **fields)
        pressed += kind == "layer.finished"
        if (kind == "plan" and not skip) or (pressed and pressed >= skip and kind == "step.progress"):
            break
    writer.flush()
    print("ready", flush=True)
    sys.stdin.readline()
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), ended.set()), daemon=True).start()
    start, first, spent = time.perf_counter(), writer.seq, writer.write_seconds
    for kind, fields in script:
        writer.emit(kind, **fields)
        due = start + (writer.seq - first) / rate
        if ended.wait(max(due - time.perf_counter(), 0)):
            break
    seconds = time.perf_counter() - start
    count = writer.seq - first
    share = (writer.write_seconds - spent) / seconds
    writer.close()
    run.update_run(status="stopped")
    print(json.dumps({"share": share, "rate": count / seconds}), flush=True)


def write_million(runs: Path, run_id: str, count: int, layers: int) -> None:
    """The log of a run in the middle of a long training, `count` events, and its snapshot.

    Encoded and folded as the writer does, but written in one go.
    """
    from tritpress.events.snapshot import initial_state

    run = make_run(runs, run_id, name="A long training")
    state, size = initial_state(run_id), 0
    start = time.time() - count / 50
    with open(run.events_path, "wb", buffering=1 << 20) as file:
        script = events(run, layers, steps=count, name="A long training")
        for seq, (kind, fields) in zip(range(1, count + 1), _with_more(script)):
            line = encode(make_event(run_id, seq, start + seq / 50, kind, fields))
            size += file.write(line.encode() + b"\n")
            fold(state, json.loads(line))
    state["offset"] = size
    save_snapshot(run.snapshot_path, state)


def obey_times(runs: Path) -> dict[str, tuple[list[float], list[float]]]:
    """A real run of the built-in model that is paused and resumed all the time.

    Step -> milliseconds until its commands were acknowledged, and from there until a pause was obeyed.
    """
    from tritpress.config import CompressionConfig
    from tritpress.reference import reference_model_path
    from tritpress.runs.commands import send, wait_ack
    from tritpress.runs.launch import launch, worker_process

    config = CompressionConfig(
        planes=2, method="gptq", tokens=6144, finetune=True, calibration_tokens=4096, evaluation_tokens=8192
    )
    run = launch(reference_model_path(), None, config, runs)
    process = worker_process(run)
    assert process is not None
    while process.poll() is None:
        try:
            for command in ("pause", "resume"):
                wait_ack(run, send(run, command), timeout=60)
                time.sleep(0.4 if command == "pause" else 0.8)
        except TritpressError:
            break  # it is over
    process.wait(60)
    return _by_step(run.events_path, run.commands_path)


def _by_step(events_path: Path, commands_path: Path) -> dict[str, tuple[list[float], list[float]]]:
    sent = {c["id"]: c["t"] for c in map(json.loads, commands_path.read_text().splitlines())}
    found: dict[str, tuple[list[float], list[float]]] = {}
    step, paused = None, None
    for event in map(json.loads, events_path.read_text().splitlines()):
        if event["type"] in ("step.started", "step.finished"):
            step, paused = event["name"] if event["type"] == "step.started" else None, None
        elif event["type"] == "command.ack" and step is not None:
            acks, _ = found.setdefault(step, ([], []))
            acks.append(1000 * (event["t"] - sent[event["id"]]))
            paused = event["t"] if event["command"] == "pause" else None
        elif event["type"] == "run.paused" and paused is not None and step is not None:
            found[step][1].append(1000 * (event["t"] - paused))
    return found


def _with_more(script: Any) -> Any:
    """Lines to read and custom metrics between the steps of training."""
    for number, (kind, fields) in enumerate(script):
        yield kind, fields
        if kind == "finetune.step" and number % 10 == 0:
            yield "metric", {"name": "memory_gb", "value": 3.0 + number % 7 / 10}
        if kind == "finetune.step" and number % 500 == 0:
            yield "log", {"message": f"Checkpoint {number // 500}"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path)
    parser.add_argument("id")
    parser.add_argument("--layers", type=int, default=126)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--skip", type=int, default=0, help="tensors pressed before the waiting")
    given = parser.parse_args()
    replay(given.runs, given.id, given.layers, given.rate, given.skip)
