"""Compare simulation with published figures: ``moesim validate published``.

The list ``hw_profiles/published/points.toml`` says what was published, where, and which simulation
corresponds to it. A point that the simulator does not cover says why, and counts as a miss if it is
scored.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from moesim.costs.comm.choose import ports_of
from moesim.costs.comm.kernels import comm_kernel
from moesim.costs.comm.work import Direction, Work
from moesim.design.candidate import Candidate, Parallelism, Workload
from moesim.design.schedule import Schedule
from moesim.engines.run import run
from moesim.files import toml
from moesim.files.texts import read_text
from moesim.files.toml import Source, Strict
from moesim.hardware import Cluster, load_cluster
from moesim.lowering.alltoall import exchange_program
from moesim.measured.offload_points import OffloadSetting, simulate_offload
from moesim.measured.train_points import TrainSetting, simulate_training_point
from moesim.measured.whole_points import WholeSetting, simulate_whole
from moesim.model import Gate, MoELayer
from moesim.model.precision import Precision
from moesim.simulation.prepare import prepare
from moesim.simulation.run import lower
from moesim.units import GB, US

#: sizes of the layer that the published exchanges serve: DeepSeek-V3's
HIDDEN, EXPERTS, TOP_K, WIDTH = 7168, 256, 8, 2048
#: number of groups a token may use; there are as many groups as nodes (DeepSeek-V3, arXiv
#: 2412.19437)
_LIMITED_NODES = 4
#: bytes per copy that DeepEP's published bandwidths count
_DEEPEP_BYTES = {"dispatch": 7392.0, "combine": 14336.0}
WITHIN = (10, 15, 20, 30)


class Point(Strict):
    """One published figure."""

    name: str
    source: str
    metric: Literal[
        "us",
        "gb_per_s",
        "rdma_gb_per_s",
        "bus_gb_per_s",
        "ratio",
        "tokens_per_s_per_node",
        "tokens_per_s_per_gpu",
        "examples_per_s",
        "tokens_per_s",
        "tpot_ms",
        "mfu_percent",
    ]
    value: float = Field(gt=0)
    scored: bool
    how: (
        Literal["exchange", "speed_up", "torus_gain", "all_reduce", "whole", "training", "offload"]
        | None
    ) = None
    reason: str = ""
    cluster: str = ""
    num_nodes: int = 1
    devices_per_node: int = 8
    exchange: str = ""
    direction: Literal["dispatch", "combine"] = "dispatch"
    tokens: int = 0
    num_sms: int | None = None
    note: str = ""
    token_format: str = ""
    num_bytes: float = 0.0
    whole: WholeSetting | None = None
    training: TrainSetting | None = None
    offload: OffloadSetting | None = None


class PointsFile(Strict):
    """The list of published figures."""

    sources: dict[str, Source]
    points: list[Point]


def load_points() -> PointsFile:
    """Load the shipped list."""
    path = toml.shipped("published", "points.toml")
    return toml.parse(read_text(path), PointsFile, path.name)


def compare() -> list[dict[str, object]]:
    """Return every point with what the simulator says.

    Returns:
        Rows: point, metric, published, simulated (None if not covered), error_percent, scored,
        whole_model, training, note, evidence, source.
    """
    file = load_points()
    rows: list[dict[str, object]] = []
    for point in file.points:
        simulated = _simulate(point) if point.how else None
        error = None if simulated is None else 100.0 * (simulated / point.value - 1.0)
        rows.append(
            {
                "point": point.name,
                "metric": point.metric,
                "published": point.value,
                "simulated": simulated,
                "error_percent": error,
                "scored": point.scored,
                "whole_model": point.how == "whole",
                "training": point.how == "training",
                "note": point.reason or point.note,
                "evidence": "" if simulated is None else "simulated",
                "source": file.sources[point.source].title,
            }
        )
    return rows


def summary(rows: list[dict[str, object]]) -> dict[str, float]:
    """Return the number of scored points, the percentages within 10 to 30 %, and the number
    off by more than 2x; a scored point that is not covered counts as a miss.
    """
    errors = [row["error_percent"] for row in rows if row["scored"]]
    known = np.array([e for e in errors if e is not None], dtype=np.float64)
    out = {"scored": float(len(errors)), "covered": float(len(known))}
    out |= {
        f"within_{limit}_percent": 100.0 * float((np.abs(known) <= limit).sum()) / len(errors)
        for limit in WITHIN
    }
    return out | {"off_by_more_than_2x": float(((known > 100.0) | (known < -50.0)).sum())}


def _simulate(point: Point) -> float:
    if point.how == "torus_gain":
        return _torus_gain()
    if point.how == "all_reduce":
        return _all_reduce(point)
    if point.how == "whole":
        assert point.whole is not None, "a point of a whole model states its setting"
        return simulate_whole(point.whole, point.cluster, point.metric)
    if point.how == "training":
        assert point.training is not None, "a point of training states its setting"
        where = (point.cluster, point.num_nodes, point.devices_per_node)
        return simulate_training_point(point.training, where, point.metric)
    if point.how == "offload":
        assert point.offload is not None, "a point of offloaded experts states its setting"
        return simulate_offload(point.offload, point.cluster)
    if point.how == "speed_up":
        plain = point.model_copy(update={"token_format": "bfloat16"})
        return _exchange_s(plain)[0] / _exchange_s(point)[0]
    seconds, copies, domains = _exchange_s(point)
    if point.metric == "us":
        return seconds / US
    counted = domains if point.metric == "rdma_gb_per_s" else copies
    size = HIDDEN * 2.0 if point.token_format == "bfloat16" else _DEEPEP_BYTES[point.direction]
    return counted * size / seconds / GB


def _exchange_s(point: Point) -> tuple[float, float, float]:
    """Return seconds, copies per device, and copies per device by domain of an exchange, by the
    flow engine.
    """
    cluster = load_cluster(point.cluster).with_(
        num_nodes=point.num_nodes, devices_per_node=point.devices_per_node
    )
    gate = Gate()
    if point.exchange == "deepep_normal" and point.num_nodes > 1:
        gate = Gate(
            kind="group_limited",
            num_expert_groups=point.num_nodes,
            num_limited_groups=min(point.num_nodes, _LIMITED_NODES),
        )
    precision = Precision.named("bf16" if point.token_format == "bfloat16" else "fp8")
    if point.token_format not in ("", "bfloat16"):
        precision = Precision(
            weights="bfloat16",
            activations="bfloat16",
            combine="bfloat16",
            dispatch={"mxfp8": "float8_e4m3"}.get(point.token_format, point.token_format),
        )
    layer = MoELayer(
        hidden_size=HIDDEN,
        expert_intermediate_size=WIDTH,
        num_experts=EXPERTS,
        top_k=TOP_K,
        gate=gate,
        precision=precision,
    )
    candidate = Candidate(
        layer=layer,
        parallelism=Parallelism(ep=cluster.num_devices),
        schedule=Schedule(exchange=point.exchange, num_comm_sms=point.num_sms),
    )
    workload = Workload(num_tokens_per_device=point.tokens)
    prepared = prepare(candidate, cluster, workload)
    program = lower(prepared)
    timeline = run(program, "flow")
    ops = program.phase_N == program.phase_names.index(point.direction)
    served = ops & (program.solo_s_N() > 0)
    traffic = prepared.traffic
    # a benchmark starts all devices together; here each starts its combine when its experts end
    taken_s = timeline.end_s_N[served] - timeline.start_s_N[served]
    return (
        float(taken_s.max()),
        traffic.num_copies / len(traffic.num_tokens_S),
        traffic.num_domain_copies / len(traffic.num_tokens_S),
    )


def _torus_gain() -> float:
    """Return the all-to-all time on the plain 4x4x8 torus over that on the twisted one, with one
    static route per pair, which is what route tables hold.
    """
    times = []
    for twisted in (False, True):
        cluster = load_cluster("tpu-v4-4x4x8").with_(twisted=twisted, routing="single_path")
        program = exchange_program(cluster, np.full((128, 128), 1e6))
        times.append(run(program, "flow").makespan_s)
    return times[0] / times[1]


def _all_reduce(point: Point) -> float:
    """Return the bus bandwidth of NCCL's all-reduce: 2 (R - 1) / R of the buffer over the time
    (nccl-tests' definition).
    """
    cluster: Cluster = load_cluster(point.cluster)
    direction: Direction = "dispatch"
    kernel = comm_kernel("nccl_all_reduce", ports_of(cluster), cluster.profile)
    ranks = cluster.num_devices
    # bytes of one pass, which is the kernel's unit: its efficiency accounts for both passes
    port = (ranks - 1) / ranks * point.num_bytes
    one = np.ones(1)
    price = kernel.price(
        direction,
        Work(
            tokens_D=one,
            copies_D=one,
            near_bytes_D=one * port,
            far_bytes_D=0.0 * one,
            hidden_size=1,
            top_k=1,
            num_experts=1,
            copy_bytes=1.0,
        ),
    )
    near_s = port * float(price.near_factor_D[0]) / cluster.link_bytes_per_s
    return 2.0 * port / (float(price.latency_s_D[0]) + near_s) / GB
