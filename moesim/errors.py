"""What a user did wrong, said in one line.

Everything moesim raises on purpose for a user is a `MoesimError`; the command line prints its text
and exits with code 2. Anything else that escapes is a defect of ours and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches

import numpy as np


class MoesimError(ValueError):
    """Base of all errors meant for a user: the text is one line and says what to change.

    Attributes:
        exit_code: What the command line ends with.
    """

    exit_code = 2


class ConfigError(MoesimError):
    """A file or an argument breaks a rule: names the file, the key path, the rule and what came
    instead.
    """


class UnknownNameError(ConfigError):
    """A name nobody defined, with the near matches.

    Args:
        what: What kind of thing was looked for ("preset", "profile").
        name: What the user wrote.
        known: The names that exist.
    """

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = get_close_matches(name.lower(), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
        super().__init__(f"unknown {what} {name!r}: {hint}")


class CapacityError(MoesimError):
    """A model that does not fit: which device, and how many GiB over."""


class MeasurementError(MoesimError):
    """A measurement source cannot do what was asked here, and why."""


class UnreachableError(MoesimError):
    """A server that cannot be reached, such as a scheduler or a database: its address without a
    password.
    """

    exit_code = 3


def require(condition: bool, where: str, rule: str, got: object) -> None:
    """Refuse a value in one line.

    Raises:
        ConfigError: The condition does not hold.
    """
    if not condition:
        raise ConfigError(f"{where}: expected {rule}, got {got!r}")


def require_int(where: str, value: object, low: int) -> None:
    """Refuse what is not an integer of at least ``low``; True and 2.0 are none.

    Raises:
        ConfigError: In one line.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    require(whole and value >= low, where, f"an integer >= {low}", value)  # type: ignore[operator]
