"""What one pass through a block tells of its layers, against passes made for each question."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tritpress.events.context import NullContext
from tritpress.formats.huggingface import load_original
from tritpress.formats.source import open_source
from tritpress.nn.surgery import find_blocks
from tritpress.reference import reference_model_path
from tritpress.ternarize.blocks import BlockRunner, Stage

pytestmark = pytest.mark.usefixtures("one_thread")

LAST = "mlp.down_proj"


@pytest.fixture
def runner() -> BlockRunner:
    model = load_original(open_source(reference_model_path())).eval()
    windows = np.random.default_rng(0).integers(0, 500, (20, 256))  # three batches, the last one smaller
    return BlockRunner(model, find_blocks(model)[1], windows, NullContext())


def test_input_and_stream_of_one_pass_are_those_of_two(runner: BlockRunner) -> None:
    twin, block = runner.twin(0), runner.blocks[0]
    assert runner.stream_role(0, twin, LAST) == "output"
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(0.9)
    for original, of in ((False, block), (True, twin)):
        for batch, hidden in enumerate(runner.original_hidden if original else runner.hidden):
            found, stream = runner.input_and_stream(0, of, LAST, batch, original=original)
            assert torch.equal(found, runner.inputs(0, of, Stage([[LAST]]), hidden)[LAST])
            out, _, y = runner.around(0, of, LAST, hidden)
            assert torch.equal(stream, out - y)


def test_both_streams_go_on_as_without_the_outputs_kept(runner: BlockRunner) -> None:
    twin = runner.twin(0)
    expected = [runner._run(0, twin, hidden).detach() for hidden in runner.original_hidden]
    for batch in range(len(runner.hidden) - 1):  # of the last batch nothing is kept
        runner.input_and_stream(0, twin, LAST, batch, original=True)
    runner.advance(0, twin)
    assert all(map(torch.equal, runner.original_hidden, expected))
    assert all(map(torch.equal, runner.hidden, expected))
    second = runner.twin(1)
    expected = [runner._run(1, second, hidden).detach() for hidden in expected]
    runner.advance(1, second)  # and nothing is left over from the block before
    assert all(map(torch.equal, runner.original_hidden, expected))
