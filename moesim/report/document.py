"""What a command prints: text for people, or one JSON document with the same facts.

Commands print through `moesim.report.terminal` and `moesim.report.answer`. Inside `showing` these
either write text, in more or less detail, or collect everything for one document, which is printed
at the end. So a command says what it found once, whoever reads it.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """How output is shown.

    Attributes:
        details: Whether all rows, columns and remarks are printed.
        document: The JSON document so far; None if text is printed.
    """

    details: bool = False
    document: dict[str, Any] | None = field(default=None)


_SHOWN: ContextVar[Shown | None] = ContextVar("shown", default=None)
_TEXT = Shown()


def shown() -> Shown:
    """Return how output is shown at the moment."""
    return _SHOWN.get() or _TEXT


@contextmanager
def showing(*, details: bool = False, as_json: bool = False) -> Iterator[None]:
    """Set how output is shown; with JSON, print the document at the end unless an error comes up.

    Args:
        details: Whether to print everything.
        as_json: Whether to collect one document instead of text. It has the keys that commands
            `record`, ``tables`` (each with ``title`` and ``rows``), ``lines`` (text that stands in
            no table) and ``answer``.
    """
    document: dict[str, Any] | None = {} if as_json else None
    token = _SHOWN.set(Shown(details=details, document=document))
    try:
        yield
    finally:
        _SHOWN.reset(token)
    if document is not None:
        print(json.dumps(plain(document), ensure_ascii=False, allow_nan=False))


def record(facts: Mapping[str, Any]) -> bool:
    """Add facts to the JSON document under their names.

    Returns:
        Whether there is a document, so that a command need not print the facts as text.
    """
    document = shown().document
    if document is None:
        return False
    document.update(facts)
    return True


def collect(kind: str, entry: Any) -> bool:
    """Append an entry to a list of the JSON document.

    Args:
        kind: Key of the list, such as ``tables``.
        entry: The entry.

    Returns:
        Whether there is a document.
    """
    document = shown().document
    if document is None:
        return False
    document.setdefault(kind, []).append(entry)
    return True


def plain(value: Any) -> Any:
    """Return a value as JSON has it: numbers of numpy become Python's, and those that are not
    finite become null.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, str | bool) or value is None:
        return value
    if isinstance(value, Sequence | set | frozenset):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # an array, or a number of numpy
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value
    return str(value)


__all__ = ["Shown", "collect", "plain", "record", "showing", "shown"]
