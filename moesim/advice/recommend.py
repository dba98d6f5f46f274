"""Recommend parallelism, placement, redundancy and format for a model on a cluster, without a
study.

Every design of `moesim.advice.designs` is bounded by `moesim.simulation.screening`. The best
designs that fit are simulated by the ``flow`` engine, and the first of those again by
``event_compiled``. Among the designs that no other design beats for certain (`moesim.advice.ties`)
the simplest is recommended: the format that adds the least loss to the published one, then whole
experts (no tp), few copies, a plain placement, one micro-batch; among equals the fastest.

Only the MoE layers are simulated; attention, embeddings and dense layers count only in memory
(`moesim.advice.serving` recommends for the whole model).
Placements are planned on the load they are scored on, so the gains of EPLB assume that the load is
known.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import get_args

import numpy as np

from moesim.advice.designs import PLACEMENTS, SEARCHED, formats, loss_delta
from moesim.advice.helps import drawn_ahead, helps, room_for_kv, would_hold
from moesim.advice.recommendation import Choice, Help, Objective, Recommendation
from moesim.advice.task import Task, fitting_batch, largest_batch
from moesim.advice.ties import PricedDesign, groups
from moesim.design.candidate import Candidate, Phase, Workload
from moesim.errors import CapacityError, ConfigError, require, require_int
from moesim.hardware import Cluster, load_cluster
from moesim.hardware.economics import load_economics
from moesim.hardware.libraries import AUTO, check_choice
from moesim.hardware.sizing import sized
from moesim.model.hf_config import Model, load_model
from moesim.placement import REPLICATING
from moesim.placement.spec import PlacementSpec
from moesim.simulation.kernels import engines_of
from moesim.simulation.prepare import prepare
from moesim.simulation.result import Result
from moesim.simulation.run import exchange_of, simulate
from moesim.simulation.screening import Bounds, bounds_of
from moesim.units import GIB

#: tokens of a device by default: those at which DeepEP's README tables its two modes
USUAL_TOKENS: dict[str, int] = {"prefill": 4096, "decode": 128}
USUAL_ROUTING = "power_law:1.2"
#: number of designs that the flow engine simulates: the best, and the best of every kind; that are
#: also placed by local search; and that the event engine confirms
_FLOW, _OF_A_KIND, _SEARCH, _EVENT = 24, 2, 4, 3
#: threads that place experts while designs are bounded
_THREADS = 2


def recommend(
    model: str | Model,
    cluster: str | Cluster,
    *,
    gpus: int | None = None,
    phase: Phase = "prefill",
    tokens: int | None = None,
    kv_tokens: int | None = None,
    routing: str = USUAL_ROUTING,
    layers_latency_ms: float | None = None,
    precision: str = "auto",
    kernels: str = AUTO,
    objective: Objective = "throughput",
    economics: str = "default",
    seed: int = 0,
) -> Recommendation:
    """Recommend how to serve a model on a cluster.

    Args:
        model: A model, the name of a preset, or the path of a Hugging Face ``config.json``.
        cluster: A cluster or its name.
        gpus: Number of devices, which is part of a node or whole nodes; by default that of the
            cluster.
        phase: ``prefill`` or ``decode``.
        tokens: Tokens of each device in one forward pass; by default `USUAL_TOKENS`, for decoding
            halved until the KV cache fits, or with a latency the largest power of two, or eighth
            between two, that stays within it.
        kv_tokens: Tokens in each device's KV cache; by default those of the batch, for decoding
            `moesim.design.candidate.USUAL_CONTEXT` for each sequence.
        routing: Distribution of the experts' load.
        layers_latency_ms: Upper bound of the time of all MoE layers of one forward pass, one after
            the other. `moesim.advice.serving` keeps limits of the whole model.
        precision: ``auto`` (see `moesim.advice.designs.formats`), or recipes separated by commas.
        kernels: ``auto``, ``auto:ENGINE`` for what one serving engine launches, or a library.
        objective: ``throughput``, ``cost`` (dollars per token) or ``energy`` (joules per token), of
            the MoE layers.
        economics: Name of the cost and power model.
        seed: Seed of the routing.

    Raises:
        CapacityError: No design fits in memory; the message says the smallest need, and how many
            devices would hold it.
        ConfigError: A name or number is invalid, or no design stays within the latency; the message
            then says the fastest that was found.
    """
    model = load_model(model) if isinstance(model, str) else model
    machine = sized(load_cluster(cluster) if isinstance(cluster, str) else cluster, gpus)
    require(objective in get_args(Objective), "objective", "throughput, cost or energy", objective)
    require(phase in USUAL_TOKENS, "phase", "prefill or decode", phase)
    require(
        layers_latency_ms is None or 0 < layers_latency_ms < inf,
        "layers_latency_ms",
        "a number > 0",
        layers_latency_ms,
    )
    if tokens is not None:
        require_int("tokens", tokens, 1)
    task = Task(
        model=model,
        cluster=machine,
        names=formats(model, machine, precision),
        objective=objective,
        economics=load_economics(economics),
        latency_s=None if layers_latency_ms is None else layers_latency_ms / 1e3,
        kernels=check_choice(kernels),
        workload=Workload(
            num_tokens_per_device=tokens or USUAL_TOKENS[phase],
            phase=phase,
            routing=routing,
            kv_tokens_per_device=kv_tokens,
            seed=seed,
        ),
    )
    task.per_second({})  # a missing price or power is reported before the work starts
    if task.latency_s is not None and tokens is None:
        return largest_batch(task, _recommended)
    if tokens is None and kv_tokens is None and phase == "decode":
        return fitting_batch(task, _recommended)
    return _recommended(task)


def _recommended(task: Task) -> Recommendation:
    designs = task.designs()
    bounds = bounds_of(designs, task.cluster, task.workload, num_threads=_THREADS)
    order = _fitting(task, designs, bounds)
    finalists = _finalists([designs[i] for i in order])
    with drawn_ahead(finalists[0], task.cluster, task.workload):
        results = [r for r in (_simulated(task, c) for c in finalists) if r is not None]
    ranked = sorted(results, key=lambda r: task.per_second(r.mean_utilisation) * r.layer_time_s)
    if not ranked:
        raise ConfigError(
            f"recommend: expected a design that {task.cluster.name} runs, got none: "
            + "; ".join(sorted(set(bounds.reasons.values()))[:1])
        )
    if task.latency_s is not None:
        ranked = _within(task, ranked)
    priced = [PricedDesign.of(r, task.cluster, task.per_second(r.mean_utilisation)) for r in ranked]
    choices = [_choice(task, r, g) for r, g in zip(ranked, groups(priced), strict=True)]
    best = min((c for c in choices if c.group == 0), key=_simplicity)
    again = {id(c) for c in (*choices[:_EVENT], best)}
    choices = [
        replace(c, event_layer_time_s=_by_event(task, c)) if id(c) in again else c for c in choices
    ]
    best = next(c for c in choices if c.candidate == best.candidate)
    return Recommendation(
        model=task.model,
        cluster=task.cluster,
        workload=task.workload,
        objective=task.objective,
        best=best,
        choices=choices,
        helps=_helps(task, best),
        num_screened=len(designs),
        num_fitting=len(order),
        engines=engines_of(best.result, task.cluster),
        exchange=exchange_of(prepare(best.candidate, task.cluster, task.workload)),
        kv_tokens_left=room_for_kv(best.result, best.candidate),
        notes=(*task.model.notes, *filter(None, (best.candidate.cut_block,))),
    )


def _helps(task: Task, best: Choice) -> list[Help]:
    """Return what would help; of larger batches those that stay within the latency."""
    layers, bound = task.model.dense_part.num_moe_layers, task.latency_s
    return helps(
        best.result,
        task.cluster,
        task.workload,
        most_s=None if bound is None else bound / layers,
    )


def _by_event(task: Task, choice: Choice) -> float:
    return simulate(
        choice.candidate, task.cluster, task.workload, engine="event_compiled"
    ).layer_time_s


def _finalists(designs: Sequence[Candidate]) -> list[Candidate]:
    """Return the designs to simulate: the best, the best few of every kind (so that a tie with a
    simpler design shows), and local searches.

    Args:
        designs: The designs that fit, best bound first.
    """
    found = dict.fromkeys(designs[:_FLOW])
    seen: Counter[tuple[str, object]] = Counter()
    for c in designs:
        kinds = [
            ("format", c.layer.precision),
            ("tp", c.parallelism.tp),
            ("parts", c.schedule.num_micro_batches),
            ("exchange", c.schedule.exchange),
            ("placement", c.placement),
            ("copies", c.num_replicas // c.parallelism.ep),
        ]
        if any(seen[kind] < _OF_A_KIND for kind in kinds):
            found[c] = None
        seen.update(kinds)
    searched = dict.fromkeys(
        replace(c, placement=SEARCHED) for c in designs[:_FLOW] if c.parallelism.ep > 1
    )
    return [*found, *list(searched)[:_SEARCH]]


def _fitting(task: Task, designs: Sequence[Candidate], bounds: Bounds) -> list[int]:
    """Return the indices of the designs that fit, best bound first.

    Raises:
        CapacityError: No design fits.
        ConfigError: No design is valid.
    """
    over_N = bounds.memory_over_bytes_N
    if np.isnan(over_N).all():
        raise ConfigError(
            f"{task.model.name} on {task.cluster.name}: {next(iter(bounds.reasons.values()))}"
        )
    if not (over_N <= 0).any():
        least = int(np.nanargmin(over_N))
        c = designs[least]
        need, over = bounds.memory_bytes_N[least] / GIB, over_N[least] / GIB
        raise CapacityError(
            f"{task.model.name} does not fit on {task.cluster.name}: the fullest device needs at "
            f"least {need:.1f} GiB of {need - over:.1f} usable ({c.layer.precision.name}, "
            f"ep{c.parallelism.ep}tp{c.parallelism.tp}); "
            + would_hold(task.model, task.cluster, task.names, task.workload)
        )
    utilisation = bounds.mean_utilisation
    cost = [
        task.per_second({k: float(np.nan_to_num(v[i])) for k, v in utilisation.items()}) * t
        for i, t in enumerate(bounds.layer_time_s_N)
    ]
    return sorted((i for i in range(len(designs)) if over_N[i] <= 0), key=lambda i: cost[i])


def _simulated(task: Task, candidate: Candidate) -> Result | None:
    """Simulate a design with the flow engine; None where a local search fills a device beyond its
    memory.
    """
    try:
        return simulate(candidate, task.cluster, task.workload)
    except CapacityError:
        return None


def _within(task: Task, ranked: list[Result]) -> list[Result]:
    """Return the designs that stay within the latency.

    Raises:
        ConfigError: No design does.
    """
    layers, bound = task.model.dense_part.num_moe_layers, task.latency_s
    assert bound is not None
    kept = [r for r in ranked if layers * r.layer_time_s <= bound]
    if not kept:
        least = min(r.layer_time_s for r in ranked)
        tokens = task.workload.num_tokens_per_device
        raise ConfigError(
            f"layers_latency_ms: expected at least {layers * least * 1e3:,.1f} ms, which the "
            f"{layers} MoE layers of {task.model.name} take at {tokens:,} tokens per device in the "
            f"fastest design found, got {bound * 1e3:g}"
            + (
                "; without a number of tokens the largest batch that keeps it is sought"
                if tokens > 1
                else ""
            )
        )
    return kept


def _choice(task: Task, result: Result, group: int) -> Choice:
    economics, cluster = task.economics, task.cluster
    watts = None
    if economics.unknown_power(cluster) is None:
        watts = float(economics.watts(cluster, result.mean_utilisation)) / cluster.num_devices
    delta = loss_delta(task.model, result.candidate.layer.precision.name)
    return Choice(
        result=result,
        group=group,
        loss_delta=delta,
        wall_watts_per_device=watts,
        wall_factor=economics.wall_factor,
        moe_layers=task.model.dense_part.num_moe_layers,
        usd_per_hour=None if economics.unknown_price(cluster) else economics.usd_per_hour(cluster),
        cost_model=f"{economics.name}@{economics.digest}",
    )


def _simplicity(choice: Choice) -> tuple:
    """Return a sort key of a design; less is simpler."""
    c = choice.candidate
    strategy = PlacementSpec.parse(c.placement).strategy
    return (
        max(choice.loss_delta[0], 0.0),
        c.parallelism.tp,
        c.num_replicas if strategy in REPLICATING else 0,
        PLACEMENTS.index(strategy),
        c.schedule.num_micro_batches,
        choice.result.layer_time_s,
    )


__all__ = ["Choice", "Help", "Recommendation", "recommend"]
