"""Simulate and then really run the parts of the closed loop on this machine: layers, exchanges,
layers on ranks, candidates.

Everything is simulated on a profile of primitives measured here, before any of it runs. Each
comparison is one dictionary, with times in microseconds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from moesim_kernels.cpu.primitives import DTYPES
from moesim_kernels.profile.host_fabric import counted, measure_gloo
from moesim_kernels.ranks.timed_layers import LayerRun, time_layers

from moesim.design.candidate import Candidate, Parallelism, Workload
from moesim.hardware import Cluster, Profile, ranks_of_host, single_device
from moesim.measured.loop_scores import fit_line
from moesim.model import MoELayer, Precision
from moesim.model.gate import Gate
from moesim.search.drawn import Chosen
from moesim.simulation.prepare import prepare
from moesim.simulation.result import Result
from moesim.simulation.run import simulate
from moesim.units import US
from moesim.version import VERSION

#: multiply-adds and bytes of weights of the largest layer, which one core runs in a tenth of a
#: second
_WORK, _WEIGHTS = 2e10, 256e6
#: bytes per pair of the exchanges, between the profile's powers of two
_EXCHANGES = tuple(3 << exponent for exponent in range(10, 20))


def random_run(rng: np.random.Generator, fmt: str, ranks: int = 1) -> LayerRun:
    """Return a random layer and load; the experts divide over the ranks."""
    # Draw again until the layer is small enough for one core.
    while True:
        experts = int(2 ** rng.integers(2, 9))
        top_k = int(rng.choice([k for k in (1, 2, 4, 8) if k <= experts]))
        hidden, width = (int(64 * rng.integers(2, 17)) for _ in range(2))
        tokens = int(2 ** rng.uniform(4, 11)) // ranks
        kind = (
            str(rng.choice(["flat", "two_level:4:2"]))
            if experts >= 16 and top_k <= experts // 4
            else "flat"
        )
        layer = MoELayer(
            hidden_size=hidden,
            expert_intermediate_size=width,
            num_experts=experts,
            top_k=top_k,
            gate=Gate.parse(kind),
            precision=Precision(weights=fmt, activations=fmt, dispatch=fmt, combine=fmt),
        )
        if (
            ranks * tokens * top_k * layer.params_per_expert < _WORK
            and experts * layer.bytes_per_expert < _WEIGHTS
        ):
            routing = str(rng.choice(["uniform", "zipf:0.8", "power_law:1.2"]))
            return LayerRun(
                layer=layer, num_tokens=tokens, routing=routing, seed=int(rng.integers(1 << 16))
            )


def random_runs(profile: Profile, count: int, seed: int, ranks: int = 1) -> list[LayerRun]:
    """Return random layers, in turn of each format that this CPU was measured in."""
    # Each number of ranks has its own sequence, so that one does not shift the other.
    rng = np.random.default_rng((seed, ranks))
    formats = [fmt for fmt in DTYPES if fmt in profile.peak_flops_per_s]
    return [random_run(rng, formats[number % len(formats)], ranks) for number in range(count)]


def cluster_of(profile: Profile, ranks: int) -> Cluster:
    """Return one thread of this CPU, or a cluster of that many ranks of it."""
    return single_device(profile) if ranks == 1 else ranks_of_host(profile, ranks)


def foretold(run: LayerRun, cluster: Cluster) -> Result:
    """Simulate the run."""
    work = Workload(num_tokens_per_device=run.num_tokens, routing=run.routing, seed=run.seed)
    return simulate(
        Candidate(layer=run.layer, parallelism=Parallelism(ep=cluster.num_devices)), cluster, work
    )


def roofline_s(run: LayerRun, cluster: Cluster) -> float:
    """Return the usual estimate from the same peaks: the larger of FLOPs over peak and weight bytes
    over bandwidth.
    """
    layer, profile = run.layer, cluster.profile
    work = Workload(num_tokens_per_device=run.num_tokens, routing=run.routing, seed=run.seed)
    candidate = Candidate(layer=layer, parallelism=Parallelism(ep=cluster.num_devices))
    traffic = prepare(candidate, cluster, work).traffic
    # The busiest rank, and the experts whose weights it has to read.
    rows, active = traffic.counts_DL.sum(axis=1).max(), (traffic.counts_DL > 0).sum(axis=1).max()
    flops = 2.0 * (rows * layer.params_per_expert + run.num_tokens * layer.gate_params)
    return max(
        flops / profile.peak(layer.precision.activations),
        active * layer.bytes_per_expert / profile.hbm_bandwidth_bytes_per_s,
    )


def layer_rows(
    profile: Profile,
    runs: Sequence[LayerRun],
    ranks: int = 1,
    *,
    seconds: float = 0.25,
    timeout_s: float = 240.0,
) -> list[dict[str, Any]]:
    """Simulate layers, then run them in processes of their own.

    Raises:
        MeasurementError: The processes failed.
    """
    cluster = cluster_of(profile, ranks)
    # Simulated before anything runs: the measurement cannot influence the prediction.
    told = [foretold(run, cluster) for run in runs]
    plain = [roofline_s(run, cluster) for run in runs]
    timings = time_layers(runs, ranks, seconds=seconds, timeout_s=timeout_s)
    rows = []
    for number, (run, result, timing, roofline) in enumerate(
        zip(runs, told, timings, plain, strict=True)
    ):
        layer, measured = run.layer, timing.phases["total"]
        rows.append(
            {
                "layer": number,
                "ranks": ranks,
                "num_tokens": run.num_tokens,
                "num_experts": layer.num_experts,
                "top_k": layer.top_k,
                "hidden_size": layer.hidden_size,
                "expert_intermediate_size": layer.expert_intermediate_size,
                "gate": str(layer.gate),
                "precision": layer.precision.activations,
                "routing": run.routing,
                "simulated_us": result.layer_time_s / US,
                "simulated_low_us": result.layer_time_low_s / US,
                "simulated_high_us": result.layer_time_high_s / US,
                # The P10 is the measured value, since a disturbance only adds time.
                "measured_us": measured.p10_s / US,
                "measured_p90_us": measured.p90_s / US,
                "roofline_us": roofline / US,
                "error_percent": 100 * (result.layer_time_s / measured.p10_s - 1),
                "contended": timing.contended,
                "evidence": "measured",
                "calibration": result.calibration,
                "seed": run.seed,
                "version": VERSION,
                "profile_hash": result.profile_hash,
            }
        )
    return rows


def rank_rows(
    profile: Profile, count: int, seed: int, *, fitted_on: int = 8, seconds: float = 0.25
) -> tuple[list[dict[str, Any]], tuple[float, float]]:
    """Run random layers over two ranks. ``fitted_us`` is a + b x simulated, with a and b fitted to
    the first few layers, which are marked ``in_fit``.

    Returns:
        Rows; a in microseconds and b.

    Raises:
        MeasurementError: The processes failed.
    """
    rows = layer_rows(profile, random_runs(profile, count, seed, 2), 2, seconds=seconds)
    start, slope = fit_line(
        *(
            np.array([row[name] for row in rows[:fitted_on]])
            for name in ("simulated_us", "measured_us")
        )
    )
    for number, row in enumerate(rows):
        row |= {"fitted_us": start + slope * row["simulated_us"], "in_fit": number < fitted_on}
    return rows, (start, slope)


def exchange_rows(profile: Profile) -> list[dict[str, Any]]:
    """Run all-to-alls of two processes, at sizes that the profile's fit has not seen; none without
    a measured fabric.

    Raises:
        MeasurementError: The processes failed.
    """
    fabric = profile.host_fabric
    if fabric is None:
        return []
    rows = []
    for point in measure_gloo(2, sizes=_EXCHANGES):
        # The price of an exchange: its start, and the bytes at a rank's port over the rate.
        simulated = (
            fabric.start_s + (point.ranks - 1) * point.bytes_per_pair / fabric.port_bytes_per_s
        )
        measured = counted(point.seconds)
        rows.append(
            {
                "ranks": point.ranks,
                "bytes_per_pair": point.bytes_per_pair,
                "simulated_us": simulated / US,
                "simulated_low_us": simulated * fabric.interval[0] / US,
                "simulated_high_us": simulated * fabric.interval[1] / US,
                "measured_us": measured / US,
                "error_percent": 100 * (simulated / measured - 1),
                "evidence": "measured",
                "version": VERSION,
            }
        )
    return rows


def candidate_rows(
    profile: Profile,
    candidates: Sequence[Chosen],
    workload: Workload,
    *,
    line: tuple[float, float],
    seconds: float = 0.25,
) -> list[dict[str, Any]]:
    """Run candidates of a search on this machine, and compare them with their simulation.

    Args:
        profile: Profile on which they were searched.
        candidates: Designs to run, on one or more ranks.
        workload: The workload of the search.
        line: Coefficients a (in microseconds) and b, for designs on several ranks.
        seconds: Time to spend on repeats of each.

    Raises:
        MeasurementError: The processes failed.
    """
    rows = []
    # Designs on the same number of ranks share the start of the processes.
    for ranks in sorted({one.candidate.parallelism.num_devices for one in candidates}):
        chosen = [one for one in candidates if one.candidate.parallelism.num_devices == ranks]
        runs = [
            LayerRun(
                layer=one.candidate.layer,
                num_tokens=workload.num_tokens_per_device,
                routing=workload.routing,
                seed=workload.seed,
            )
            for one in chosen
        ]
        found = layer_rows(profile, runs, ranks, seconds=seconds)
        for one, row in zip(chosen, found, strict=True):
            # The line is fitted on several ranks; a single rank needs none.
            fitted = row["simulated_us"] if ranks == 1 else line[0] + line[1] * row["simulated_us"]
            named = {"role": one.role, "candidate": one.candidate.label, "loss": one.loss}
            rows.append(named | row | {"fitted_us": fitted})
    return rows
