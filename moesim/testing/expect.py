"""Compare values for the checks of this package, and say which rule is broken."""

from typing import Any

import numpy as np


def expect(condition: Any, rule: str, got: Any = None) -> None:
    """Raise unless a rule holds.

    Args:
        condition: Whether it holds.
        rule: The rule, as text that follows ``expected``.
        got: The value that came instead.

    Raises:
        AssertionError: The rule does not hold.
    """
    if not condition:
        raise AssertionError(f"expected {rule}" + ("" if got is None else f", got {got!r}"))


def expect_close(
    found: Any, wanted: Any, rule: str, *, rel: float = 1e-12, abs_: float = 0.0
) -> None:
    """Raise unless two arrays of numbers are equal within a tolerance.

    Args:
        found: The numbers of the implementation.
        wanted: The numbers that they should be.
        rule: Description of what is compared, as text that follows ``expected``.
        rel: Relative tolerance.
        abs_: Absolute tolerance.

    Raises:
        AssertionError: The shapes differ, or a number is further off than both tolerances.
    """
    one, other = (np.asarray(values, dtype=np.float64) for values in (found, wanted))
    expect(one.shape == other.shape, f"{rule} of shape {other.shape}", one.shape)
    off = ~np.isclose(one, other, rtol=rel, atol=abs_)
    if off.any():
        where = tuple(int(i) for i in np.unravel_index(np.flatnonzero(off)[0], off.shape))
        at = f" at {where}" if where else ""
        raise AssertionError(
            f"expected {rule}{at} to be {float(other[where]):.12g}, got {float(one[where]):.12g}"
        )
