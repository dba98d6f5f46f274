"""Try a pool of devices that computes prompts beside one that decodes.

Candidates that decode are the best layouts that leave devices over; those that compute prompts are
the ones with most prompt tokens per second and device. Devices are divided 1:3, 1:1 and 3:1 between
them, as nearly as whole copies allow.
"""

from dataclasses import replace

from moesim.advice.clients import Tried
from moesim.design.served import ServedModel
from moesim.serving.split import copies_of_ratio
from moesim.serving.whole import WholeResult

#: layouts that decode, and that compute prompts, of those tried
_DECODING, _PROMPTS = 3, 2
#: ratios of devices that compute prompts to those that decode
_RATIOS = ("1:3", "1:1", "3:1")
#: prompt tokens of a step by which designs are compared
_TOKENS = 8192


def try_divided(search: Tried) -> None:
    """Estimate pairs of pools of the designs that a search has tried."""
    devices = search.task.cluster.num_devices
    small = _best_of_layouts(search, devices - 1)
    least = min((found.served.layout.num_devices for found in small), default=devices)
    decoding = [one for one in small if one.served.layout.num_devices + least <= devices]
    prompts = sorted((one.served for one in small), key=lambda one: _prompt_s(search, one))
    for near in decoding[:_DECODING]:
        decode = near.served
        fitting = [
            replace(one, engine=decode.engine)
            for one in prompts
            if one.layout.num_devices + decode.layout.num_devices <= devices
        ]
        for prefill in fitting[:_PROMPTS]:
            # the same copies may be the nearest to several ratios
            for copies in dict.fromkeys(
                copies_of_ratio(ratio, prefill, decode, search.task.cluster) for ratio in _RATIOS
            ):
                search.try_divided(prefill, decode, copies, near)


def _best_of_layouts(search: Tried, most: int) -> list[WholeResult]:
    """Return the best result of every layout of at most so many devices, best first: those within
    the limits, or all should there be none.
    """
    best: dict[str, WholeResult] = {}
    for found in sorted(search.kept or search.tried, key=search.worth, reverse=True):
        if found.served.layout.num_devices <= most:
            best.setdefault(str(found.served.layout), found)
    return list(best.values())


def _prompt_s(search: Tried, served: ServedModel) -> float:
    """Return the device-seconds of a prompt token."""
    step_s = search.table(served).step_s(
        prefill_tokens=_TOKENS, prefill_context=_TOKENS / 2.0, sequences=0, context=0.0
    )
    return step_s * served.layout.num_devices / (_TOKENS * served.layout.dp)


__all__ = ["try_divided"]
