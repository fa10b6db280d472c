"""Speed of the live page, in a real browser: `python benches/dashboard.py [--json] [--only NAME]...`.

A run of 126 layers with 7 tensors each is replayed at 50 events a second; headless Chromium (Debian's, or
$CHROMIUM) looks at it. Every figure stands beside its limit; the exit code is 1 when one is above it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dashboard_rig import EYES, Replay, Server, obey_times, write_million

LAYERS, RATE = 126, 50.0
WINDOW = 20.0
"""Seconds that a replay is watched."""

BETWEEN = 3.0
"""Seconds between two openings."""

ENDED = 45.0
"""Seconds until the server has let go of pages that were closed (it looks every 17 for any unused for 15)."""


@dataclass
class Figure:
    """One line of the table."""

    name: str
    unit: str
    value: float | None
    limit: float | None
    beside: str = ""

    @property
    def holds(self) -> bool | None:
        return None if self.limit is None or self.value is None else self.value <= self.limit


class Bench:
    """Server, browser and folder of one call."""

    def __init__(self, browser: Any, folder: Path, pages: int, opens: int, events: int) -> None:
        self.browser, self.folder = browser, folder
        self.pages, self.opens, self.events = pages, opens, events
        self.runs = folder / "runs"
        self.runs.mkdir(exist_ok=True)
        self.count = 0

    @contextmanager
    def server(self, warm: str = "") -> Iterator[Server]:
        """A server that has shown a page before."""
        server = Server(self.runs, self.folder / "server.log")
        try:
            for _ in range(2):
                with self.page(server, warm, "[data-tab]") as page:
                    page.wait_for_timeout(300)
            yield server
        finally:
            server.stop()

    @contextmanager
    def page(self, server: Server, query: str, watch: str = "[data-status]", context: Any = None) -> Any:
        """A page in a browser of its own (nothing kept from before), once its words stand there."""
        own = context is None
        context = context or self.browser.new_context(viewport={"width": 1440, "height": 900})
        page = context.new_page()
        page.add_init_script(EYES + f"\neyes.watch = {{words: {watch!r}}}")
        try:
            page.goto(f"{server.url}{query}", wait_until="commit")
            page.wait_for_function("'words' in eyes.paints", timeout=60_000)
            yield page
        finally:
            page.close()
            if own:
                context.close()

    def replay(self, skip: int) -> tuple[str, Replay]:
        self.count += 1
        run_id = f"replay-{self.count}"
        shutil.rmtree(self.runs / run_id, ignore_errors=True)  # of an earlier call in the same folder
        return run_id, Replay(self.runs, run_id, LAYERS, RATE, skip)

    # What is measured

    def paint(self) -> Iterator[Figure]:
        run_id, replay = self.replay(200)
        try:
            for name, query, watch in (
                ("overview: state and figures", f"?run={run_id}", "[data-figure]"),
                ("progress: the grid's cells", f"?run={run_id}&tab=progress", "[data-where]"),
            ):
                with self.server(query) as server:
                    cold = [self._paint(server, query, watch) for _ in range(5)]
                    context = self.browser.new_context(viewport={"width": 1440, "height": 900})
                    kept = [self._paint(server, query, watch, context) for _ in range(6)][1:]
                    context.close()
                (first, whole), (kept_first, kept_whole) = (
                    map(statistics.median, zip(*times)) for times in (cold, kept)
                )
                yield Figure(
                    f"first meaningful paint, {name}",
                    "s",
                    first,
                    1.5,
                    f"as the server writes it; {kept_first:.2f} s with the browser's cache",
                )
                yield Figure(
                    f"the same as part of the live page, {name}",
                    "s",
                    whole,
                    1.5,
                    f"{kept_whole:.2f} s with the browser's cache; medians of 5",
                )
        finally:
            replay.stop()

    def _paint(self, server: Server, query: str, watch: str, context: Any = None) -> tuple[float, float]:
        """Seconds until the run's state can be read, and until the live page shows what is looked for."""
        time.sleep(BETWEEN)
        with self.page(server, query, watch, context) as page:
            last = "words"
            if "tab=progress" in query:
                last = "grid"
                page.wait_for_function("'grid' in eyes.paints", timeout=60_000)
            paints = dict(page.evaluate("eyes.paints"))
        return min(paints.get("first", paints[last]), paints[last]) / 1000, paints[last] / 1000

    def live(self) -> Iterator[Figure]:
        cases = [(1, 1, 300.0), (self.pages, self.pages, 500.0)]
        if self.pages > 1:
            cases.append((self.pages, 1, 500.0))
        for count, drawing, limit in cases:
            run_id, replay = self.replay(30)
            query = f"?run={run_id}&tab=progress"
            try:
                with self.server(query) as server:
                    delays, cpu, browsers, missed = self._watch(server, replay, query, count, drawing)
            finally:
                replay.stop()
            delays.sort()
            many = f"{count} browser{'s' if count > 1 else ''}"
            if drawing < count:
                many += ", the others as on machines of their own"
            told = f"median {_quantile(delays, 0.5):.0f} ms, {len(delays)} cells" if delays else "none seen"
            told += f", {missed} never drawn" if missed else ""
            yield Figure(
                f"event written to pixel changed, p95, {many}", "ms", _quantile(delays, 0.95), limit, told
            )
            yield Figure(
                f"server CPU for each page, run live, {many}",
                "%",
                100 * cpu / count,
                5.0,
                f"of a core, the reading of the log included; the browser {100 * browsers / count:.0f} %",
            )

    def worker(self) -> Iterator[Figure]:
        """Without browsers: what they take from the worker is not spent on events."""
        for skip, what in ((30, "pressing"), (LAYERS * 7, "training, all tensors pressed")):
            _, replay = self.replay(skip)
            replay.go()
            time.sleep(WINDOW)
            share = replay.stop()
            beside = f"at {share['rate']:.0f} events a second"
            yield Figure(f"worker's time spent on events, {what}", "%", 100 * share["share"], 1.0, beside)

    def _watch(
        self, server: Server, replay: Replay, query: str, count: int, drawing: int
    ) -> tuple[list[float], float, float, int]:
        """Milliseconds from each tensor's event to its cell's colour, CPU a second of the server and of the
        browsers, cells never drawn. Only `drawing` of the pages are followed, the others take all that they
        are sent and draw nothing: their drawing would be done on other machines than the server's.
        """
        contexts = [self.browser.new_context(viewport={"width": 1440, "height": 900}) for _ in range(count)]
        pages = []
        for context in contexts:
            page = context.new_page()
            page.add_init_script(EYES)
            page.goto(f"{server.url}{query}", wait_until="commit")
            pages.append(page)
        for page in pages:
            page.wait_for_function("'grid' in eyes.paints", timeout=120_000)
        for page in pages[drawing:]:
            page.evaluate("document.body.style.display = 'none'; window.requestAnimationFrame = () => 0")
        time.sleep(2)
        for page in pages[:drawing]:
            page.evaluate("eyes.follow()")
        replay.go()
        time.sleep(2)
        before, start = (server.cpu, self._browser_cpu()), time.monotonic()
        time.sleep(WINDOW)
        seconds = time.monotonic() - start
        cpu, browsers = (server.cpu - before[0]) / seconds, (self._browser_cpu() - before[1]) / seconds
        seen = [dict(page.evaluate("eyes.cells")) for page in pages[:drawing]]
        until = time.time() - 2
        for context in contexts:
            context.close()
        written = {name: t for name, t in replay.written().items() if t < until}
        delays, missed = [], 0
        for cells in seen:
            for name, t in written.items():
                at = cells.get(name, 0)
                if at is None:
                    continue  # known before the watch began, or on another page of the grid
                if at:
                    delays.append(at - 1000 * t)
                else:
                    missed += 1
        return delays, cpu, browsers, missed

    def _browser_cpu(self) -> float:
        """Seconds of CPU of all processes of the browser so far."""
        session = self.browser.new_browser_cdp_session()
        found = session.send("SystemInfo.getProcessInfo")["processInfo"]
        session.detach()
        return float(sum(process["cpuTime"] for process in found))

    def switch(self) -> Iterator[Figure]:
        run_id, replay = self.replay(500)
        query = f"?run={run_id}&tab=progress&page=1"
        try:
            with self.server(query) as server, self.page(server, query) as page:
                page.wait_for_function("'grid' in eyes.paints", timeout=60_000)
                replay.go()
                times = []
                for number in range(40):
                    page.evaluate("eyes.timing = true")
                    page.get_by_label(f"Go to page {2 - number % 2}", exact=True).click()
                    page.wait_for_function("eyes.armed === null", timeout=10_000)
                    page.evaluate("eyes.timing = false")
                    page.wait_for_timeout(150)
                times = sorted(page.evaluate("eyes.switches"))
        finally:
            replay.stop()
        beside = f"median {_quantile(times, 0.5):.0f} ms, {len(times)} turns while the run is at work"
        yield Figure("another page of the grid, p95", "ms", _quantile(times, 0.95), 150.0, beside)

    def million(self) -> Iterator[Figure]:
        if not (self.runs / "million" / "snapshot.json").exists():
            write_million(self.runs, "million", self.events, LAYERS)
        size = (self.runs / "million" / "events.jsonl").stat().st_size / 1e6
        for tab, watch in (("overview", "[data-figure]"), ("metrics", "[data-cell]")):
            query = f"?run=million&tab={tab}"
            with self.server(f"?tab={tab}") as server:
                times = [self._paint(server, query, watch) for _ in range(5)]
            first, whole = map(statistics.median, zip(*times))
            yield Figure(
                f"opening a run with {self.events:,} events, {tab}",
                "s",
                whole,
                1.5,
                f"log of {size:.0f} MB; state to be read after {first:.2f} s; medians of 5",
            )

    def memory(self) -> Iterator[Figure]:
        """Pages one after the other, then some at once. What the most pages at one time took is kept by
        Python's allocator for the next ones, so that the order matters."""
        run_id, replay = self.replay(800)
        query = f"?run={run_id}&tab=progress"
        try:
            with self.server(query) as server:
                self._open_and_close(server, query, 10)
                base = self._at_rest(server)
                self._open_and_close(server, query, self.opens)
                after = self._at_rest(server)
                contexts = [self.browser.new_context() for _ in range(self.pages)]
                for context in contexts:
                    self._open(context, server, query)
                time.sleep(2)
                opened = server.memory
                for context in contexts:
                    context.close()
                closed = self._at_rest(server)
        finally:
            replay.stop()
        yield Figure(
            f"server memory after {self.opens} openings",
            "%",
            100 * abs(after / base - 1),
            5.0,
            f"{base:.0f} MB before, {after:.0f} MB after",
        )
        yield Figure(
            "server memory for each open page",
            "MB",
            (opened - after) / self.pages,
            15.0,
            f"{after:.0f} MB without, {opened:.0f} MB with {self.pages}, {closed:.0f} MB once closed",
        )

    def _at_rest(self, server: Server) -> float:
        """MB once closed pages have been let go of and freed memory was given back."""
        time.sleep(ENDED)
        return server.memory

    def commands(self) -> Iterator[Figure]:
        for step, (acks, obeyed) in obey_times(self.runs).items():
            acks, obeyed = sorted(acks), sorted(obeyed)
            told = f"{len(acks)} commands"
            if obeyed:
                told += f"; a pause held {_quantile(obeyed, 0.5):.0f} ms later, at most {obeyed[-1]:.0f} ms"
            yield Figure(f"command acknowledged in {step}, p95", "ms", _quantile(acks, 0.95), 300.0, told)

    def _open_and_close(self, server: Server, query: str, times: int) -> None:
        context = self.browser.new_context()
        for _ in range(times):
            self._open(context, server, query).close()
        context.close()

    def _open(self, context: Any, server: Server, query: str) -> Any:
        """A page that stands: what is shown first, which has the same words, is gone."""
        page = context.new_page()
        page.goto(f"{server.url}{query}", wait_until="domcontentloaded")
        page.wait_for_function("!document.getElementById('opening')", timeout=60_000)
        page.wait_for_selector("[data-where]", timeout=60_000)
        return page


