"""The file in which a person writes what is to be operated: ``moesim operate --plan FILE``.

A plan has a ``[job]`` (training), a ``[serving]`` or a ``[growth]``; see
``studies/operate_plan.toml``.
"""

from pathlib import Path

from pydantic import Field, model_validator

from moesim.design.training.plan import (
    KeptFormat,
    Optimizer,
    Pipeline,
    Recompute,
    StateFormat,
)
from moesim.files import toml
from moesim.files.toml import Strict
from moesim.operations.checkpoints import CheckpointKind
from moesim.operations.failure_rates import Scope
from moesim.operations.replication import CopyPlace

#: larger numbers are slips, and would overflow
_MOST = 10**9
_WHOLE = Field(default=None, ge=1, le=_MOST)


class SimulatedStep(Strict):
    """A training step that `moesim.simulation.training.simulate` times; keys as in
    ``moesim train``.
    """

    model: str
    cluster: str
    gpus: int | None = _WHOLE
    layout: str = ""
    formats: str = "bf16"
    framework: str = "megatron"
    global_batch: int = Field(ge=1)
    sequence: int = Field(default=4096, ge=1)
    micro_batch: int = Field(default=1, ge=1)
    pipeline: Pipeline = "1f1b"
    overlap_exchange: bool = False
    overlap_reduce: bool = True
    zero: int = Field(default=1, ge=0, le=3)
    shard_group: int | None = _WHOLE
    optimizer: Optimizer = "adamw"
    state_format: StateFormat = "float32"
    gradient_format: StateFormat = "float32"
    recompute: Recompute = "none"
    kept_format: KeptFormat = "bfloat16"
    offload: float = Field(default=0.0, ge=0, lt=1)
    uneven_stages: bool = False


class StatedStep(Strict):
    """A training step whose figures are known."""

    devices: int = Field(ge=1, le=_MOST)
    devices_per_node: int = Field(default=8, ge=1, le=_MOST)
    step_s: float = Field(ge=1e-6, le=_MOST)
    samples_per_step: int = Field(default=1, ge=1, le=_MOST)
    tokens_per_sample: float = Field(default=4096.0, gt=0)
    dense_state_gib: float = Field(default=0.0, ge=0)
    expert_state_gib: float = Field(default=0.0, ge=0)
    num_experts: int = Field(default=1, ge=1, le=_MOST)
    nic_gb_per_s: float = Field(default=50.0, gt=0)
    network_busy_fraction: float = Field(default=0.0, ge=0, lt=1)
    active_params: float | None = Field(default=None, gt=0)
    experts_over_top_k: float = Field(default=1.0, ge=1)


class JobRecord(Strict):
    """``[job]``: days of training, with either ``[job.simulated]`` or ``[job.stated]``."""

    days: float = Field(gt=0, le=100_000)
    devices_per_switch: int = Field(default=256, ge=1, le=_MOST)
    simulated: SimulatedStep | None = None
    stated: StatedStep | None = None

    @model_validator(mode="after")
    def _one(self) -> "JobRecord":
        if (self.simulated is None) == (self.stated is None):
            got = "neither" if self.simulated is None else "both"
            raise ValueError(f"@simulated@either job.simulated or job.stated@{got}")
        return self


class OwnCause(Strict):
    """A cause of the plan, which is added to the fleet's, or replaces one of its name."""

    scope: Scope
    per_device_hour: float = Field(default=0.0, ge=0)
    per_job_hour: float = Field(default=0.0, ge=0)
    planned: bool = False
    silent: bool = False
    slowdown: float = Field(default=1.0, ge=1)
    detection_s: float | None = Field(default=None, ge=0)
    repair_s: float | None = Field(default=None, ge=0)


class FailuresRecord(Strict):
    """``[failures]``: a published fleet, and causes of one's own."""

    fleet: str | None = None
    scale: float = Field(default=1.0, ge=0)
    causes: dict[str, OwnCause] = {}


class CheckpointRecord(Strict):
    """``[checkpoint]``; see `moesim.operations.checkpoints.CheckpointPolicy`."""

    kind: CheckpointKind = "full"
    interval_s: float = Field(default=1800.0, gt=0, le=_MOST)
    asynchronous: bool = False
    storage_gb_per_s: float = Field(default=1000.0, gt=0)
    host_gb_per_s: float = Field(default=25.0, gt=0)
    hidden_fraction: float = Field(default=0.0, ge=0, le=1)
    host_copies: bool = False
    block_s: float | None = Field(default=None, ge=0)
    expert_fraction: float = Field(default=0.125, ge=0.001, le=1)
    full_every: int = Field(default=8, ge=1, le=_MOST)
    changed_fraction: float = Field(default=0.5, gt=0, le=1)
    window_steps: int = Field(default=8, ge=1, le=_MOST)


