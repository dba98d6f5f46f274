"""Errors that tell a user, in one line, what to change.

Every error that moesim raises on purpose for a user is a `MoesimError`; the command line prints its
text and exits with code 2. Any other exception that escapes is a defect in moesim and keeps its
traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral


class MoesimError(ValueError):
    """Base class of all errors meant for a user. The text is one line and says what to change.

    Attributes:
        exit_code: The exit code of the command line.
    """

    exit_code = 2


class ConfigError(MoesimError):
    """A file or an argument breaks a rule. The text names the file, the key path, the rule and the
    value found instead.
    """


class UnknownNameError(ConfigError):
    """A name is not defined. The text lists the near matches.

    Args:
        what: The kind of thing that was looked up ("preset", "profile").
        name: The name that the user wrote.
        known: The names that exist.
    """

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = get_close_matches(name.lower(), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
        # who copies an error (processes, SimPy) makes it anew from its arguments
        super().__init__(what, name, tuple(names))
        self._text = f"unknown {what} {name!r}: {hint}"

    def __str__(self) -> str:
        return self._text


class CapacityError(MoesimError):
    """A model does not fit in memory. The text names the device and the GiB it lacks."""


class MeasurementError(MoesimError):
    """A measurement source cannot do what was asked. The text says why."""


class UnreachableError(MoesimError):
    """A server, such as a scheduler or a database, cannot be reached. The text holds its address
    without a password.
    """

    exit_code = 3


def require(condition: bool, where: str, rule: str, got: object) -> None:
    """Raise a one-line error unless a condition holds.

    Raises:
        ConfigError: The condition is false.
    """
    if not condition:
        raise ConfigError(f"{where}: expected {rule}, got {got!r}")


def require_int(where: str, value: object, low: int) -> None:
    """Raise an error unless the value is an integer >= ``low``; True and 2.0 do not count as
    integers.

    Raises:
        ConfigError: The value is not such an integer.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    require(whole and value >= low, where, f"an integer >= {low}", value)  # type: ignore[operator]
