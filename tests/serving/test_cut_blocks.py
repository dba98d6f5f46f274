"""Layouts that cut the blocks of fp8 experts, which engines refuse to load."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from moesim import load_cluster, load_preset
from moesim.cli.root import app
from moesim.design.served import ServedModel
from moesim.design.step import Layout
from moesim.model import Precision
from moesim.serving.layouts import engine_layouts, layouts_of

SERVE = (
    *("serve", "--model", "qwen3-30b-a3b", "--cluster", "hgx-h100-8", "--precision", "fp8"),
    *("--isl", "64", "--osl", "4", "--concurrency", "2", "--num-requests", "4"),
)


@pytest.fixture
def served():
    """Experts of 768 neurons: six blocks."""
    model = load_preset("qwen3-30b-a3b")
    return ServedModel(name=model.name, spec=model.spec, precision=Precision.named("fp8"))


def test_they_are_not_tried_where_others_are(served):
    cluster = load_cluster("hgx-h100-8")
    tried = {design.layout for design in layouts_of(served, cluster)}
    assert tried
    assert all(768 // layout.moe_tp % 128 == 0 for layout in tried)
    assert any(layout.moe_tp == 4 for layout in engine_layouts(cluster))


def test_only_engines_that_are_known_to_refuse_them(served):
    cut = replace(served, layout=Layout.parse("tp4 moe_tp4"))
    assert cut.cut_block.endswith("tp 2 divides it")
    assert not replace(cut, engine="trtllm").cut_block
    assert not replace(cut, precision=Precision.named("bf16")).cut_block


@pytest.mark.parametrize(("layout", "said"), [("tp4 moe_tp4", True), ("tp2 moe_tp2", False)])
def test_a_layout_that_is_asked_for_is_priced_with_a_word(layout, said):
    done = CliRunner().invoke(app, [*SERVE, "--layout", layout])
    assert done.exit_code == 0, done.output
    assert ("note: experts of 768 over tp 4 are 192 wide" in done.output) == said