class ReplicationRecord(Strict):
    """``[replication]``; see `moesim.operations.replication.ReplicationPolicy`."""

    degree: int = Field(default=0, ge=0, le=64)
    interval_steps: int = Field(default=10, ge=1, le=_MOST)
    where: CopyPlace = "node"
    failover_s: float = Field(default=30.0, ge=0)


class RecoveryRecord(Strict):
    """``[recovery]``; see `moesim.operations.recovery.RecoveryPolicy`."""

    detection_s: float = Field(default=60.0, ge=0)
    restart_s: float = Field(default=300.0, ge=0)
    repair_h: float = Field(default=4.0, ge=0)
    spare_nodes: int = Field(default=8, ge=0, le=_MOST)
    elastic: bool = False
    elastic_unit: int | None = _WHOLE
    rejoin_s: float = Field(default=60.0, ge=0)


class SearchRecord(Strict):
    """``[search]``: what ``--search`` chooses from."""

    checkpoint_interval_s: list[float] = Field(default=[300.0, 7200.0], min_length=2, max_length=2)
    replication_degree: list[int] = Field(default=[0, 1, 2], min_length=1)
    replication_interval_steps: list[int] = Field(default=[1, 256], min_length=2, max_length=2)
    spare_nodes: list[int] = Field(default=[0, 2, 4, 8, 16, 32], min_length=1)
    elastic: list[bool] = Field(default=[False, True], min_length=1)

    @model_validator(mode="after")
    def _ranges(self) -> "SearchRecord":
        for key in ("checkpoint_interval_s", "replication_interval_steps"):
            low, high = getattr(self, key)
            if not 0 < low <= high <= _MOST:
                rule = "[low, high] with 0 < low <= high <= 1e9"
                raise ValueError(f"@{key}@{rule}@[{low:g}, {high:g}]")
        for key in ("replication_degree", "spare_nodes"):
            if min(getattr(self, key)) < 0:
                raise ValueError(f"@{key}@numbers >= 0@{min(getattr(self, key))}")
        return self


class ServingRecord(Strict):
    """``[serving]``: days of a server with expert parallelism; see
    `moesim.operations.serving_pool.ServingPool`.
    """

    days: float = Field(gt=0, le=100_000)
    model: str
    cluster: str
    gpus: int | None = _WHOLE
    engine: str = "sglang"
    redundant_experts: int = Field(default=0, ge=0, le=_MOST)
    sequences_per_rank: float = Field(default=32.0, gt=0)
    context_tokens: float = Field(default=2048.0, ge=0)
    elastic: bool = True
    rebuild_s: float = Field(default=5.7, ge=0)
    restart_s: float = Field(default=150.0, ge=0)
    rejoin_s: float = Field(default=8.0, ge=0)
    repair_h: float = Field(default=4.0, ge=0)
    host_gb_per_s: float = Field(default=25.0, gt=0)


class StageRecord(Strict):
    """A stage of ``[growth]``; without a gate it has that of the stage before."""

    month: float = Field(ge=0)
    num_experts: int = Field(ge=1, le=10_000_000)
    upcycled: bool = True
    gate: str | None = None


class GrowthRecord(Strict):
    """``[growth]``: experts that are added to a running job or service; see
    `moesim.operations.growth.GrowthPlan`.
    """

    model: str
    cluster: str
    months: float = Field(gt=0, le=1200)
    tokens_per_month: float = Field(gt=0, le=1e18)
    training: bool = True
    expert_width: int | None = _WHOLE
    most_devices: int | None = _WHOLE
    sequence: int = Field(default=4096, ge=1)
    restart_s: float = Field(default=300.0, ge=0)
    storage_gb_per_s: float = Field(default=1000.0, gt=0)
    stages: list[StageRecord] = Field(min_length=1)


class PlanFile(Strict):
    """The content of a plan."""

    job: JobRecord | None = None
    serving: ServingRecord | None = None
    growth: GrowthRecord | None = None
    failures: FailuresRecord = FailuresRecord()
    checkpoint: CheckpointRecord = CheckpointRecord()
    replication: ReplicationRecord = ReplicationRecord()
    recovery: RecoveryRecord = RecoveryRecord()
    search: SearchRecord = SearchRecord()

    @model_validator(mode="after")
    def _one(self) -> "PlanFile":
        kinds = [name for name in ("job", "serving", "growth") if getattr(self, name) is not None]
        if len(kinds) != 1:
            got = " and ".join(kinds) or "none of them"
            raise ValueError(f"@job@one of [job], [serving] and [growth]@{got}")
        return self


def read_plan(path: Path) -> PlanFile:
    """Read a plan.

    Raises:
        ConfigError: The file cannot be read or breaks a rule.
    """
    return toml.parse(toml.read_text(path), PlanFile, path.name)
