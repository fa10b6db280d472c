"""Plug-ins: really installed packages (a dist-info on sys.path), the documented example, and broken ones."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dashboard_log import write_run
from tritpress.dashboard import plugins
from tritpress.dashboard.context import PageContext
from tritpress.dashboard.report.charts import pictures
from tritpress.dashboard.report.facts import read_facts
from tritpress.dashboard.report.page import report_html
from tritpress.dashboard.store import RunStore
from tritpress.dashboard.tabs import make_tabs
from tritpress.dashboard.tabs.base import Shown
from tritpress.dashboard.tabs.plugin import PluginTab
from tritpress.events import StateReader

DOCS = Path(__file__).parents[1] / "docs" / "plugins.md"


def install(folder: Path, name: str, module: str, source: str) -> None:
    """What pip leaves of a package of one module: the module and a dist-info that names its entry point."""
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tritpress.dashboard]\n{name} = {module}:plugin\n")
    (info / "RECORD").write_text(f"{module}.py,,\n")


def example() -> str:
    """The example of docs/plugins.md."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    return next(block for block in blocks if "Plugin(" in block)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    before = set(sys.modules)
    plugins.plugins.cache_clear()
    yield site
    plugins.plugins.cache_clear()
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(site)):
            del sys.modules[name]


@pytest.fixture
def state(tmp_path: Path) -> dict[str, Any]:
    return StateReader(write_run(tmp_path / "runs", "r").path).state


def shown(state: dict[str, Any], folder: Path) -> Shown:
    return Shown(state, False, 0.0, {}, folder)


def test_the_documented_example_adds_a_card_a_chart_and_a_tab(installed: Path, state, tmp_path) -> None:
    source = example()
    assert len([line for line in source.splitlines() if line.strip()]) <= 10
    install(installed, "best", "best_loss", source)
    best = min(point["loss"] for point in state["finetune"])
    for place in ("overview", "quality"):
        html = plugins.plugin_cards(place, state)
        assert f"{best:.3f}" in html and "of 120 steps" in html and 'data-plugin="best"' in html
    (chart,), notes = plugins.plugin_charts(state)
    first = state["finetune"][0]
    assert notes == "" and chart.title == "CE minus KL" and len(chart.lines[0].x) == 120
    assert chart.lines[0].y[0] == pytest.approx(first["ce"] - first["kl"])
    tabs = make_tabs(PageContext(RunStore(tmp_path)))
    tab = tabs[-1]
    assert isinstance(tab, PluginTab) and (tab.key, tab.title) == ("plugin-losses", "Losses")
    assert not any(isinstance(other, PluginTab) for other in tabs[:-1])
    tab.refresh(shown(state, tmp_path), None)
    assert tab.charts is not None and len(tab.charts) == 1
    assert f"{best:.3f}" in tab.text.pane.object and tab.trouble.pane.object == ""


TWO = """
from tritpress.dashboard.plugins import Chart, Plugin
def tab(state):
    return [Chart("Signal", {"<b>left</b>": [(1, 2.5), (2, 4.0)], "right": [(2, 7.25)]}, "Step", "dB"),
            Chart("Nothing", {})]
def words(state): return "No <i>chart</i>"
plugin = Plugin(tabs={"Signals": tab, "Words": words})
"""


def test_charts_of_a_tab_have_their_tables(installed: Path, state, tmp_path) -> None:
    install(installed, "two", "two_charts", TWO)
    tab, words = make_tabs(PageContext(RunStore(tmp_path)))[-2:]
    assert isinstance(tab, PluginTab) and isinstance(words, PluginTab)
    tab.refresh(shown(state, tmp_path), None)
    assert tab.trouble.pane.object == "" and tab.twin.pane.object == "" and tab.query() == {}
    assert tab.twin_switch.visible and tab.twin_switch in tab.body.objects
    tab.go({"twin": "1"})
    tab.refresh(shown(state, tmp_path), None)
    html = tab.twin.pane.object
    assert tab.twin_switch.value and tab.query() == {"twin": "1"} and html.count("<table") == 1
    assert "Signal, dB" in html and "&lt;b&gt;left&lt;/b&gt;" in html and "<b>left" not in html
    assert re.findall("<td>(.*?)</td>", html) == ["1", "2.500", "–", "2", "4.000", "7.250"]
    assert 'data-csv="curve-plugin-signals:0"' in html
    words.refresh(None, None)
    words.refresh(shown(state, tmp_path), None)  # no run was open, now one is
    assert words.trouble.pane.object == "" and not words.twin_switch.visible
    assert words.text.pane in words.body.objects and "No &lt;i&gt;chart" in words.text.pane.object


