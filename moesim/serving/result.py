"""A whole model that served requests: its rates, latencies, energy and cost, with intervals."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import exp, log

from moesim.design.served import ServedModel
from moesim.files.showing import OneRow
from moesim.hardware import Cluster
from moesim.hardware.economics import Economics
from moesim.hardware.serving_engines import ServingEngine
from moesim.quality.compressed import compression_delta
from moesim.serving.loop import RequestTraffic, ServerConfig, ServingResult
from moesim.serving.pools import ServedPool
from moesim.serving.steady_result import SteadyResult
from moesim.simulation.steps.simulate import StepResult
from moesim.simulation.trust import basis_digest
from moesim.units import GIB, MS
from moesim.version import VERSION

#: columns of a row, in order
WHOLE_COLUMNS = (
    "model",
    "cluster",
    "layout",
    "copies",
    "prefill_layout",
    "prefill_copies",
    "devices",
    "serving_engine",
    "precision",
    "dense_format",
    "kv_format",
    "placement",
    "num_replicas",
    "schedule",
    "order",
    "cold_fraction",
    "cold_format",
    "cold_rank_fraction",
    "pruned_fraction",
    "resident_fraction",
    "prefetch_recall",
    "isl",
    "osl",
    "num_requests",
    "concurrency",
    "steady",
    "window_s",
    "num_counted",
    "requests_per_s",
    "output_tokens_per_s",
    "total_tokens_per_s",
    "queue_mean_ms",
    "queue_p50_ms",
    "queue_p90_ms",
    "queue_p99_ms",
    "ttft_mean_ms",
    "ttft_p50_ms",
    "ttft_p90_ms",
    "ttft_p99_ms",
    "tpot_mean_ms",
    "tpot_p50_ms",
    "tpot_p90_ms",
    "tpot_p99_ms",
    "latency_mean_ms",
    "latency_p50_ms",
    "latency_p90_ms",
    "latency_p99_ms",
    "itl_mean_ms",
    "itl_p50_ms",
    "itl_p90_ms",
    "itl_p99_ms",
    "mean_in_flight",
    "mean_batch",
    "peak_kv_blocks",
    "peak_kv_fraction",
    "peak_prefill_kv_blocks",
    "preemptions",
    "recomputed_tokens",
    "steps",
    "end_s",
    "tpot_low_ms",
    "tpot_high_ms",
    "ttft_low_ms",
    "ttft_high_ms",
    "output_tokens_per_s_per_device",
    "output_tokens_per_s_per_device_low",
    "output_tokens_per_s_per_device_high",
    "output_tokens_per_s_per_user",
    "output_tokens_per_s_per_user_low",
    "output_tokens_per_s_per_user_high",
    "joules_per_million_tokens",
    "joules_per_million_tokens_low",
    "joules_per_million_tokens_high",
    "usd_per_million_tokens",
    "usd_per_million_tokens_low",
    "usd_per_million_tokens_high",
    "weights_gib",
    "host_gib",
    "compression_loss_delta",
    "compression_loss_delta_low",
    "compression_loss_delta_high",
    "kv_blocks",
    "kv_tokens",
    "decode_step_ms",
    "prefill_step_ms",
    "chain_error_ms",
    "limited_by",
    "kernels",
    "requests_by",
    "evidence",
    "grade",
    "seed",
    "version",
    "profile_hash",
)
#: factor either way of a TTFT whose engine was never scored (assumed)
_UNSCORED_TTFT = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WholeResult(OneRow):
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

    def facts(self) -> dict[str, str]:
        """Return what people look at first, as texts."""
        row = self.row()
        prompts = f", prompts by {row['prefill_layout']}" if row["prefill_layout"] else ""
        return {
            "model": f"{row['model']}, {row['layout']}{prompts}",
            "cluster": self.cluster.name,
            "TPOT": _ms(row, "tpot"),
            "tokens/s per device": f"{row['output_tokens_per_s_per_device']:,.0f} (output)",
            "TTFT": _ms(row, "ttft"),
            "engine": str(row["serving_engine"]),
            "clients": str(row["concurrency"]),
            "limited by": str(row["limited_by"]),
            "evidence": f"{row['evidence']}; grade {row['grade']}",
        }

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

        Rates, energy and cost have the interval of TPOT.

        Args:
            economics: Power and prices; None leaves energy and cost empty.
        """
        found = self.loop.row()
        before, memory = self.pools[0], self.pools[-1].memory
        output = float(str(found["output_tokens_per_s"]))
        tpot, ttft = float(str(found["tpot_mean_ms"] or 0.0)), float(str(found["ttft_mean_ms"]))
        joules, usd = self._prices(economics, output)
        # answers come at the pace of their tokens, and what is paid for is time
        slow, fast = self.tpot
        return {
            "model": self.served.name,
            "cluster": self.cluster.name,
            "layout": str(self.served.layout),
            "copies": self.copies,
            "prefill_layout": str(before.served.layout) if len(self.pools) > 1 else None,
            "prefill_copies": before.copies if len(self.pools) > 1 else None,
            "devices": self.devices,
            "serving_engine": self.engine.name,
            "precision": self.served.precision.name,
            "dense_format": self.served.dense_format,
            "kv_format": self.served.kv_format,
            "placement": self.served.placement,
            "num_replicas": self.served.num_replicas,
            "schedule": str(self.served.schedule),
            "order": self.served.step_order,
            **asdict(self.served.compression),
            **asdict(self.served.offload),
            "prefetch_recall": self.served.offload.recall_word,
            "isl": self.traffic.isl,
            "osl": self.traffic.osl,
            **found,
            "tpot_low_ms": tpot * self.tpot[0],
            "tpot_high_ms": tpot * self.tpot[1],
            "ttft_low_ms": ttft * self.ttft[0],
            "ttft_high_ms": ttft * self.ttft[1],
            **_spread("output_tokens_per_s_per_device", output / self.devices, 1 / fast, 1 / slow),
            **_spread(
                "output_tokens_per_s_per_user", 1e3 / tpot if tpot else None, 1 / fast, 1 / slow
            ),
            **_spread("joules_per_million_tokens", joules, slow, fast),
            **_spread("usd_per_million_tokens", usd, slow, fast),
            "weights_gib": (memory.experts_bytes + memory.dense_bytes) / GIB,
            "host_gib": memory.host_bytes / GIB,
            **self._loss_delta(),
            "kv_blocks": self.config.kv_blocks,
            "kv_tokens": self.config.kv_blocks * self.config.block_size,
            "decode_step_ms": self.decode.time_s / MS,
            "prefill_step_ms": self.prefill.time_s / MS,
            "chain_error_ms": self.decode.chain_error_s / MS,
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

    def _loss_delta(self) -> dict[str, object]:
        """Return the columns of what compressing the experts costs in loss, in nats."""
        name, moe = "compression_loss_delta", self.served.spec.moe
        if moe is None or self.served.compression.is_nothing:
            return dict.fromkeys((name, f"{name}_low", f"{name}_high"), 0.0)
        delta = compression_delta(self.served.layer(moe), self.served.compression)
        return {name: delta.nats, f"{name}_low": delta.low, f"{name}_high": delta.high}

    def _prices(
        self, economics: Economics | None, output: float
    ) -> tuple[float | None, float | None]:
        """Return joules and dollars of a million tokens, where known.

        Args:
            economics: Power and prices.
            output: Tokens of answers in a second.
        """
        joules = usd = None
        if economics is not None and output:
            if economics.unknown_power(self.cluster) is None:
                joules = self.watts(economics) / output * 1e6
            if economics.unknown_price(self.cluster) is None:
                share = self.devices / self.cluster.num_devices
                usd = economics.usd_per_hour(self.cluster) * share / 3600.0 / output * 1e6
        return joules, usd


def _ms(row: Mapping[str, object], name: str) -> str:
    """Return the mean of a latency with its interval."""
    if row[f"{name}_mean_ms"] is None:
        return "none: answers of one token"
    ends = (row[f"{name}_{end}_ms"] for end in ("mean", "low", "high"))
    mean, low, high = (f"{end:,.1f}" for end in ends)
    return f"{mean} ms ({low} to {high})"


def _spread(name: str, value: float | None, low: float, high: float) -> dict[str, float | None]:
    """Return the columns of a number and of its interval."""
    return {
        name: value,
        f"{name}_low": None if value is None else value * low,
        f"{name}_high": None if value is None else value * high,
    }


def _interval(step: StepResult, engine: ServingEngine, what: str) -> tuple[float, float]:
    """Return the P10 and P90 of measured / simulated: the wider of what the step's prices and what
    the engine's scored rows say, on each side.
    """
    low, high = step.low_s / step.time_s, step.high_s / step.time_s
    scored = engine.interval(what)
    if scored is None:
        scored = (1.0, 1.0) if what == "tpot" else (1.0 / _UNSCORED_TTFT, _UNSCORED_TTFT)
    return exp(min(log(low), log(scored[0]))), exp(max(log(high), log(scored[1])))


__all__ = ["WHOLE_COLUMNS", "WholeResult"]
