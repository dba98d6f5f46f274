"""Set up pools of servers: how many copies of a design a pool holds, and how each is configured.

The memory that weights leave decides how many KV blocks there are, the serving engine's record how
prompts are cut and mixed. A pipeline of several stages runs as many batches at once: it is as many
servers, each of which takes the time of all stages and has its part of the cache.
"""

from dataclasses import dataclass

from moesim.costs.steps.memory import DeviceMemory, memory_on
from moesim.design.served import ServedModel
from moesim.design.step import ExpertLoad
from moesim.errors import CapacityError, require_int
from moesim.hardware import Cluster
from moesim.serving.loop import RequestTraffic, ServerConfig, Speculation
from moesim.simulation.steps.simulate import UNEVEN
from moesim.simulation.steps.times import StepTable
from moesim.units import GIB

#: relative error of decode steps that are jumped over
_TOLERANCE = 5e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingKnobs:
    """What a person may set instead of the engine's defaults.

    Attributes:
        chunk: The most prompt tokens of a step; None for the engine's.
        max_seqs: The most sequences of an attention rank; None for the engine's.
        kv_blocks: KV blocks of an attention rank; None for those that fit beside the weights.
        prefill_interval: Decode steps between two steps with prompt tokens.
        acceptance: Probability that each drafted token is accepted; empty for no drafts.

    Raises:
        ConfigError: A number is out of range.
    """

    chunk: int | None = None
    max_seqs: int | None = None
    kv_blocks: int | None = None
    prefill_interval: int = 0
    acceptance: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("chunk", "max_seqs", "kv_blocks"):
            if (value := getattr(self, name)) is not None:
                require_int(f"server.{name}", value, 1)
        require_int("server.prefill_interval", self.prefill_interval, 0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServedPool:
    """Equal servers of one design.

    Attributes:
        served: The design.
        cluster: The devices of all of them.
        table: Times of the design's steps.
        config: What each server is configured with.
        memory: Memory of a device.
    """

    served: ServedModel
    cluster: Cluster
    table: StepTable
    config: ServerConfig
    memory: DeviceMemory

    @property
    def copies(self) -> int:
        """The number of copies of the model."""
        return self.config.replicas // self.served.layout.pp

    @property
    def devices(self) -> int:
        """The number of devices that copies use."""
        return self.copies * self.served.layout.num_devices


def pool_of(
    served: ServedModel,
    cluster: Cluster,
    traffic: RequestTraffic,
    *,
    knobs: ServingKnobs | None = None,
    load: ExpertLoad = UNEVEN,
    table: StepTable | None = None,
) -> ServedPool:
    """Return as many servers of a design as a cluster holds.

    Args:
        served: The design.
        cluster: The devices.
        traffic: The requests; the clients of a closed loop bound how many sequences keep a state.
        knobs: What is not left to the engine.
        load: How tokens choose experts.
        table: Times of the design's steps, if another run has made some.

    Raises:
        CapacityError: The weights do not fit, or leave no room for a KV cache.
        ConfigError: The layout does not fit the cluster.
    """
    knobs = knobs or ServingKnobs()
    table = table or StepTable(served, cluster, load=load)
    engine, batches = table.engine, served.layout.pp
    chunk, max_seqs = knobs.chunk or engine.chunk, knobs.max_seqs or engine.max_seqs
    memory = memory_on(served, cluster.profile, step_tokens=chunk + max_seqs)
    memory.check(served.name, f"{cluster.name} as {served.layout}")
    states = max_seqs
    if traffic.concurrency is not None:
        states = min(max_seqs, -(-traffic.concurrency // served.layout.dp))
    blocks = knobs.kv_blocks or memory.kv_blocks(engine.block_size, states)
    if blocks < 1:
        raise CapacityError(
            f"{served.name} as {served.layout}: expected room for a KV cache beside weights of "
            f"{(memory.experts_bytes + memory.dense_bytes) / GIB:.1f} GiB in "
            f"{memory.usable_bytes / GIB:.1f} usable, got {memory.left_bytes / GIB:.1f} GiB"
        )
    config = ServerConfig(
        kv_blocks=max(blocks // batches, 1),
        block_size=engine.block_size,
        replicas=max(cluster.num_devices // served.layout.num_devices, 1) * batches,
        dp=served.layout.dp,
        chunk=chunk,
        max_seqs=-(-max_seqs // batches),
        prefill_interval=knobs.prefill_interval,
        mixed=engine.mixed,
        receive_s=engine.receive_s,
        intake_s=engine.intake_s,
        speculation=Speculation(acceptance=knobs.acceptance) if knobs.acceptance else None,
        tolerance=_TOLERANCE,
    )
    return ServedPool(served=served, cluster=cluster, table=table, config=config, memory=memory)
