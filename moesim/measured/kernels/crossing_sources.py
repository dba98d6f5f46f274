"""Say what a fit crosses where it predicts cells of which it saw nothing."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from moesim.measured.kernels.crossing_costs import Event, Key
from moesim.measured.kernels.residuals import FEWEST

Array = np.ndarray
#: log(measured / predicted) by cell
Errors = dict[Key, Array]


@dataclass(frozen=True, kw_only=True)
class FittedCells:
    """What was fitted.

    Attributes:
        name: In words.
        devices: Names of device profiles.
        formats: Formats of the rows.
        eps: ``ep1``, ``epn`` or both.
        versions: Versions of the library.
    """

    name: str
    devices: frozenset[str]
    formats: frozenset[str]
    eps: frozenset[str]
    versions: frozenset[str]

    @classmethod
    def of(cls, name: str, keys: Iterable[Key]) -> "FittedCells":
        """Describe a fit to rows of these cells."""
        known = list(keys)
        return cls(
            name=name,
            devices=frozenset(k.device for k in known),
            formats=frozenset(k.format for k in known),
            eps=frozenset(k.ep for k in known),
            versions=frozenset(k.version for k in known),
        )

    def crosses(self, key: Key) -> tuple[str, ...]:
        """Return what a prediction of the cell crosses. Devices that may be fitted differ in
        generation; a version is counted only if nothing else is crossed.
        """
        found = []
        if key.device not in self.devices:
            found.append("generation")
        if key.format not in self.formats:
            found.append("format")
        if key.ep not in self.eps:
            found.append(key.ep)
        if not found and key.version not in self.versions:
            found.append("version")
        return tuple(found)


def events_of(source: FittedCells, errors: Errors, home: Errors) -> list[Event]:
    """Return the events of a fit.

    Args:
        source: What was fitted.
        errors: Log errors of its predictions, by cell.
        home: Log errors of fits that saw all but the row's shape; other cells are no events.
    """
    return [
        Event.of(key, source.name, crossed, error_N, home[key])
        for key, error_N in errors.items()
        if (crossed := source.crosses(key)) and len(error_N) >= FEWEST and key in home
    ]
