"""Simulate published figures of models whose experts lie in the memory of the host.

One token passes all MoE layers, each as long as one simulated layer: attention and the host's own
work are left out, so the rate is an upper bound where they matter.
"""

from pydantic import Field

from moesim.design.candidate import Candidate, Workload
from moesim.design.offload import Offload
from moesim.files.toml import Strict
from moesim.hardware import load_cluster
from moesim.model import Precision
from moesim.model.hf_config import load_model
from moesim.simulation.run import simulate


class OffloadSetting(Strict):
    """The setting of a published figure of a model with experts in the memory of the host."""

    model: str
    precision: str
    resident_fraction: float = Field(ge=0, le=1)
    prefetch_recall: float = Field(default=0.0, ge=0, le=1)
    routing: str = "uniform"


def simulate_offload(setting: OffloadSetting, cluster: str) -> float:
    """Return the tokens per second of one sequence on one device.

    Args:
        setting: The model, its formats, and which experts stay on the device.
        cluster: Name of the device.
    """
    model = load_model(setting.model).with_precision(Precision.named(setting.precision))
    candidate = Candidate(
        layer=model.layer,
        offload=Offload(
            resident_fraction=setting.resident_fraction, prefetch_recall=setting.prefetch_recall
        ),
    )
    work = Workload(num_tokens_per_device=1, phase="decode", routing=setting.routing)
    layer_s = simulate(candidate, load_cluster(cluster), work).layer_time_s
    return 1.0 / (model.dense_part.num_moe_layers * layer_s)
