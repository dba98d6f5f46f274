"""Widths of experts as numbers and as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import ConfigError
from moesim.model.widths import checked_widths, parse_widths, short_text, width_text


@given(st.lists(st.integers(0, 9999), min_size=1, max_size=200).map(tuple))
def test_text_is_read_as_it_is_written(widths):
    assert parse_widths(width_text(widths)) == widths


def test_text_by_hand():
    assert width_text((256, 256, 0, 512)) == "2x256+1x0+1x512"
    assert parse_widths("2x256+1x0+1x512") == (256, 256, 0, 512)
    assert width_text(512) == 512


def test_a_name_stays_short_and_tells_widths_apart():
    many, other = tuple(range(64)), (*range(63), 62)
    assert short_text((256, 512)) == "1x256+1x512"
    assert short_text(many).startswith("0-63#")
    assert len(short_text(many)) < 20
    assert short_text(many) != short_text(other)


@pytest.mark.parametrize(
    "text",
    ["", "x", "4", "4x", "x4", "0x4", "4x4+", "4x-4", "4x4 + 4x8", "999999999x1", "4X4", "²x4"],
)
def test_wrong_text(text):
    with pytest.raises(ConfigError) as caught:
        parse_widths(text)
    assert str(caught.value) == (
        "expert_intermediate_size: expected a width or 'EXPERTSxWIDTH+EXPERTSxWIDTH' such as "
        f"'64x256+64x1024', got {text!r}"
    )


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        (0, ": expected an integer >= 1, got 0"),
        ("4x4", ": expected an integer >= 1, got '4x4'"),
        (2.5, ": expected an integer >= 1, got 2.5"),
        ((1, 2, 3), ": expected one width, or one for each of 4 experts, got 3"),
        ((1, 2, -3, 4), "[2]: expected an integer >= 0, got -3"),
        ((1, 2, True, 4), "[2]: expected an integer >= 0, got True"),
        ([0, 0, 0, 0], ": expected an expert that is not pruned, got 'width 0 for all'"),
    ],
)
def test_wrong_widths(widths, message):
    with pytest.raises(ConfigError) as caught:
        checked_widths(widths, 4)
    assert str(caught.value) == f"layer.expert_intermediate_size{message}"
