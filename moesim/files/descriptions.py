"""Say in our words what pydantic finds wrong with a file, a line for each error."""

from collections.abc import Iterable

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from moesim.errors import shown

#: errors of a file that are told one by one
MOST_LINES = 20
#: keys of a number with its source
_QUANTITY = ("value", "kind", "source", "low", "high", "min", "median", "repeats")
_RULES = {
    "extra_forbidden": "no such key (remove it or check its spelling)",
    "missing": "a value",
    "int_type": "an integer",
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "too_short": "a list with at least one entry",
    "string_too_short": "a string that is not empty",
}
_NUMBER = ("float_type", "finite_number")
_SIGNS = {
    "greater_than": ">",
    "greater_than_equal": ">=",
    "less_than": "<",
    "less_than_equal": "<=",
}


def _rule(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    kind = error["type"]
    if kind in _SIGNS:
        return f"a number {_SIGNS[kind]} {next(iter(context.values())):g}"
    if kind in _NUMBER:
        # a quantity is always > 0, but pydantic reports the wrong type before the violated bound
        return "a number > 0" if error["loc"][-1] in _QUANTITY else "a number"
    if kind == "literal_error":
        return f"one of {context['expected']}".replace("'", "")
    return _RULES.get(kind, error["msg"])


def _path(loc: Iterable[int | str]) -> str:
    return "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc
    ).removeprefix(".")


def describe(error: ValidationError, where: str) -> str:
    """Return one line about the first error in a file (a missing or wrong value comes before an
    unknown key).
    """
    return describe_all(error, where)[0]


def describe_all(error: ValidationError, where: str) -> list[str]:
    """Return a line for each error in a file, unknown keys last."""
    # a misspelled key causes both a missing and an unknown key: the missing one says more
    problems = sorted(error.errors(), key=lambda e: e["type"] == "extra_forbidden")
    return [line for problem in problems for line in _lines(problem, where)]


def _lines(problem: ErrorDetails, where: str) -> list[str]:
    path = _path(problem["loc"])
    if problem["type"] == "value_error":
        text = str(problem["ctx"]["error"])
        # a validator packs path, rule and value into its text, since pydantic passes on only a text
        if text.startswith("@"):
            packed = (line.split("@", 3)[1:] for line in text.splitlines())
            return [
                f"{where}: {'.'.join(part for part in (path, inner) if part)}: expected {rule}, "
                f"got {got}"
                for inner, rule, got in packed
            ]
        return [f"{where}: {path + ': ' if path else ''}{text}"]
    expected = _rule(problem)
    if problem["type"] == "extra_forbidden":
        return [f"{where}: {path}: {expected}"]
    got = "nothing" if problem["type"] == "missing" else shown(problem["input"])
    return [f"{where}: {path}: expected {expected}, got {got}"]
