"""Read how a point of a space stores its experts: compressed, pruned, in the host's memory."""

from collections.abc import Mapping
from functools import lru_cache
from itertools import product
from typing import Any, Literal, Protocol, TypedDict

from moesim.design.offload import Offload
from moesim.model import Precision
from moesim.model.compression import Compression

#: the choice that keeps the format of the layer
SAME = "same"
#: the choice of the recall that the routing model predicts
ROUTING = "routing"


class Forms(TypedDict):
    """The fields of a design that say how experts are stored."""

    compression: Compression
    offload: Offload


class FormChoices(Protocol):
    """The choices of a space that say how experts are stored."""

    pruned_fraction: list[float]
    cold_fraction: list[float]
    cold_format: list[str]
    cold_rank_fraction: list[float]
    resident_fraction: list[float]
    prefetch_recall: list[float | Literal["routing"]]


#: the names of those choices
FORMS = tuple(FormChoices.__annotations__)


def check_forms(space: FormChoices) -> None:
    """Refuse choices that no design can have.

    Raises:
        ConfigError: A share is out of its range or a format is unknown.
    """
    for pruned in space.pruned_fraction:
        Compression(pruned_fraction=pruned)
    for fraction, fmt, rank in product(
        space.cold_fraction, space.cold_format, space.cold_rank_fraction
    ):
        if fraction and (fmt != SAME or rank):
            _compression(0.0, fraction, fmt, rank)
    for resident, recall in product(space.resident_fraction, space.prefetch_recall):
        _offload(resident, recall)


def possible_forms(space: FormChoices, precision: Precision) -> list[Forms]:
    """Return the ways of storing experts in a space, without fetching ahead.

    Args:
        space: The choices.
        precision: Formats of the layer, than which those of cold experts are narrower. If none is,
            the first is returned, which no design takes.
    """
    found = [
        Forms(
            compression=_compression(pruned, fraction, fmt, rank), offload=_offload(resident, 0.0)
        )
        for pruned, fraction, fmt, rank, resident in product(
            space.pruned_fraction,
            space.cold_fraction,
            space.cold_format,
            space.cold_rank_fraction,
            space.resident_fraction,
        )
        if not fraction or fmt != SAME or rank
    ]
    return [form for form in found if form["compression"].narrows(precision)] or found[:1]


def forms_of(point: Mapping[str, Any]) -> Forms:
    """Return the fields of the design at a point that names every parameter.

    Raises:
        ConfigError: Experts are cold without being compressed.
    """
    return Forms(
        compression=_compression(
            point["pruned_fraction"],
            point["cold_fraction"],
            point["cold_format"],
            point["cold_rank_fraction"],
        ),
        offload=_offload(point["resident_fraction"], point["prefetch_recall"]),
    )


def forms_without_effect(space: FormChoices, params: Mapping[str, Any]) -> set[str]:
    """Return the parameters that do not apply: what cold experts are where none is cold, and
    guesses where all experts are resident.
    """
    leave = set()
    if not params.get("cold_fraction", space.cold_fraction[0]):
        leave |= {"cold_format", "cold_rank_fraction"}
    if params.get("resident_fraction", space.resident_fraction[0]) == 1:
        leave.add("prefetch_recall")
    return leave


# a search builds the same few with every design
@lru_cache(maxsize=512)
def _compression(pruned: float, fraction: float, fmt: str, rank: float) -> Compression:
    return Compression(
        pruned_fraction=pruned,
        cold_fraction=fraction,
        cold_format=None if not fraction or fmt == SAME else fmt,
        cold_rank_fraction=rank if fraction and rank else None,
    )


@lru_cache(maxsize=512)
def _offload(resident: float, recall: float | str) -> Offload:
    asked = None if isinstance(recall, str) else recall
    return Offload(resident_fraction=resident, prefetch_recall=asked if resident < 1 else 0.0)
