"""What tuning foretells of a setting beside what a run by the tuned plan measures, on the reference model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tritpress.runs.tuning import Setting
from tuned_runs import tuned_runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SETTINGS = (Setting(threshold=0.2), Setting(sparsity=0.15), Setting(threshold=0.8))

TOLERANCE = 0.2
"""By which share of the measured rise of log perplexity the foretold one may be off."""


def test_a_foretold_perplexity_is_near_the_measured_one_and_in_its_order(tmp_path: Path) -> None:
    foretold, measured = {}, {}
    for tuned in tuned_runs(
        tmp_path, SETTINGS, method="gptq", planes=2, finetune=False, outputs="packed",
        calibration_tokens=16_384, evaluation_tokens=16_384,
    ):  # fmt: skip
        if tuned.setting is None:
            assert tuned.foretold.perplexity == pytest.approx(tuned.perplexity("packed"))
            continue
        words, before = tuned.setting.words, tuned.perplexity("before")
        assert tuned.foretold.zeros == pytest.approx(tuned.zeros, abs=0.005), words
        foretold[words] = math.log((tuned.foretold.perplexity or 0.0) / before)
        measured[words] = math.log(tuned.perplexity("packed") / before)
    assert sorted(foretold, key=foretold.__getitem__) == sorted(measured, key=measured.__getitem__)
    for words, rise in foretold.items():
        assert rise == pytest.approx(measured[words], rel=TOLERANCE), (words, foretold, measured)
