"""Simulate one step of a whole model on one copy of its devices."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from moesim.costs.dense.prices import Op, dense_prices
from moesim.costs.grades import ASSUMED_GRADE, Grade
from moesim.costs.steps.mixers import DensePricing
from moesim.design.served import ServedModel
from moesim.design.step import ExpertLoad, Step
from moesim.engines.run import run
from moesim.errors import ConfigError
from moesim.hardware import Cluster, Profile
from moesim.hardware.exchanges import exchange_named
from moesim.hardware.sizing import sized
from moesim.lowering.steps import Experts, LoweredStep, lower_step
from moesim.model.feedforward import MoEFeedForward
from moesim.model.latent import LatentAttention
from moesim.model.spec import LayerKind
from moesim.program import Timeline
from moesim.simulation.phases import critical_segments, mean_utilisation
from moesim.simulation.steps.chain import (
    REPETITIONS,
    Run,
    Section,
    chain_error_s,
    runs_of,
    stretches,
)
from moesim.simulation.steps.experts import present, sent
from moesim.simulation.trust import span_of, trust_of

#: bytes of a bf16 element, which travels between pipeline stages
_ELEMENT_BYTES = 2.0
UNEVEN = ExpertLoad()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One simulated step.

    Attributes:
        served: The design.
        cluster: Name of the cluster.
        step: What each attention rank computed.
        time_s: Time of the step on the devices, without the host.
        low_s: P10 of that time.
        high_s: P90.
        chain_error_s: Standard error of what stands for the layers that were not lowered, see
            `moesim.simulation.steps.chain.chain_error_s`; 0 if all were.
        phase_time_s: Seconds of each phase on the critical path; they sum to time_s.
        mean_utilisation: Kind of resource -> its mean utilization in the lowered layers.
        kernels: Name of the library that runs the experts; empty for a model without.
        grades: Phase -> what its price rests on.
        engine: Name of the engine that ran the program.
    """

    served: ServedModel
    cluster: str
    step: Step
    time_s: float
    low_s: float
    high_s: float
    chain_error_s: float
    phase_time_s: dict[str, float]
    mean_utilisation: dict[str, float]
    kernels: str
    grades: dict[str, Grade]
    engine: str


def simulate_step(
    served: ServedModel,
    cluster: Cluster,
    step: Step,
    *,
    load: ExpertLoad = UNEVEN,
    engine: str = "flow",
) -> StepResult:
    """Simulate one step on one copy of the model.

    The stages of a pipeline compute one after the other; each holds an equal share of the layers,
    and sends the tokens of the step to the next.

    Args:
        served: The design; its layout says how many devices of the cluster it uses.
        cluster: The hardware.
        step: What each attention rank computes.
        load: How tokens choose experts.
        engine: Name of the engine.

    Raises:
        ConfigError: Devices of several kinds, or the layout does not fit the cluster.
    """
    return _simulate(served, cluster, step, load, StepDetail(engine, REPETITIONS))


def simulate_every_layer(
    served: ServedModel,
    cluster: Cluster,
    step: Step,
    *,
    load: ExpertLoad = UNEVEN,
    engine: str = "flow",
) -> StepResult:
    """Simulate one step with every layer lowered: what `simulate_step` estimates from a few
    repetitions of each, about ten times as slowly. Arguments and errors are the same.
    """
    return _simulate(served, cluster, step, load, StepDetail(engine, None))


@dataclass(frozen=True, slots=True)
class StepDetail:
    """How closely a step is simulated.

    Attributes:
        engine: Name of the engine.
        repetitions: Repetitions of a pattern of layers that are lowered at most; None for all.
    """

    engine: str = "flow"
    repetitions: int | None = REPETITIONS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RanStep:
    """A step of which some layers were lowered and ran.

    Attributes:
        served: The design, with the exchange that it uses.
        stage: The devices of one pipeline stage.
        lowered: The program.
        timeline: When its ops ran.
        runs: The runs of layers that it holds.
        layers: The layers that were lowered, see `moesim.lowering.steps.lower_step`.
        kernels: Names of the libraries that run the experts.
    """

    served: ServedModel
    stage: Cluster
    lowered: LoweredStep
    timeline: Timeline
    runs: list[Run]
    layers: list[tuple[LayerKind, Experts | None, bool]]
    kernels: dict[str, None]

    def seconds_at(self, marks: Sequence[np.ndarray]) -> list[float]:
        """Return when each of some marks is reached, in seconds."""
        return [float(self.timeline.end_s_N[ops].max()) for ops in marks]


