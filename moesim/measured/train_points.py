"""Simulate published figures of training: tokens per second and device, or model FLOPs utilization.

Benchmarks balance the experts' load, so that routing is uniform.
"""

import math
from functools import lru_cache

from moesim.design.training.formats import train_formats
from moesim.design.training.layout import TrainLayout
from moesim.design.training.model import TrainedModel
from moesim.design.training.plan import (
    KeptFormat,
    Pipeline,
    Recompute,
    StateFormat,
    TrainingPlan,
)
from moesim.files.toml import Strict
from moesim.hardware import load_cluster
from moesim.hardware.frameworks import framework
from moesim.model.hf_config import load_model
from moesim.simulation.training.result import TrainResult
from moesim.simulation.training.simulate import simulate_training


class TrainSetting(Strict):
    """The setting of a published figure of training; see `moesim.design.training`. What a source
    does not state is assumed so that the run fits, and the point's note says so.
    """

    model: str
    layout: str
    formats: str
    sequence: int = 4096
    global_batch: int
    micro_batch: int = 1
    pipeline: Pipeline = "1f1b"
    overlap_exchange: bool = False
    recompute: Recompute = "none"
    gradient_format: StateFormat = "bfloat16"
    state_format: StateFormat = "float32"
    kept_format: KeptFormat = "bfloat16"
    exchange: str | None = None
    every_choice: bool = False
    framework: str = "megatron"
    fitted: bool = False

    def trained(self, num_devices: int) -> TrainedModel:
        """Return the design on so many devices."""
        model, formats = load_model(self.model), train_formats(self.formats)
        return TrainedModel(
            name=model.name,
            spec=model.spec,
            layout=TrainLayout.parse(self.layout, num_devices),
            plan=TrainingPlan(
                sequence=self.sequence,
                global_batch=self.global_batch,
                micro_batch=self.micro_batch,
                pipeline=self.pipeline,
                overlap_exchange=self.overlap_exchange,
                recompute=self.recompute,
                gradient_format=self.gradient_format,
                state_format=self.state_format,
                kept_format=self.kept_format,
            ),
            precision=formats.experts,
            dense_format=formats.dense,
            dispatch_format=formats.dispatch,
            exchange=self.exchange,
            every_choice=self.every_choice,
            uneven_stages=True,
        )


@lru_cache(maxsize=64)
def run_train_point(
    setting: TrainSetting, cluster_name: str, num_nodes: int, devices_per_node: int
) -> TrainResult:
    """Return the simulated step of a figure.

    Args:
        setting: The setting.
        cluster_name: The cluster.
        num_nodes: Number of its nodes that were used.
        devices_per_node: Devices of each that were used.
    """
    cluster = load_cluster(cluster_name).with_(
        num_nodes=num_nodes, devices_per_node=devices_per_node
    )
    trained = setting.trained(cluster.num_devices)
    return simulate_training(trained, cluster, framework_name=setting.framework)


def fitted_efficiency(rows: list[dict[str, object]], name: str = "megatron") -> float:
    """Return the efficiency of a framework: what its record has, times the geometric mean of
    published over simulated rates of the rows that may be fitted, which are those not scored.

    Args:
        rows: Rows of `moesim.measured.published.compare`.
        name: The framework, whose efficiency the simulated rates hold.
    """
    ratios = [
        float(str(row["published"])) / float(str(row["simulated"]))
        for row in rows
        if row["training"] and not row["scored"]
    ]
    mean = math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))
    return framework(name).efficiency * mean


def simulate_training_point(
    setting: TrainSetting, where: tuple[str, int, int], metric: str
) -> float:
    """Return what the simulator says of a figure.

    Args:
        setting: The setting.
        where: Cluster, nodes and devices of a node, see `run_train_point`.
        metric: ``tokens_per_s_per_gpu`` or ``mfu_percent``.
    """
    result = run_train_point(setting, *where)
    return 100.0 * result.mfu if metric == "mfu_percent" else result.tokens_per_s_per_device
