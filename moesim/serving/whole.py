"""Serve a whole model on a cluster: TTFT, TPOT, throughput, memory, energy and cost.

The step engine says how long steps take, the serving engine's record what its host adds and how it
schedules (`moesim.serving.pools`), and the request loop makes latencies of them. Copies of the
model fill the cluster, and share the requests. Or one pool of devices computes the prompts and
another decodes, with designs of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

from moesim.design.served import ServedModel
from moesim.design.step import ExpertLoad, Step
from moesim.errors import ConfigError, require_int
from moesim.hardware import Cluster
from moesim.hardware.economics import Economics
from moesim.hardware.serving_engines import ServingEngine
from moesim.hardware.sizing import sized
from moesim.serving.loop import (
    DisaggregatedConfig,
    KvTransfer,
    RequestTraffic,
    ServerConfig,
    ServingResult,
    serve,
    serve_disaggregated,
)
from moesim.serving.pools import ServedPool, ServingKnobs, pool_of
from moesim.serving.steady import SteadyResult
from moesim.simulation.steps.simulate import UNEVEN, StepResult, simulate_step
from moesim.simulation.steps.times import StepTable
from moesim.simulation.trust import basis_digest
from moesim.units import GIB, MS
from moesim.version import VERSION

#: factor either way of a TTFT whose engine was never scored (assumed)
_UNSCORED_TTFT = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeResult:
    """A whole model that served requests.

    Attributes:
        cluster: The hardware.
        traffic: The requests.
        pools: The servers: one pool, or one that computes prompts and one that decodes.
        loop: What the request loop gave, or its steady state in closed form.
        decode: A usual decode step: what takes its time, and what that rests on.
        prefill: A usual step of a prompt.
    """

    cluster: Cluster
    traffic: RequestTraffic
    pools: tuple[ServedPool, ...]
    loop: ServingResult | SteadyResult
    decode: StepResult
    prefill: StepResult

    @property
    def served(self) -> ServedModel:
        """The design that decodes."""
        return self.pools[-1].served

    @property
    def engine(self) -> ServingEngine:
        """The serving engine."""
        return self.pools[-1].table.engine

    @property
    def config(self) -> ServerConfig:
        """The servers that decode."""
        return self.pools[-1].config

    @property
    def copies(self) -> int:
        """The number of copies of the model that decode."""
        return self.pools[-1].copies

    @property
    def devices(self) -> int:
        """The number of devices that serve."""
        return sum(pool.devices for pool in self.pools)

    @property
    def tpot(self) -> tuple[float, float]:
        """P10 and P90 of measured over simulated TPOT."""
        return _interval(self.decode, self.engine, "tpot")

    @property
    def ttft(self) -> tuple[float, float]:
        """P10 and P90 of measured over simulated TTFT."""
        return _interval(self.prefill, self.engine, "ttft")

    def watts(self, economics: Economics) -> float:
        """Return the power of the devices that serve, hosts and cooling included.

        Raises:
            ConfigError: The rated power of a device is unknown.
        """
        steps = (self.prefill, self.decode)[-len(self.pools) :]
        return sum(
            float(economics.watts(self.cluster, step.mean_utilisation))
            * pool.devices
            / self.cluster.num_devices
            for pool, step in zip(self.pools, steps, strict=True)
        )

    def row(self, economics: Economics | None = None) -> dict[str, object]:
        """Return one flat row for a CSV file, with units in the column names.

        Args:
            economics: Power and prices; None leaves energy and cost empty.
        """
        found = self.loop.row()
        devices, before, memory = self.devices, self.pools[0], self.pools[-1].memory
        output = float(str(found["output_tokens_per_s"]))
        tpot, ttft = float(str(found["tpot_mean_ms"])), float(str(found["ttft_mean_ms"]))
        joules = usd = None
        if economics is not None and output:
            if economics.unknown_power(self.cluster) is None:
                joules = self.watts(economics) / output * 1e6
            if economics.unknown_price(self.cluster) is None:
                share = devices / self.cluster.num_devices
                usd = economics.usd_per_hour(self.cluster) * share / 3600.0 / output * 1e6
        return {
            "model": self.served.name,
            "cluster": self.cluster.name,
            "layout": str(self.served.layout),
            "copies": self.copies,
            "prefill_layout": str(before.served.layout) if len(self.pools) > 1 else None,
            "prefill_copies": before.copies if len(self.pools) > 1 else None,
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
            "weights_gib": (memory.experts_bytes + memory.dense_bytes) / GIB,
            "kv_blocks": self.config.kv_blocks,
            "kv_tokens": self.config.kv_blocks * self.config.block_size,
            "decode_step_ms": self.decode.time_s / MS,
            "prefill_step_ms": self.prefill.time_s / MS,
            "limited_by": max(self.decode.phase_time_s, key=self.decode.phase_time_s.__getitem__),
            "kernels": self.decode.kernels,
            "requests_by": "request loop" if self.loop.requests else "steady state",
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
    pool = pool_of(served, cluster, traffic, knobs=knobs, load=load, table=table)
    loop = serve(pool.table, pool.config, traffic)
    return _result(cluster, traffic, (pool,), loop, load)


def serve_split(
    prefill: ServedModel,
    decode: ServedModel,
    cluster: Cluster,
    traffic: RequestTraffic,
    *,
    prefill_copies: int = 1,
    knobs: ServingKnobs | None = None,
    load: ExpertLoad = UNEVEN,
) -> WholeResult:
    """Serve requests with one pool of devices that computes prompts and one that decodes
    (prefill-decode disaggregation).

    The cache of a prompt travels from the devices of its attention rank to those of another, over
    their NICs, or over the links of a domain that holds both pools.

    Args:
        prefill: The design that computes prompts.
        decode: The design that decodes, with as many copies as the other devices hold.
        cluster: The hardware that both share.
        traffic: The requests.
        prefill_copies: Number of copies that compute prompts.
        knobs: What is not left to the engine.
        load: How tokens choose experts.

    Raises:
        CapacityError: The weights do not fit, or leave no room for a single request.
        ConfigError: The pools do not fit the cluster, or a setting is invalid.
    """
    require_int("prefill_copies", prefill_copies, 1)
    used = prefill_copies * prefill.layout.num_devices
    rest = cluster.num_devices - used
    if rest < decode.layout.num_devices:
        raise ConfigError(
            f"layout: expected {decode.layout.num_devices} devices to decode as {decode.layout} "
            f"beside {used} that compute prompts, got {max(rest, 0)} of {cluster.name}"
        )
    rest -= rest % decode.layout.num_devices
    pools = tuple(
        pool_of(design, sized(cluster, devices), traffic, knobs=knobs, load=load)
        for design, devices in ((prefill, used), (decode, rest))
    )
    near = cluster.num_devices <= cluster.devices_per_domain
    each = cluster.link_bytes_per_s if near else cluster.nic_bytes_per_s
    shared = min(prefill.layout.tp, decode.layout.tp)
    transfer = KvTransfer(
        latency_s=cluster.hop_s,
        # of each of the devices that share a rank's heads
        bytes_per_token=pools[-1].memory.kv_bytes_per_token * decode.layout.pp,
        bytes_per_s=each * shared / decode.layout.tp,
    )
    loop = serve_disaggregated(
        pools[0].table,
        pools[1].table,
        DisaggregatedConfig(prefill=pools[0].config, decode=pools[1].config, transfer_s=transfer),
        traffic,
    )
    return _result(cluster, traffic, pools, loop, load)


def _result(
    cluster: Cluster,
    traffic: RequestTraffic,
    pools: tuple[ServedPool, ...],
    loop: ServingResult,
    load: ExpertLoad,
) -> WholeResult:
    before, after = pools[0], pools[-1]
    batch = max(float(str(loop.row()["mean_batch"])), 1.0)
    count = len(loop.requests)
    isl, osl = (sum(getattr(r, name) for r in loop.requests) / count for name in ("isl", "osl"))
    drafts = after.config.draft_length + 1
    decoding = Step(sequences=batch, context=isl + osl / 2.0, tokens_per_sequence=drafts)
    prompt = Step(prefills=1.0, new_tokens=min(isl, before.config.chunk))
    return WholeResult(
        cluster=cluster,
        traffic=traffic,
        pools=pools,
        loop=loop,
        decode=simulate_step(after.served, after.cluster, decoding, load=load),
        prefill=simulate_step(before.served, before.cluster, prompt, load=load),
    )


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