def run_step(
    served: ServedModel,
    cluster: Cluster,
    step: Step,
    *,
    load: ExpertLoad = UNEVEN,
    detail: StepDetail = StepDetail(),
) -> RanStep:
    """Lower a few layers of a step and run them.

    Args:
        served: The design.
        cluster: The hardware.
        step: What each attention rank computes.
        load: How tokens choose experts.
        detail: The engine, and how many layers are lowered.

    Raises:
        ConfigError: Devices of several kinds, or the layout does not fit the cluster.
    """
    stage = stage_of(cluster, served.layout.devices_per_stage)
    served = with_exchange(served, stage, decodes=step.prefill_tokens == 0)
    runs = runs_of(served.spec.blocks, detail.repetitions)
    whole = served.step_order == "chunked"
    parts = [step] if whole else _micro_batches(step, served.schedule.num_micro_batches)
    layers: list[tuple[LayerKind, Experts | None, bool]] = []
    names: dict[str, None] = {}
    index = 0
    for run_ in runs:
        for repetition in range(run_.lowered):
            for place, kind in enumerate(run_.pattern):
                experts = None
                if kind.moe is not None:
                    drawn = load.of_layer(index, 101 * repetition + place)
                    index += 1
                    experts, name = _experts(served, stage, kind.moe, step, drawn)
                    names[name] = None
                layers.append((kind, experts, place == len(run_.pattern) - 1))
    lowered = lower_step(served, stage, pricing_of(served, stage), parts, layers)
    timeline = bound = run(lowered.program, "bound")
    if detail.engine != "bound":
        # head and embedding count as one more
        one_layer_s = bound.makespan_s / (len(layers) + 1)
        timeline = run(lowered.program, detail.engine, scale_s=one_layer_s)
    return RanStep(
        served=served,
        stage=stage,
        lowered=lowered,
        timeline=timeline,
        runs=runs,
        layers=layers,
        kernels=names,
    )


def _simulate(
    served: ServedModel, cluster: Cluster, step: Step, load: ExpertLoad, detail: StepDetail
) -> StepResult:
    ran = run_step(served, cluster, step, load=load, detail=detail)
    served, lowered, timeline, names = ran.served, ran.lowered, ran.timeline, ran.kernels
    pricing = pricing_of(served, ran.stage)
    marks_s = ran.seconds_at(lowered.marks)
    spans = stretches(ran.runs, marks_s, timeline.makespan_s)
    phases: dict[str, float] = {}
    for phase, begin, end in critical_segments(lowered.program, timeline):
        phases[phase] = phases.get(phase, 0.0) + _weighted(begin, end, spans)
    if served.layout.pp > 1:
        phases["pipeline"] = (served.layout.pp - 1) * _hop_s(cluster, served, step)
    time_s = sum(phases.values())
    grades = _grades(served, ran.stage, pricing, names, step)
    low, high = span_of(grades, phases)
    return StepResult(
        served=served,
        cluster=cluster.name,
        step=step,
        time_s=time_s,
        low_s=time_s * low,
        high_s=time_s * high,
        chain_error_s=chain_error_s(ran.runs, marks_s),
        phase_time_s=phases,
        mean_utilisation=mean_utilisation(lowered.program, timeline.busy_s_R, timeline.makespan_s),
        kernels=" ".join(name for name in names if name),
        grades=grades,
        engine=detail.engine,
    )


def with_exchange(served: ServedModel, stage: Cluster, *, decodes: bool) -> ServedModel:
    """Return the design with the exchange that its engine uses where none is named: the cluster's
    own if the engine launches it; otherwise within a domain an all-gather, which is what engines do
    without an all-to-all backend, and across domains DeepEP, its low-latency mode where a step only
    decodes.
    """
    if served.schedule.exchange is not None or not served.layout.exchanges_tokens:
        return served
    own, within = stage.exchange(), stage.num_devices <= stage.devices_per_domain
    usual = "all_gather" if within else "deepep_ll" if decodes else "deepep_normal"
    if served.engine in own.launch and not own.name.startswith("deepep"):
        usual = own.name
    name = usual if exchange_named(usual).runs_on(stage) else own.name
    return replace(served, schedule=replace(served.schedule, exchange=name))


@lru_cache(maxsize=64)
def stage_of(cluster: Cluster, devices: int) -> Cluster:
    """Return the devices of one pipeline stage of one copy of a model.

    Raises:
        ConfigError: The devices are of several kinds, or too few.
    """
    if len(cluster.groups) > 1:
        raise ConfigError(
            f"{cluster.name}: expected devices of one kind for a whole model, got a mixed cluster"
        )
    if devices > cluster.num_devices:
        raise ConfigError(
            f"layout: expected at most the {cluster.num_devices} devices of {cluster.name}, got "
            f"{devices} in a stage"
        )
    return sized(cluster, devices)


