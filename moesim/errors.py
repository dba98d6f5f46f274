"""Errors that tell a user, in one line, what to change.

Every error that moesim raises on purpose for a user is a `MoesimError`; the command line prints its
text and exits with code 2. Any other exception that escapes is a defect in moesim and keeps its
traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral

#: characters of a value, and of a whole error, that a person still reads
_VALUE_CHARACTERS, _LINE_CHARACTERS = 120, 300


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
        near = get_close_matches(name[:100].lower(), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
        # who copies an error (processes, SimPy) makes it anew from its arguments
        super().__init__(what, name, tuple(names))
        self._text = f"unknown {what} {shown(name)}: {hint}"

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


class WriteRefusedError(ConfigError):
    """The system takes no more of a file: a full disk, a quota, a limit, a device that fails, or a
    folder that went away meanwhile. The text names the file; the arguments were right.
    """

    exit_code = 3


def shown(value: object) -> str:
    """Return a value as an error shows it: on one line, without control characters, and cut."""
    if isinstance(value, int) and not -(1 << 256) < value < 1 << 256:
        # Python refuses to print integers of thousands of digits
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, BaseException):
        text = printable(str(value))
    elif isinstance(value, list | tuple | dict | set) and len(value) > _VALUE_CHARACTERS:
        return f"a {type(value).__name__} of {len(value)}"
    else:
        try:
            text = repr(value[: 2 * _VALUE_CHARACTERS] if isinstance(value, str) else value)
        except (RecursionError, ValueError):  # too deep, or a huge integer within
            return f"a {type(value).__name__}"
        text = printable(text)
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[:_VALUE_CHARACTERS]}..."


def printable(text: str) -> str:
    """Return a text in which a terminal finds no commands: control characters are escaped.

    Those are all that Unicode calls control, format (which reverses the direction of text),
    surrogate or line and paragraph separator.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """Return the text of an error as one printable line; its middle is left out where it is long.

    The beginning names the place, the end says what is expected.
    """
    line = printable(text)
    if len(line) <= _LINE_CHARACTERS:
        return line
    kept = (_LINE_CHARACTERS - 5) // 2
    return f"{line[:kept]} ... {line[-kept:]}"


def require(condition: bool, where: str, rule: str, got: object) -> None:
    """Raise a one-line error unless a condition holds.

    Raises:
        ConfigError: The condition is false.
    """
    if not condition:
        raise ConfigError(f"{where}: expected {rule}, got {shown(got)}")


def require_int(where: str, value: object, low: int, most: int | None = None) -> None:
    """Raise an error unless the value is an integer from ``low`` to ``most``; True and 2.0 do not
    count as integers.

    Args:
        where: What the value belongs to.
        value: The value.
        low: The least value.
        most: The greatest value; by default that of 64 bits, since arrays hold no larger ones.
            Owners of a size state the most that memory and time allow, before anything is made.

    Raises:
        ConfigError: The value is not such an integer.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    require(whole and value >= low, where, f"an integer >= {low}", value)  # type: ignore[operator]
    if most is None:
        require(value < 1 << 63, where, "an integer of 64 bits", value)  # type: ignore[operator]
    else:
        require(value <= most, where, f"an integer <= {most}", value)  # type: ignore[operator]