def test_its_charts_are_in_the_report_too(installed: Path, tmp_path: Path) -> None:
    install(installed, "best", "best_loss", example())
    run = write_run(tmp_path / "runs", "r")
    drawn = {picture.key: picture.title for picture in pictures(read_facts(run.path))}
    assert drawn["plugin-best-0"] == "CE minus KL"
    assert "CE minus KL" in report_html(read_facts(run.path))


def test_it_is_found_by_a_process_of_its_own(installed: Path) -> None:
    install(installed, "best", "best_loss", example())
    code = "from tritpress.dashboard.plugins import plugins; print([p.name for p in plugins()])"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(installed)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "['best']"


BROKEN = """
from tritpress.dashboard.plugins import Card, Chart, Plugin
def boom(state): raise ZeroDivisionError("<b>of all things</b>")
def wrong(state): return 7
def fine(state): return Card("<i>fine</i>", "1")
tabs = {"Bad": boom, "Odd": wrong}
plugin = Plugin(overview=[boom, fine], quality=[wrong], charts=[boom, wrong], tabs=tabs)
"""


def test_what_raises_is_a_note_with_name_and_error_and_the_rest_stands(installed, state, tmp_path) -> None:
    install(installed, "broken", "broken_plugin", BROKEN)
    html = plugins.plugin_cards("overview", state)
    assert "The plug-in broken failed: ZeroDivisionError: &lt;b&gt;of all things" in html
    assert "&lt;i&gt;fine&lt;/i&gt;" in html and "<i>fine" not in html
    assert "TypeError: gave a int, not a Card" in plugins.plugin_cards("quality", state)
    charts, notes = plugins.plugin_charts(state)
    assert charts == [] and notes.count("data-plugin-error") == 2
    tabs = make_tabs(PageContext(RunStore(tmp_path)))[-2:]
    assert [tab.key for tab in tabs] == ["plugin-bad", "plugin-odd"]
    for tab, error in zip(tabs, ("ZeroDivisionError", "gave a int")):
        tab.refresh(shown(state, tmp_path), None)
        assert error in tab.trouble.pane.object and "broken" in tab.trouble.pane.object
        tab.refresh(None, None)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("plugin = 7", "TypeError: broken:plugin is a int, not a Plugin"),
        ("import a_module_that_is_nowhere", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_one_that_cannot_be_loaded_is_said(installed: Path, state, tmp_path, source, error) -> None:
    install(installed, "broken", "broken", source)
    install(installed, "works", "works_fine", example())
    html = plugins.plugin_cards("overview", state)
    assert f"The plug-in broken failed: {error}" in html and "Best loss" in html
    assert error in plugins.plugin_charts(state)[1]
    assert make_tabs(PageContext(RunStore(tmp_path)))[-1].title == "Losses"


OWN_TAB = """
from tritpress.dashboard.components.html import Fragment, Markup
from tritpress.dashboard.plugins import Plugin
from tritpress.dashboard.tabs.base import Tab
class Own(Tab):
    key, title, interests = "own", "Own", frozenset({"gate"})
    def build(self):
        self.text = Fragment()
        return [self.text.pane]
    def query(self): return {"deep": "1"}
    def update(self, shown, changed):
        self.text.set(Markup("{}").format(len(shown.state["gates"])))
plugin = Plugin(tabs={"Own": Own, "Own!": Own})
"""


def test_a_tab_of_the_plugins_own(installed: Path, state, tmp_path) -> None:
    install(installed, "own", "own_tab", OWN_TAB)
    first, second = make_tabs(PageContext(RunStore(tmp_path)))[-2:]
    assert (first.key, second.key) == ("plugin-own", "plugin-own-2")
    first.refresh(shown(state, tmp_path), None)
    assert first.inner.text.pane.object == "5" and first.query() == {"deep": "1"}
    first.refresh(None, None)  # its own update cannot cope with no run
    assert "AttributeError" in first.trouble.pane.object


def test_without_plugins_nothing_is_added(state) -> None:
    plugins.plugins.cache_clear()
    if plugins.plugins():
        pytest.skip("this environment has plug-ins of its own")
    assert plugins.plugin_cards("overview", state) == "" and plugins.plugin_charts(state) == ([], "")


def test_no_program_is_set_over_the_interface(tmp_path: Path) -> None:
    from tritpress.dashboard.api.checks import check_config
    from tritpress.dashboard.api.handlers import ApiError, start

    with pytest.raises(ApiError, match="alert_command starts a program"):
        start(tmp_path, {"model": "/m", "config": {"alert_command": None}})
    kept = check_config({"alert_command": "touch /tmp/x", "planes": 2})
    assert kept["planes"] == 2 and kept["alert_command"] is None
