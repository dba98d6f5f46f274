"""Say what planning a placement takes, and refuse it before it begins.

The times are those of one core, measured on 128 to 16,384 experts and 8 to 64 ranks.

Shape legend: E experts, P slots, W ranks.
"""

from moesim.limits import check_request
from moesim.placement.spec import PlacementSpec

#: microseconds of a slot that is packed
_PACKED_US = 5.0
#: microseconds of a change that is tried, and of each pair of slots that it compares
_TRIED_US, _PAIR_US = 100.0, 0.025
#: microseconds of each expert and rank that attract a slot
_ATTRACTED_US = 0.04
#: changes that level a placement by attraction
_LEVELLED = 50
#: bytes of a pair of slots whose swap is considered
_PAIR_BYTES = 40.0
#: tolerances at which a search begins from attraction
_STARTS = 2


def check_work(spec: PlacementSpec, num_experts: int, num_ranks: int, num_replicas: int) -> None:
    """Refuse a plan that would take too long, or more memory than there is.

    Args:
        spec: The strategy, with its number.
        num_experts: Number of experts E.
        num_ranks: Number of ranks W.
        num_replicas: Number of slots beyond E.

    Raises:
        CapacityError: It would; the message has the figure and the limit.
    """
    slots = float(num_experts + num_replicas)
    searches = spec.strategy == "local_search"
    pairs = slots / num_ranks * (slots - slots / num_ranks)
    compares = searches or spec.strategy in ("affinity", "domain")
    attraction = slots * num_experts * num_ranks * _ATTRACTED_US
    work_us = slots * _PACKED_US
    if compares:
        tried = spec.number if searches else _LEVELLED
        work_us += (_STARTS if searches else 1) * attraction
        work_us += tried * (_TRIED_US + pairs * _PAIR_US)
    check_request(
        f"placement: {spec.strategy} of {num_experts:,} experts and {num_replicas:,} replicas on "
        f"{num_ranks:,} ranks",
        memory_bytes=_PAIR_BYTES * pairs if compares else 0.0,
        work_us=work_us,
        advice="eplb plans as many without a search",
    )
