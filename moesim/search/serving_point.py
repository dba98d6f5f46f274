"""What a point of a search over whole models stands for."""

from dataclasses import dataclass

from moesim.design.served import ServedModel
from moesim.search.forms import FORMS
from moesim.serving.pools import ServingKnobs
from moesim.serving.split import COLOCATED

#: parameters that decide the times of steps
DESIGN = (
    "engine",
    "layout",
    "placement",
    "redundant_per_rank",
    "exchange",
    "num_micro_batches",
    "precision",
    "dense_format",
    "kernel_library",
    *FORMS,
    "kv_format",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPoint:
    """What a point stands for.

    Attributes:
        served: The design.
        knobs: What is set of the engine.
        concurrency: Number of clients.
        pools: ``colocated``, or the ratio of devices that compute prompts to those that decode.
        prefill: The design that computes prompts, if other devices do than those that decode.
    """

    served: ServedModel
    knobs: ServingKnobs
    concurrency: int
    pools: str = COLOCATED
    prefill: ServedModel | None = None


__all__ = ["DESIGN", "ServingPoint"]
