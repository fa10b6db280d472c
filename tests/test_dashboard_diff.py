"""Tensors before and after as data: order, search, pages, the pictures of one, and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dashboard_log import write_run
from tritpress.cli import app
from tritpress.dashboard.components.pictures import BlockPictures
from tritpress.dashboard.views.diff import PAGE, diff_page, page_holding, tensor_view
from tritpress.runs.details import load_details
from tritpress.runs.diff import SORTS, matching, ordered, tensor_diffs
from tritpress.runs.history import run_state


def exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        app(arguments, standalone_mode=False)
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_run(tmp_path_factory.mktemp("runs"), "r", layers=9, details=True)


@pytest.fixture(scope="module")
def state(run: Any) -> dict[str, Any]:
    return run_state(run)


def test_every_tensor_once_worst_first(state: dict[str, Any]) -> None:
    diffs = tensor_diffs(state)
    assert [diff.name for diff in diffs] == list(state["layers"])
    for by, down in SORTS.items():
        found = [getattr(diff, by) for diff in ordered(diffs, by)]
        assert found == sorted(found, reverse=down), by
        assert [getattr(diff, by) for diff in ordered(diffs, by, not down)] == sorted(found, reverse=not down)
    assert ordered(diffs)[0].error == max(layer["relative_error"] for layer in state["layers"].values())


def test_what_is_not_recorded_comes_last_and_is_a_dash() -> None:
    old = {"kind": "q", "layer": 0, "planes": 1, "bits": 2.25, "cosine": 0.9, "sparsity": 0.4}
    state = {"layers": {"old": old, "new": {**old, "relative_error": 0.2, "sign_flips": 0.0}}}
    for descending in (True, False):
        assert [diff.name for diff in ordered(tensor_diffs(state), "error", descending)] == ["new", "old"]
    lines = dict(diff_page(state).lines)
    assert lines["old"][2] == "–" and lines["old"][4] == "–"
    assert lines["new"][2] == "20.0 %" and lines["new"][4] == "0 %"


def test_pages_hold_every_tensor_once(state: dict[str, Any]) -> None:
    first = diff_page(state)
    assert (first.total, first.pages) == (63, 4) and len(first.lines) == PAGE
    names = [name for page in range(first.pages) for name, _ in diff_page(state, page=page).lines]
    assert names == [diff.name for diff in ordered(tensor_diffs(state))]
    assert diff_page(state, page=99).page == 3
    assert page_holding(state, "error", None, "", names[45]) == 2
    assert page_holding(state, "error", None, "", "nowhere") is None


def test_search_takes_every_word_or_the_kind(state: dict[str, Any]) -> None:
    diffs = tensor_diffs(state)
    assert {diff.layer for diff in matching(diffs, "LAYERS.3. proj")} == {3}
    assert {diff.kind for diff in matching(diffs, "up")} == {"up"}
    assert len(matching(diffs, "layers.3 down")) == 1
    page = diff_page(state, search="<b>nothing</b>")
    assert page.lines == () and page.pages == 1 and "<b>nothing</b>" in page.words


def test_the_view_of_a_tensor_is_its_details(run: Any, state: dict[str, Any]) -> None:
    name, layer = next(iter(state["layers"].items()))
    details = load_details(run.path, name)
    assert details is not None
    view = tensor_view(name, layer, details)
    facts = dict(view.facts)
    assert facts["Cosine"] == f"{details.cosine:.5f}" and f"{layer['bits']:.2f} bits" in facts["Planes"]
    assert facts["Seen"] == f"96 of {details.rows} rows, evenly spaced"
    for shares, counts in (
        (view.bars.before, details.histogram_before),
        (view.bars.after, details.histogram_after),
    ):
        np.testing.assert_allclose(shares, counts / counts.sum())
        assert sum(shares) == pytest.approx(1)
    picture = view.picture
    assert picture.limit == max(np.abs(picture.before).max(), np.abs(picture.after).max())
    assert picture.largest == details.block_error.max()
    assert "64 × 64 blocks" in picture.words[0]
    whole = np.sqrt(np.square(details.block_error[:8, :8]).mean())
    assert list(picture.twins) == ["before", "after", "error"]
    for title, cells in picture.twins.values():
        assert title and len(cells) == 8 and {len(row) for row in cells} == {8}
    assert number(picture.twins["error"][1][0][0]) == pytest.approx(whole, rel=0.06)
    for key, blocks in (("before", picture.before), ("after", picture.after)):
        mean, limit = float(blocks[-8:, :8].mean()), float(np.abs(blocks).max())
        assert number(picture.twins[key][1][7][0]) == pytest.approx(mean, rel=0.06, abs=1e-4 * limit), key


def number(text: str) -> float:
    """What was written as `1.2`, `−0.5` or `1.2 × 10⁻⁵`."""
    plain = text.translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻−", "0123456789--"))
    return float(plain.replace(" × 10", "e"))


def test_each_picture_of_blocks_has_its_table(run: Any, state: dict[str, Any]) -> None:
    name, layer = next(iter(state["layers"].items()))
    details = load_details(run.path, name)
    assert details is not None
    shown = BlockPictures()
    view = tensor_view(name, layer, details)
    shown.show(view.picture)
    html = shown.words.pane.object
    for key in ("before", "after", "error"):
        assert f'data-csv="blocks-{key}"' in html and f"data-blocks-{key}" in html
        assert f"{view.picture.twins[key][0]} by parts of the tensor" in html
    assert html.count("<table") == 3 and html.count("<td>") == 3 * 64


def test_on_the_command_line(run: Any, state: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--runs", str(run.path.parent)]
    sort = ["--sort", "cosine", "--limit", "3", "--json"]
    assert exit_code(["runs", "diff", "r", *sort, *where]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"] == 63
    least = sorted(layer["cosine"] for layer in state["layers"].values())[:3]
    assert [tensor["cosine"] for tensor in found["tensors"]] == least
    assert exit_code(["runs", "diff", "r", "--find", "layers.3 down", *where]) == 0
    assert "layers.3.mlp.down_proj" in capsys.readouterr().out


def test_a_figure_that_there_is_not_is_refused(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code = exit_code(["runs", "diff", "r", "--sort", "luck", "--runs", str(Path(run.path).parent)])
    assert code == 2 and "sign_flips" in capsys.readouterr().err