def _quantile(values: list[float], share: float) -> float | None:
    return values[min(int(share * len(values)), len(values) - 1)] if values else None


PARTS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "paint": Bench.paint,
    "worker": Bench.worker,
    "live": Bench.live,
    "switch": Bench.switch,
    "million": Bench.million,
    "memory": Bench.memory,
    "commands": Bench.commands,
}


def _shown(figure: Figure) -> str:
    return "–" if figure.value is None else f"{figure.value:.3g} {figure.unit}"


def table(figures: list[Figure]) -> str:
    """The figures as a Markdown table."""
    lines = ["| figure | measured | at most | | |", "|---|---|---|---|---|"]
    for figure in figures:
        limit = "" if figure.limit is None else f"{figure.limit:g} {figure.unit}"
        mark = {True: "holds", False: "above", None: ""}[figure.holds]
        lines.append(f"| {figure.name} | {_shown(figure)} | {limit} | {mark} | {figure.beside} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--only", action="append", choices=PARTS, help="measure these alone")
    parser.add_argument("--pages", type=int, default=10, help="browsers at once (10)")
    parser.add_argument("--opens", type=int, default=100, help="pages opened and closed (100)")
    parser.add_argument("--events", type=int, default=1_000_000, help="events of the long log")
    parser.add_argument("--folder", type=Path, help="where the runs go; a long log found there is used again")
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as made, sync_playwright() as playwright:
        folder = given.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox"]
        )
        bench = Bench(browser, folder, given.pages, given.opens, given.events)
        figures: list[Figure] = []
        broken: list[str] = []
        load = os.getloadavg()[0]
        for name in given.only or PARTS:
            try:
                for figure in PARTS[name](bench):
                    print(f"{figure.name}: {_shown(figure)} ({figure.beside})", file=sys.stderr, flush=True)
                    figures.append(figure)
            except Exception as error:  # the other parts are measured all the same
                broken.append(name)
                print(f"{name} could not be measured: {error}", file=sys.stderr, flush=True)
        machine = {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "browser": browser.version,
            "load_before": load,
        }
        browser.close()
    if given.json:
        rows = [{**asdict(figure), "holds": figure.holds} for figure in figures]
        print(json.dumps({"machine": machine, "rows": rows}))
    else:
        print(table(figures))
        about = f"{machine['cores']} cores of {machine['cpu']}, Chromium {machine['browser']}"
        print(f"\n{about}; load of the machine before: {load:.1f}")
    return int(bool(broken) or any(figure.holds is False for figure in figures))


def _cpu() -> str:
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
        return names[0].partition(":")[2].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