def pricing_of(served: ServedModel, stage: Cluster) -> DensePricing:
    """Return what the dense parts of a design are priced with on the devices of a stage."""
    formats = served.dense_format, served.kv_format
    return _pricing(
        stage.profile, served.engine, served.spec.hidden_size, served.layout.tp, formats
    )


@lru_cache(maxsize=256)
def _pricing(
    profile: Profile, engine: str, hidden_size: int, tp: int, formats: tuple[str, str]
) -> DensePricing:
    """Return one object for all designs with the same dense parts, which share their prices."""
    prices, (dense, kv) = dense_prices(profile, engine), formats
    return DensePricing(prices=prices, hidden_size=hidden_size, tp=tp, fmt=dense, kv=kv)


def _micro_batches(step: Step, parts: int) -> list[Step]:
    """Divide a step: its sequences, or the tokens of a single prompt."""
    if parts == 1:
        return [step]
    if step.prefills and step.prefills < parts:
        each = step.new_tokens / parts
        return [
            replace(
                step,
                new_tokens=each,
                cached_tokens=step.cached_tokens + m * each,
                sequences=step.sequences / parts,
            )
            for m in range(parts)
        ]
    return [replace(step, prefills=step.prefills / parts, sequences=step.sequences / parts)] * parts


def _experts(
    served: ServedModel, stage: Cluster, moe: MoEFeedForward, step: Step, load: ExpertLoad
) -> tuple[Experts, str]:
    candidate = served.candidate(moe)
    if served.layout.exchanges_tokens:
        prepared = sent(candidate, stage, step.tokens / served.layout.tp, load)
        return (
            Experts(
                moe=moe,
                layer=prepared.built.layer,
                cluster=prepared.cluster,
                batches=prepared.batches,
                travels=True,
                stored=prepared.stored,
            ),
            prepared.kernels,
        )
    found = present(candidate, stage, max(round(step.tokens), 1), load)
    return (
        Experts(
            moe=moe,
            layer=found.layer,
            cluster=found.cluster,
            batches=(found.traffic,),
            travels=False,
            stored=found.stored,
        ),
        found.kernels,
    )


def _weighted(begin: float, end: float, spans: Sequence[Section]) -> float:
    return sum(
        max(min(end, span.end_s) - max(begin, span.begin_s), 0.0) * span.weight for span in spans
    )


def _hop_s(cluster: Cluster, served: ServedModel, step: Step) -> float:
    """Return the seconds in which a stage sends its tokens to the next: each device those of its
    share, over its NIC if the stages are on different nodes.
    """
    moved = step.tokens / served.layout.tp * served.spec.hidden_size * _ELEMENT_BYTES
    within = served.layout.num_devices <= cluster.devices_per_domain
    rate = cluster.link_bytes_per_s if within else cluster.nic_bytes_per_s
    if not rate:
        raise ConfigError(f"layout: expected links between the stages of {served.layout}, got none")
    return cluster.hop_s + moved / rate


def _grades(
    served: ServedModel, stage: Cluster, pricing: DensePricing, names: dict[str, None], step: Step
) -> dict[str, Grade]:
    """Return what each phase rests on."""
    prices = pricing.prices
    gemm = prices.grade("gemm", served.dense_format)
    latent = any(isinstance(kind.mixer, LatentAttention) for kind in served.spec.kinds)
    attention: Op = "mla_decode" if latent else "decode"
    cache = served.kv_format
    if not step.sequences:
        cache = "fp8_kv" if cache == "fp8" else cache
        attention = prices.latent_prefill(cache) if latent else "prefill"
    found = {
        "projections": gemm,
        "dense": gemm,
        "shared": gemm,
        "head": prices.grade("gemm", "bfloat16"),
        "all_reduce": prices.grade("all_reduce", "bfloat16"),
        "attention": prices.grade(attention, cache),
    }
    moe = served.spec.moe
    if moe is not None and names:
        candidate = served.candidate(moe)
        alone = stage if served.layout.exchanges_tokens else sized(stage, 1)
        layer, _ = trust_of(candidate, alone, next(iter(names)))
        found |= layer
    assumed = ("norm", "embedding", "sampler", "gate", "fetch", "prefetch")
    return found | dict.fromkeys(assumed, ASSUMED_GRADE)
