"""Layouts are read from short texts, and both halves of a model use the same devices."""

import pytest

from moesim.design.step import Layout, Step
from moesim.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "degrees"),
    [
        ("tp8", (8, 1, 1, 8, 1)),
        ("tp8 ep8", (8, 1, 8, 1, 1)),
        ("dp64 ep64", (1, 64, 64, 1, 1)),
        ("ep4", (1, 4, 4, 1, 1)),
        ("tp2 dp4 ep8", (2, 4, 8, 1, 1)),
        ("tp4 ep2", (4, 1, 2, 2, 1)),
        ("tp4 pp2", (4, 1, 1, 4, 2)),
        ("dp2,moe_tp2", (1, 2, 1, 2, 1)),
    ],
)
def test_a_text_says_what_is_left_out(text, degrees):
    layout = Layout.parse(text)
    assert (layout.tp, layout.dp, layout.ep, layout.moe_tp, layout.pp) == degrees
    assert Layout.parse(str(layout)) == layout
    assert layout.num_devices == layout.tp * layout.dp * layout.pp


@pytest.mark.parametrize("text", ["tp", "tp0", "xp4", "tp2 tp4", "tp4 ep3", "tp8 ep2 moe_tp2", ""])
def test_a_text_that_is_none_is_one_line(text):
    if not text:  # one device
        assert Layout.parse(text) == Layout()
        return
    with pytest.raises(ConfigError, match="layout"):
        Layout.parse(text)


def test_a_step_has_tokens():
    step = Step(prefills=2, new_tokens=512, sequences=3, context=100, tokens_per_sequence=2)
    assert (step.prefill_tokens, step.decode_tokens, step.tokens) == (1024, 6, 1030)
    with pytest.raises(ConfigError, match="at least one token"):
        Step()
    with pytest.raises(ConfigError, match=r"step\.context"):
        Step(sequences=1, context=-1)
