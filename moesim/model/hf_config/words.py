"""The words that name what a layer has, and the checks that all spellings of layers share."""

from collections.abc import Callable, Iterator
from typing import Any

from moesim.model.hf_config.keys import Keys

#: words for a mixer
FULL, WINDOW, LINEAR, NONE = "full", "window", "linear", "none"
SPARSE, COMPRESSED_4, COMPRESSED_128 = "sparse", "compressed_4", "compressed_128"
#: words for a feed-forward
MOE, DENSE, HASH_MOE = "moe", "dense", "hash_moe"
#: what spellings give: the keys of each, and its word for every layer
Answers = Iterator[tuple[str, list[str]]]


def check_numbers(keys: Keys, name: str, numbers: Any, low: int, high: int) -> None:
    """Check that a value is a list of layer numbers in a range.

    Raises:
        ConfigError: It is not.
    """
    good = isinstance(numbers, list) and all(
        isinstance(n, int) and low <= n <= high for n in numbers
    )
    keys.require(good, name, f"a list of layer numbers from {low} to {high}", numbers)


def check_inside(keys: Keys, name: str, offset: int, period: int) -> None:
    """Check that an offset lies inside its period.

    Raises:
        ConfigError: It does not.
    """
    keys.require(offset < period, name, f"less than the period {period}", offset)


def where(count: int, holds: Callable[[int], bool], yes: str, no: str) -> list[str]:
    """Return one of two words for every layer, by whether a rule holds for its number."""
    return [yes if holds(i) else no for i in range(count)]
