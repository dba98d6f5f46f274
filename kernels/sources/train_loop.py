"""Simulate and then really train random layers on this machine, on one core and over two ranks.

Every layer is simulated on a profile of primitives measured here, before any of them is trained.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from moesim_kernels.cpu.primitives import DTYPES
from moesim_kernels.ranks.timed_layers import LayerRun, time_layers
from moesim_kernels.sources.local_loop import cluster_of, random_run

from moesim.design.candidate import Candidate, Parallelism, Workload
from moesim.hardware import Cluster, Profile
from moesim.measured.loop_scores import fit_line, scores
from moesim.model.gate import Gate
from moesim.simulation.training.layer import TrainedLayer, simulate_training_layer
from moesim.units import US
from moesim.version import VERSION

#: parameters, and multiply-adds of a forward pass, of the largest layer: a step takes a tenth of a
#: second on one core
_PARAMS, _WORK = 24e6, 4e9


def random_training_runs(profile: Profile, count: int, seed: int, ranks: int = 1) -> list[LayerRun]:
    """Return random layers to train, in turn of each format that this CPU was measured in."""
    rng = np.random.default_rng((seed, ranks, 1))
    formats = [fmt for fmt in DTYPES if fmt in profile.peak_flops_per_s]
    runs: list[LayerRun] = []
    while len(runs) < count:
        run = random_run(rng, formats[len(runs) % len(formats)], ranks)
        layer = replace(run.layer, gate=Gate(precision=run.layer.precision.activations))
        params, rows = layer.routed_params, ranks * run.num_tokens * layer.top_k
        if params < _PARAMS and rows * layer.params_per_expert < _WORK:
            runs.append(replace(run, layer=layer, trained=True))
    return runs


def foretold(run: LayerRun, cluster: Cluster) -> TrainedLayer:
    """Simulate a step of the run."""
    work = Workload(num_tokens_per_device=run.num_tokens, routing=run.routing, seed=run.seed)
    design = Candidate(layer=run.layer, parallelism=Parallelism(ep=cluster.num_devices))
    return simulate_training_layer(design, cluster, work)


def training_rows(
    profile: Profile,
    count: int,
    seed: int,
    ranks: int = 1,
    *,
    seconds: float = 0.25,
    fitted_on: int = 8,
) -> list[dict[str, Any]]:
    """Simulate steps of random layers, then train them in processes of their own.

    Args:
        profile: Profile of this machine.
        count: Number of layers.
        seed: Seed of the layers.
        ranks: Number of processes.
        seconds: Time to spend on repeats of each.
        fitted_on: Number of layers, from the first, to which a and b of a + b x simulated are
            fitted, where there are several ranks; they are marked ``in_fit``. Ranks of one host
            wake each other up and share its memory.

    Raises:
        MeasurementError: The processes failed.
    """
    cluster = cluster_of(profile, ranks)
    runs = random_training_runs(profile, count, seed, ranks)
    # Simulated before anything runs: the measurement cannot influence the prediction.
    told = [foretold(run, cluster) for run in runs]
    timings = time_layers(runs, ranks, seconds=seconds, timeout_s=300.0)
    simulated = np.array([step.step_s for step in told]) / US
    # The P10 is the measured value, since a disturbance only adds time.
    measured = np.array([timing.phases["total"].p10_s for timing in timings]) / US
    start, slope = 0.0, 1.0
    if ranks > 1:
        start, slope = fit_line(simulated[:fitted_on], measured[:fitted_on])
    rows = []
    for number, (run, step, timing) in enumerate(zip(runs, told, timings, strict=True)):
        layer, phases = run.layer, timing.phases
        told_us = {
            "forward": step.forward_s / US,
            "backward": (step.backward_s + step.reduction_s) / US,
            "optimizer": step.optimizer_s / US,
        }
        parts = {
            "forward": ("forward",),
            "backward": ("dgrad", "wgrad") if ranks == 1 else ("backward", "reduction"),
            "optimizer": ("optimizer",),
        }
        phases_us = {
            name: sum(phases[part].p10_s for part in of) / US for name, of in parts.items()
        }
        rows.append(
            {
                "layer": number,
                "ranks": ranks,
                "num_tokens": run.num_tokens,
                "num_experts": layer.num_experts,
                "top_k": layer.top_k,
                "hidden_size": layer.hidden_size,
                "expert_intermediate_size": layer.expert_intermediate_size,
                "precision": layer.precision.activations,
                "routing": run.routing,
                "simulated_us": float(simulated[number]),
                "fitted_us": float(start + slope * simulated[number]),
                "measured_us": float(measured[number]),
                "error_percent": 100 * float(simulated[number] / measured[number] - 1),
                "in_fit": ranks > 1 and number < fitted_on,
                **{f"simulated_{name}_us": us for name, us in told_us.items()},
                **{f"measured_{name}_us": us for name, us in phases_us.items()},
                "phases_us": sum(phases_us.values()),
                "contended": timing.contended,
                "evidence": "measured",
                "seed": run.seed,
                "version": VERSION,
                "profile_hash": profile.digest,
            }
        )
    return rows


def training_summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Score the steps on one rank, and over several as simulated and by a + b x simulated (the
    layers that the line was fitted to are left out).

    Over several ranks the sum of the phases' P10 is scored, too: on a shared machine hardly a step
    is undisturbed on every rank from its begin to its end, but each phase is in some step.
    """
    alone = [row for row in rows if row["ranks"] == 1]
    several = [row for row in rows if row["ranks"] > 1 and not row["in_fit"]]
    table = [{"what": "training steps", **scores(alone)}] if alone else []
    if several:
        table.append({"what": "training steps on 2 ranks", **scores(several)})
        undisturbed = [row | {"measured_us": row["phases_us"]} for row in several]
        table.append({"what": "training steps on 2 ranks, sum of phases", **scores(undisturbed)})
        fitted = scores(several, "fitted_us")
        table.append({"what": "training steps on 2 ranks, a + b x simulated", **fitted})
    return table
