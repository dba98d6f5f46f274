"""Read a strategy and its number from text: ``eplb``, ``random:7``, ``local_search:200``,
``eplb_hierarchical/nearest``.
"""

import math
import re
from dataclasses import dataclass

from moesim.errors import ConfigError, UnknownNameError

#: strategy -> (meaning of its number, its default, whether it is an integer); None if it takes no
#: number
NUMBERS: dict[str, tuple[str, float, bool] | None] = {
    "contiguous": None,
    "round_robin": None,
    "random": ("SEED", 0, True),
    "balanced": None,
    "eplb": None,
    "eplb_hierarchical": ("GROUPS", 0, True),
    "hierarchical": None,
    "affinity": ("TOLERANCE", 0.05, False),
    "domain": ("TOLERANCE", 0.05, False),
    "local_search": ("STEPS", 200, True),
    "exact": ("SECONDS", 60, False),
}
STRATEGIES = tuple(NUMBERS)
#: strategies that place copies of experts
REPLICATING = (
    "eplb",
    "eplb_hierarchical",
    "hierarchical",
    "affinity",
    "domain",
    "local_search",
    "exact",
)
#: strategies that use which choices occur together in a token, or which sources they come from
OF_ROUTING = ("affinity", "domain", "local_search")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementSpec:
    """A strategy, its number, and the way replicas share tokens.

    Attributes:
        strategy: A name in `STRATEGIES`.
        number: The seed, steps, groups, tolerance or seconds; the default if the text has none.
        nearest: Whether tokens prefer the replicas of their own node; otherwise the replicas of an
            expert take turns.
    """

    strategy: str
    number: float = 0.0
    nearest: bool = False

    @classmethod
    def parse(cls, text: str) -> "PlacementSpec":
        """Read the text of a placement.

        Raises:
            UnknownNameError: The strategy is unknown.
            ConfigError: The number cannot be read, or the strategy takes no number.
        """
        body, _, how = text.partition("/")
        name, colon, written = body.partition(":")
        if name not in NUMBERS:
            raise UnknownNameError("placement", name, STRATEGIES)
        if "/" in text and how != "nearest":
            raise ConfigError(f"placement: expected 'nearest' after the '/', got {text!r}")
        takes = NUMBERS[name]
        if takes is None:
            if colon:
                raise ConfigError(f"placement: {name} takes no number, got {text!r}")
            return cls(strategy=name, nearest=bool(how))
        what, number, whole = takes
        if colon:
            form = r"\d{1,9}" if whole else r"\d{1,9}(\.\d{1,9})?"
            number = float(written) if re.fullmatch(form, written, re.ASCII) else math.nan
            if math.isnan(number):
                raise ConfigError(
                    f"placement: expected '{name}' or '{name}:{what}' with "
                    f"{'an integer' if whole else 'a number'} >= 0, got {text!r}"
                )
        return cls(strategy=name, number=number, nearest=bool(how))
