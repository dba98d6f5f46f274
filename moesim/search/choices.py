"""Read lists of choices as people write them: explicit lists, or ranges."""

import math
import re
from functools import lru_cache
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from moesim.design.candidate import Parallelism
from moesim.errors import ConfigError
from moesim.model.widths import checked_widths, parse_widths, width_text

T = TypeVar("T")
#: maximum number of choices of a range; more is taken for a typing error
_MOST = 4096


def width_choice(value: object) -> object:
    """Return one width unchanged, and the widths of all experts (text or a list) as text.

    Raises:
        ValueError: The value is neither.
    """
    if isinstance(value, list | tuple):
        value = width_text(checked_widths(value, len(value)))
    if isinstance(value, str):
        return width_text(parse_widths(value))
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(
            f"expected an integer, a list of them or text such as '64x256+64x1024', got {value!r}"
        )
    return value


def expanded(value: Any) -> Any:
    """Return a range as the list of its numbers, and anything else unchanged.

    Args:
        value: A range such as ``{low = 8, high = 64, step = 8}``, or with ``factor = 2`` instead of
            a step, both ends included; or any other value.

    Raises:
        ValueError: The range has another form, or more than 4,096 numbers.
    """
    if not isinstance(value, dict):
        return value
    keys = set(value)
    if keys not in ({"low", "high", "step"}, {"low", "high", "factor"}):
        raise ValueError(
            "expected a list, or low, high and one of step and factor, got "
            f"{', '.join(sorted(keys))}"
        )
    low, high = value["low"], value["high"]
    by = value["step"] if "step" in keys else value["factor"]
    if not all(
        isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n)
        for n in (low, high, by)
    ):
        raise ValueError(f"expected numbers, got {value!r}")
    if low > high or by <= (0 if "step" in keys else 1) or ("factor" in keys and low <= 0):
        raise ValueError(
            f"expected low <= high, and a step > 0 or a factor > 1 from a low > 0, got {value!r}"
        )
    found: list[int | float] = []
    now = low
    while now <= high * (1 + 1e-12):
        found.append(round(now) if isinstance(low, int) else now)
        now = now + by if "step" in keys else now * by
        if len(found) > _MOST:
            raise ValueError(f"expected a range of at most {_MOST} numbers, got {value!r}")
    return list(dict.fromkeys(found))


def without_repeats(values: list) -> list:
    """Return a list unchanged if nothing comes twice in it.

    Raises:
        ValueError: A choice comes twice.
    """
    # a storage takes 1, 1.0 and True for one choice
    seen: dict[Any, Any] = {}
    for value in values:
        if value in seen:
            raise ValueError(f"expected each choice once, got {value!r} twice")
        seen[value] = value
    return values


#: a list of choices, which may be written as a range
Choices = Annotated[list[T], BeforeValidator(expanded), AfterValidator(without_repeats)]
#: the same with at least one
Some = Annotated[Choices[T], Field(min_length=1)]


def parse_parallelism(text: str, num_devices: int | None = None) -> Parallelism:
    """Read a layout such as ``ep8``, ``ep4tp2`` or ``tp2``.

    ``tp2`` means that two devices share each expert, with as many ranks as the cluster then has.

    Args:
        text: The layout.
        num_devices: Number of devices of the cluster, if known.

    Raises:
        ConfigError: The text has another form, or tp does not divide the devices.
    """
    match = re.fullmatch(r"ep(\d+)(?:tp(\d+))?|tp([1-9]\d*)", text, re.ASCII)
    if match is None:
        raise ConfigError(
            f"parallelism: expected 'epN', 'epNtpM' or 'tpM' such as 'ep4tp2', got {text!r}"
        )
    if match[3] is None:
        return Parallelism(ep=int(match[1]), tp=int(match[2] or 1))
    tp = int(match[3])
    if num_devices is None:
        return Parallelism(tp=tp)
    if num_devices % tp:
        raise ConfigError(
            f"parallelism: expected tp to divide the cluster's {num_devices} devices, got {text!r}"
        )
    return Parallelism(ep=num_devices // tp, tp=tp)


@lru_cache(maxsize=512)
def one_rank(text: str) -> bool:
    """Return whether a layout has one expert-parallel rank on any cluster."""
    return text.startswith("ep") and parse_parallelism(text).ep == 1
