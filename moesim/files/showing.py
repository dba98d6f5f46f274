"""Show objects to people who work in Python: short texts, tables in notebooks, data frames."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from html import escape
from typing import TYPE_CHECKING, Any

from moesim.errors import printable

if TYPE_CHECKING:
    import pandas as pd


def changed(value: Any) -> str:
    """Return the call that makes an instance of a dataclass, without the arguments that have their
    default.

    Args:
        value: The instance.
    """
    given = []
    for one in fields(value):
        there = getattr(value, one.name)
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        if one.init and (default is MISSING or there != default):
            given.append(f"{one.name}={there!r}")
    return f"{type(value).__name__}({', '.join(given)})"


class Showable:
    """Give a class a text of one line, and a table in notebooks, both of the same facts."""

    __slots__ = ()

    def facts(self) -> Mapping[str, str]:
        """Return what to show: names of facts and their texts, the most important first."""
        raise NotImplementedError

    def __repr__(self) -> str:
        # the first facts say what it is; a line has room for four
        said = list(self.facts().items())[:4]
        return f"<{type(self).__name__} {printable(', '.join(f'{k} {v}' for k, v in said))}>"

    def _repr_html_(self) -> str:
        """Return a table of the facts, for notebooks."""
        lines = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th>"
            f"<td style='text-align:left'>{escape(str(text))}</td></tr>"
            for name, text in self.facts().items()
        )
        return f"<table><caption>{type(self).__name__}</caption>{lines}</table>"


class OneRow(Showable):
    """A result that is one row of a table, and can be shown."""

    __slots__ = ()

    def row(self) -> Mapping[str, Any]:
        """Return one flat row for a CSV file, with units in the column names."""
        raise NotImplementedError

    def to_frame(self) -> "pd.DataFrame":
        """Return `row` as a pandas DataFrame."""
        return frame([self.row()])


def frame(rows: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    """Return flat rows as a pandas DataFrame, with nothing where a row has no value."""
    import pandas as pd

    return pd.DataFrame([dict(row) for row in rows])


__all__ = ["OneRow", "Showable", "changed", "frame"]
