"""Serve a whole model on a cluster: TTFT, TPOT, throughput, memory, energy and cost.

The step engine says how long steps take, the serving engine's record what its host adds and how it
schedules, the memory left by the weights how many KV blocks there are, and the request loop makes
latencies of them. Copies of the model fill the cluster, and share the requests. A pipeline of
several stages runs as many batches at once: it is as many servers, each of which takes the time of
all stages and has its part of the cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

from moesim.costs.steps.memory import DeviceMemory, memory_on
from moesim.design.served import ServedModel
from moesim.design.step import ExpertLoad, Step
from moesim.errors import CapacityError, require_int
from moesim.hardware import Cluster
from moesim.hardware.economics import Economics
from moesim.hardware.serving_engines import ServingEngine
from moesim.serving.loop import RequestTraffic, ServerConfig, ServingResult, Speculation, serve
from moesim.simulation.steps.simulate import UNEVEN, StepResult, simulate_step
from moesim.simulation.steps.times import StepTable
from moesim.simulation.trust import basis_digest
from moesim.units import GIB, MS
from moesim.version import VERSION

#: factor either way of a TTFT whose engine was never scored (assumed)
_UNSCORED_TTFT = 2.0


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


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeResult:
    """A whole model that served requests.

    Attributes:
        served: The design.
        cluster: The hardware.
        traffic: The requests.
        engine: The serving engine.
        config: The servers.
        loop: What the request loop gave.
        memory: Memory of a device.
        decode: A usual decode step: what takes its time, and what that rests on.
        prefill: A usual step of a prompt.
        tpot: P10 and P90 of measured over simulated TPOT.
        ttft: P10 and P90 of measured over simulated TTFT.
        steps_simulated: Number of steps that were simulated.
    """

    served: ServedModel
    cluster: Cluster
    traffic: RequestTraffic
    engine: ServingEngine
    config: ServerConfig
    loop: ServingResult
    memory: DeviceMemory
    decode: StepResult
    prefill: StepResult
    tpot: tuple[float, float]
    ttft: tuple[float, float]
    steps_simulated: int

    @property
    def copies(self) -> int:
        """The number of copies of the model."""
        return self.config.replicas // self.served.layout.pp

    def row(self, economics: Economics | None = None) -> dict[str, object]:
        """Return one flat row for a CSV file, with units in the column names.

        Args:
            economics: Power and prices; None leaves energy and cost empty.
        """
        found = self.loop.row()
        devices = self.copies * self.served.layout.num_devices
        output = float(str(found["output_tokens_per_s"]))
        tpot, ttft = float(str(found["tpot_mean_ms"])), float(str(found["ttft_mean_ms"]))
        joules = usd = None
        if economics is not None and output:
            share = devices / self.cluster.num_devices
            if economics.unknown_power(self.cluster) is None:
                watts = economics.watts(self.cluster, self.decode.mean_utilisation) * share
                joules = float(watts) / output * 1e6
            if economics.unknown_price(self.cluster) is None:
                usd = economics.usd_per_hour(self.cluster) * share / 3600.0 / output * 1e6
        return {
            "model": self.served.name,
            "cluster": self.cluster.name,
            "layout": str(self.served.layout),
            "copies": self.copies,
            "devices": devices,
            "serving_engine": self.engine.name,
            "precision": self.served.precision.name,
            "dense_format": self.served.dense_format,
            "kv_format": self.served.kv_format,
            "placement": self.served.placement,
            "num_replicas": self.served.num_replicas,
            "schedule": str(self.served.schedule),
            "isl": self.traffic.isl,
            "osl": self.traffic.osl,
            **found,
            "tpot_low_ms": tpot * self.tpot[0],
            "tpot_high_ms": tpot * self.tpot[1],
            "ttft_low_ms": ttft * self.ttft[0],
            "ttft_high_ms": ttft * self.ttft[1],
            "output_tokens_per_s_per_device": output / devices,
            "output_tokens_per_s_per_user": 1e3 / tpot if tpot else None,
            "joules_per_million_tokens": joules,
            "usd_per_million_tokens": usd,
            "weights_gib": (self.memory.experts_bytes + self.memory.dense_bytes) / GIB,
            "kv_blocks": self.config.kv_blocks,
            "kv_tokens": self.config.kv_blocks * self.config.block_size,
            "decode_step_ms": self.decode.time_s / MS,
            "prefill_step_ms": self.prefill.time_s / MS,
            "limited_by": max(self.decode.phase_time_s, key=self.decode.phase_time_s.__getitem__),
            "kernels": self.decode.kernels,
            "evidence": "simulated",
            "grade": max(
                self.decode.grades[name].letter
                for name, seconds in self.decode.phase_time_s.items()
                if name in self.decode.grades and seconds >= 0.1 * self.decode.time_s
            ),
            "seed": self.traffic.seed,
            "version": VERSION,
            "profile_hash": basis_digest(self.cluster),
        }


def serve_model(
    served: ServedModel,
    cluster: Cluster,
    traffic: RequestTraffic,
    *,
    knobs: ServingKnobs | None = None,
    load: ExpertLoad = UNEVEN,
    table: StepTable | None = None,
) -> WholeResult:
    """Serve requests with as many copies of a model as the cluster holds.

    Args:
        served: The design.
        cluster: The hardware.
        traffic: The requests, which the copies share.
        knobs: What is not left to the engine.
        load: How tokens choose experts.
        table: Times of the design's steps, if another run has made some.

    Raises:
        CapacityError: The weights do not fit, or leave no room for a single request.
        ConfigError: The layout does not fit the cluster, or a setting is invalid.
    """
    knobs = knobs or ServingKnobs()
    table = table or StepTable(served, cluster, load=load)
    engine = table.engine
    chunk = knobs.chunk or engine.chunk
    max_seqs = knobs.max_seqs or engine.max_seqs
    memory = memory_on(served, cluster.profile, step_tokens=chunk + max_seqs)
    memory.check(served.name, f"{cluster.name} as {served.layout}")
    batches = served.layout.pp
    blocks = _kv_blocks(served, memory, engine, max_seqs, traffic, knobs.kv_blocks)
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
        speculation=Speculation(acceptance=knobs.acceptance) if knobs.acceptance else None,
        tolerance=5e-3,
    )
    loop = serve(table, config, traffic)
    batch = max(float(str(loop.row()["mean_batch"])), 1.0)
    count = len(loop.requests)
    isl, osl = (sum(getattr(r, name) for r in loop.requests) / count for name in ("isl", "osl"))
    drafts = config.draft_length + 1
    decode = simulate_step(
        served,
        cluster,
        Step(sequences=batch, context=isl + osl / 2.0, tokens_per_sequence=drafts),
        load=load,
    )
    prefill = simulate_step(
        served,
        cluster,
        Step(prefills=1.0, new_tokens=min(isl, chunk)),
        load=load,
    )
    return WholeResult(
        served=served,
        cluster=cluster,
        traffic=traffic,
        engine=engine,
        config=config,
        loop=loop,
        memory=memory,
        decode=decode,
        prefill=prefill,
        tpot=_interval(decode, engine, "tpot"),
        ttft=_interval(prefill, engine, "ttft"),
        steps_simulated=table.simulated,
    )


def _kv_blocks(
    served: ServedModel,
    memory: DeviceMemory,
    engine: ServingEngine,
    max_seqs: int,
    traffic: RequestTraffic,
    given: int | None,
) -> int:
    """Return the KV blocks of an attention rank.

    Raises:
        CapacityError: There is not even one.
    """
    if given is not None:
        return given
    concurrent = max_seqs
    if traffic.concurrency is not None:
        concurrent = min(max_seqs, -(-traffic.concurrency // served.layout.dp))
    blocks = memory.kv_blocks(engine.block_size, concurrent)
    if blocks < 1:
        raise CapacityError(
            f"{served.name} as {served.layout}: expected room for a KV cache beside weights of "
            f"{(memory.experts_bytes + memory.dense_bytes) / GIB:.1f} GiB in "
            f"{memory.usable_bytes / GIB:.1f} usable, got {memory.left_bytes / GIB:.1f} GiB"
        )
    return blocks


def _interval(step: StepResult, engine: ServingEngine, what: str) -> tuple[float, float]:
    """Return the P10 and P90 of measured / simulated: the wider of what the step's prices and what
    the engine's scored rows say, on each side.
    """
    low, high = step.low_s / step.time_s, step.high_s / step.time_s
    scored = engine.interval(what)
    if scored is None:
        scored = (1.0, 1.0) if what == "tpot" else (1.0 / _UNSCORED_TTFT, _UNSCORED_TTFT)
    return exp(min(log(low), log(scored[0]))), exp(max(log(high), log(scored[1])))


def front_of(rows: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """Return the rows that no other beats in output tokens per second both of a device and of a
    user, the fastest for a device first.

    Args:
        rows: Rows of `WholeResult.row`.
    """

    def rates(row: dict[str, object]) -> tuple[float, float]:
        names = ("output_tokens_per_s_per_device", "output_tokens_per_s_per_user")
        device, user = (float(str(row[name] or 0.0)) for name in names)
        return device, user

    found: list[dict[str, object]] = []
    for row in sorted(rows, key=rates, reverse=True):
        if not found or rates(row)[1] > rates(found[-1])[1]:
            found.append(row)
    return found
