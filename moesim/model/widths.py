"""Widths of heterogeneous experts, as numbers and as text for a table or a database.

``"64x256+64x1024"`` means 64 experts of width 256, then 64 of width 1024; in ``"56x512+8x0"`` the
last eight are pruned.
"""

import hashlib
import re
from collections.abc import Iterable
from itertools import groupby

from moesim.errors import ConfigError, require, require_int, shown
from moesim.limits import MOST_EXPERTS, MOST_WIDTH

_WHERE = "layer.expert_intermediate_size"
_RUN = re.compile(r"([1-9]\d{0,8})x(\d{1,9})")
_SHORT = 40


def checked_widths(widths: object, num_experts: int) -> int | tuple[int, ...]:
    """Check and return one width >= 1 for all experts, or one width >= 0 per expert.

    Raises:
        ConfigError: The number of widths is not the number of experts, a width is not an integer >=
            0, or all experts are pruned.
    """
    if isinstance(widths, str | bytes) or not isinstance(widths, Iterable):
        require_int(_WHERE, widths, 1, MOST_WIDTH)
        return int(widths)  # type: ignore[call-overload]
    each = tuple(widths)
    if len(each) != num_experts:
        raise ConfigError(
            f"{_WHERE}: expected one width, or one for each of {num_experts} experts, got "
            f"{len(each)}"
        )
    for e, width in enumerate(each):
        require_int(f"{_WHERE}[{e}]", width, 0, MOST_WIDTH)
    require(any(each), _WHERE, "an expert that is not pruned", "width 0 for all")
    return tuple(int(width) for width in each)


def parse_widths(text: str) -> tuple[int, ...]:
    """Read a text such as ``"64x256+64x1024"``: runs of experts and their width.

    Raises:
        ConfigError: The text does not have that form.
    """
    runs = [_RUN.fullmatch(run) for run in text.split("+")]
    found = [(int(run[1]), int(run[2])) for run in runs if run is not None]
    if len(found) < len(runs) or sum(count for count, _ in found) > MOST_EXPERTS:
        raise ConfigError(
            "expert_intermediate_size: expected a width or 'EXPERTSxWIDTH+EXPERTSxWIDTH' such as "
            f"'64x256+64x1024', got {shown(text)}"
        )
    return tuple(width for count, width in found for _ in range(count))


def width_text(widths: int | Iterable[int]) -> int | str:
    """Return the text that `parse_widths` reads, or a single width unchanged."""
    if isinstance(widths, int):
        return widths
    return "+".join(f"{len(list(run))}x{width}" for width, run in groupby(widths))


def short_text(widths: int | Iterable[int]) -> str:
    """Return `width_text` for use in a name, or if that is long, the range of widths and a hash."""
    text = str(width_text(widths))
    if len(text) <= _SHORT:
        return text
    each = [int(run.partition("x")[2]) for run in text.split("+")]
    return f"{min(each)}-{max(each)}#{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def read_width(text: str) -> int | tuple[int, ...]:
    """Read widths from text: ``"512"``, or a text that `parse_widths` reads.

    Raises:
        ConfigError: The text is neither of these.
    """
    return int(text) if text.isascii() and text.isdigit() else parse_widths(text)
