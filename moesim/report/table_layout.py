"""Lay out a table so that it fits a width: which columns, how wide, and where their texts wrap.

Numbers are never broken, and texts wrap between words. Columns come in the order of their
importance: where there is no room for all of them, the last ones go.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

#: characters between two columns
GAP = 2
#: a word may break after these if nothing else makes it fit
_SOFT = re.compile(r"[^\s_/,;:+=\-]*[_/,;:+=\-]+|[^\s_/,;:+=\-]+")
#: a table keeps so many columns if breaking words at punctuation makes room for them
_LEAST = 3
_ELLIPSIS = "…"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextColumn:
    """A column of a table as text.

    Attributes:
        heading: Its heading.
        cells: Its cells from top to bottom.
        numeric: Whether the cells are numbers, which are aligned to the right.
    """

    heading: str
    cells: tuple[str, ...]
    numeric: bool

    def least(self, *, soft: bool) -> int:
        """Return the smallest width in characters.

        Args:
            soft: Whether words of texts may break after punctuation.
        """
        split = _soft if soft else str.split
        parts = self.cells if self.numeric else [w for cell in self.cells for w in split(cell)]
        return max(map(cell_len, [*parts, *_soft(self.heading), ""]))

    @property
    def natural(self) -> int:
        """The width in characters at which no cell wraps; the heading still may."""
        return max(map(cell_len, [*self.cells, *_soft(self.heading), ""]))


def column_widths(columns: Sequence[TextColumn], width: int) -> list[int]:
    """Return the widths of the first columns, as many as fit.

    Args:
        columns: The columns, the most important ones first; at least one.
        width: Room in characters.

    Returns:
        Widths in characters, at least one; a single column is as wide as there is room, and what
        does not fit in it is shortened.
    """
    least = _fitting([column.least(soft=False) for column in columns], width)
    if len(least) < min(_LEAST, len(columns)):
        soft = _fitting([column.least(soft=True) for column in columns], width)
        least = soft if len(soft) > len(least) or least[0] > width else least
    widths = [min(size, width) for size in least]
    left = width - sum(widths) - GAP * (len(widths) - 1)
    # what needs little gets it all, so that one long text wraps instead of many short ones
    for wanted in (lambda c: c.natural, lambda c: max(c.natural, cell_len(c.heading))):
        needs = [max(wanted(c) - w, 0) for c, w in zip(columns, widths, strict=False)]
        for place in sorted(range(len(widths)), key=needs.__getitem__):
            more = min(needs[place], left)
            widths[place] += more
            left -= more
    return widths


def wrapped(text: str, width: int) -> str:
    """Return a text in lines of a width, broken between words; a longer word breaks after
    punctuation, and is shortened in its middle if it still does not fit.
    """
    if cell_len(text) <= width:
        return text
    lines: list[str] = []
    for word in text.split():
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        elif cell_len(word) <= width:
            lines.append(word)
        else:
            lines += _broken(word, width)
    return "\n".join(lines)


def _broken(word: str, width: int) -> list[str]:
    lines = [""]
    for part in _soft(word):
        if cell_len(lines[-1]) + cell_len(part) > width and lines[-1]:
            lines.append("")
        lines[-1] += part if cell_len(part) <= width else _short(part, width)
    return lines


def _short(text: str, width: int) -> str:
    """Return a text without its middle."""
    room = max(width - 1, 0)
    front, back = _cut(text, room - room // 2), _cut(text[::-1], room // 2)[::-1]
    return front + _ELLIPSIS + back if width else ""


def _cut(text: str, width: int) -> str:
    """Return the beginning of a text that fits a width."""
    while cell_len(text) > width:
        text = text[:-1]
    return text


def _fitting(sizes: list[int], width: int) -> list[int]:
    """Return the first sizes that fit beside each other; at least one."""
    kept = sizes[:1]
    for size in sizes[1:]:
        if sum(kept) + size + GAP * len(kept) > width:
            break
        kept.append(size)
    return kept


def _soft(text: str) -> list[str]:
    return _SOFT.findall(text)


__all__ = ["GAP", "TextColumn", "column_widths", "wrapped"]
