"""Widths of experts that differ: as numbers, and as text that a table or a storage can hold.

``"64x256+64x1024"`` is 64 experts of width 256, then 64 of width 1024; ``"56x512+8x0"`` has its
last eight pruned.
"""

import hashlib
import re
from collections.abc import Iterable
from itertools import groupby

from moesim.errors import ConfigError, require, require_int

_WHERE = "layer.expert_intermediate_size"
_RUN = re.compile(r"([1-9]\d{0,8})x(\d{1,9})")
#: experts in all: text must not ask for more memory than any layer needs
_MOST = 1 << 24
_SHORT = 40


def checked_widths(widths: object, num_experts: int) -> int | tuple[int, ...]:
    """One width >= 1, or one >= 0 for each expert.

    Raises:
        ConfigError: Another number of widths, one that is no integer >= 0, or all experts pruned.
    """
    if isinstance(widths, str | bytes) or not isinstance(widths, Iterable):
        require_int(_WHERE, widths, 1)
        return int(widths)  # type: ignore[call-overload]
    each = tuple(widths)
    if len(each) != num_experts:
        raise ConfigError(
            f"{_WHERE}: expected one width, or one for each of {num_experts} experts, got "
            f"{len(each)}"
        )
    for e, width in enumerate(each):
        require_int(f"{_WHERE}[{e}]", width, 0)
    require(any(each), _WHERE, "an expert that is not pruned", "width 0 for all")
    return tuple(int(width) for width in each)


def parse_widths(text: str) -> tuple[int, ...]:
    """Read ``"64x256+64x1024"``: runs of experts and their width.

    Raises:
        ConfigError: Not of that form.
    """
    runs = [_RUN.fullmatch(run) for run in text.split("+")]
    found = [(int(run[1]), int(run[2])) for run in runs if run is not None]
    if len(found) < len(runs) or sum(count for count, _ in found) > _MOST:
        raise ConfigError(
            "expert_intermediate_size: expected a width or 'EXPERTSxWIDTH+EXPERTSxWIDTH' such as "
            f"'64x256+64x1024', got {text!r}"
        )
    return tuple(width for count, width in found for _ in range(count))


def width_text(widths: int | Iterable[int]) -> int | str:
    """The text `parse_widths` reads; one width as it is."""
    if isinstance(widths, int):
        return widths
    return "+".join(f"{len(list(run))}x{width}" for width, run in groupby(widths))


def short_text(widths: int | Iterable[int]) -> str:
    """`width_text`, or if that is long, its range and a hash, for a name."""
    text = str(width_text(widths))
    if len(text) <= _SHORT:
        return text
    each = [int(run.partition("x")[2]) for run in text.split("+")]
    return f"{min(each)}-{max(each)}#{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def read_width(text: str) -> int | tuple[int, ...]:
    """A width as text: ``"512"``, or what `parse_widths` reads.

    Raises:
        ConfigError: Neither.
    """
    return int(text) if text.isascii() and text.isdigit() else parse_widths(text)
