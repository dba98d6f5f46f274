"""Screen a space: the bounds of all points, or of a random sample, choose what the search
simulates.

The bound engine is about twenty times cheaper than the fluid one and ranks candidates nearly the
same; every study that screens reports how nearly (`fidelity`).

Shape legend: N points, M objectives.
"""

from typing import Any

import numpy as np

from moesim.design.candidate import Candidate
from moesim.errors import MoesimError
from moesim.hardware import Cluster
from moesim.hardware.economics import priced
from moesim.model import MoELayer
from moesim.model.compression import Compression
from moesim.quality import estimate_loss
from moesim.search.evaluate import Problem
from moesim.search.executors import Evaluator
from moesim.search.objectives import costs_of, layer_columns
from moesim.search.pareto import survivors
from moesim.search.points import distinct_points, point_maker
from moesim.search.space import Space
from moesim.search.trial import Trial
from moesim.simulation.screening import bounds_of
from moesim.units import GIB

#: number of points in one piece of work: few enough that workers end together
_CHUNK = 500


def screened_points(
    problem: Problem, num_points: int, keep: int, seed: int, evaluates: Evaluator
) -> list[dict[str, Any]]:
    """Return the best points of a space by the bound engine.

    Args:
        problem: The problem that the points belong to.
        num_points: Number of points to look at: the whole space if it has no more, otherwise a
            random sample of designs with all of their widths, at least so many points.
        keep: Number of points to return.
        seed: Seed of the random draw.
        evaluates: The evaluator that does the work.

    Returns:
        Points that keep every constraint come first, front by front, each with its ends and sparse
        regions first.
    """
    flat = _sampled(problem.space, num_points, seed)
    found = list(
        evaluates.map(screen_chunk, [flat[i : i + _CHUNK] for i in range(0, len(flat), _CHUNK)])
    )
    places, costs, broken = (np.concatenate(parts) for parts in zip(*found, strict=True))
    kept = survivors(costs, broken, min(keep, len(costs)))
    points = point_maker(problem.space)
    return [problem.space.applicable(points(int(places[i]))) for i in kept]


def _sampled(space: Space, num_points: int, seed: int) -> np.ndarray:
    """Return the numbers of the points to look at, ascending.

    The widths of a design cost next to nothing once one of them is bounded
    (`moesim.simulation.screening`), and have neighboring numbers: designs are drawn, each with all
    of its widths.
    """
    size, widths = space.size, len(space.expert_intermediate_size)
    if num_points >= size:
        return np.arange(size)
    designs, number = size // widths, -(-num_points // widths)
    rng = np.random.default_rng([seed, size])
    drawn = np.sort(
        rng.choice(designs, number, replace=False)
        if designs < 1 << 26
        else np.unique(rng.integers(designs, size=number))
    )
    return (drawn[:, None] * widths + np.arange(widths)).ravel()


def screen_chunk(problem: Problem, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the bounds of some points of a space.

    Returns:
        Numbers of the points that are candidates, each design once; their costs, ndarray of shape
        (N, M); and their sums of violations, ndarray of shape (N,).
    """
    space = problem.space
    of_cluster: dict[Cluster, list[tuple[int, Candidate]]] = {}
    for number, plain in distinct_points(space, flat.tolist()):
        try:
            candidate, cluster = space.decode(plain, problem.cluster)
        except MoesimError:
            continue  # contradictory choices: no candidate, as in a trial
        of_cluster.setdefault(cluster, []).append((number, candidate))
    numbers: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    costs: list[np.ndarray] = [np.zeros((0, len(problem.objectives)))]
    broken: list[np.ndarray] = [np.zeros(0)]
    for cluster, members in of_cluster.items():
        columns, over = _columns(problem, cluster, [c for _, c in members])
        value = np.stack(
            [
                np.broadcast_to(np.asarray(v, dtype=np.float64), over.shape)
                for v in costs_of(problem.objectives, columns)
            ],
            axis=1,
        )
        good = np.isfinite(value).all(axis=1)
        numbers.append(np.array([n for n, _ in members])[good])
        costs.append(value[good])
        broken.append(over[good])
    return np.concatenate(numbers), np.concatenate(costs), np.concatenate(broken)


def _columns(
    problem: Problem, cluster: Cluster, candidates: list[Candidate]
) -> tuple[dict[str, Any], np.ndarray]:
    """Return the columns that objectives and constraints name, and the sum of violations, of
    candidates on one cluster.
    """
    space, workload = problem.space, problem.workload
    bounds = bounds_of(candidates, cluster, workload)
    time_s = bounds.layer_time_s_N
    tokens = workload.num_tokens_per_device
    columns = layer_columns(time_s, tokens) | priced(
        problem.economics,
        cluster,
        time_s,
        tokens * cluster.num_devices,
        {k: np.nan_to_num(v) for k, v in bounds.mean_utilisation.items()},
    )
    losses: dict[tuple[MoELayer, Compression], tuple[float, float]] = {}
    loss = np.empty((len(candidates), 2))
    for i, (layer, form) in enumerate((c.layer, c.compression) for c in candidates):
        if (layer, form) not in losses:
            estimate = estimate_loss(
                layer,
                space.dense(),
                train_tokens=space.train_tokens,
                train_flops=space.train_flops,
                law=problem.law,
                compression=form,
            )
            losses[layer, form] = estimate.loss, estimate.high
        loss[i] = losses[layer, form]
    columns |= {
        "loss": loss[:, 0],
        "loss_high": loss[:, 1],
        "peak_memory_gib": bounds.memory_bytes_N / GIB,
    }
    broken = np.maximum(np.nan_to_num(bounds.memory_over_bytes_N / GIB, nan=np.inf), 0.0)
    for constraint in problem.constraints:
        # a bound knows neither its interval nor the load: the search's engine checks these later
        if columns.get(constraint.name) is not None:
            broken = broken + np.maximum(
                constraint.violation(np.asarray(columns[constraint.name])), 0.0
            )
    return columns, broken


def fidelity(trials: list[Trial]) -> dict[str, float]:
    """Measure how far the bound was off the search's engine on trials that are candidates.

    Returns:
        ``trials``; bound over simulated layer time: ``ratio_p10``, ``ratio_median``, ``ratio_p90``;
        ``spearman``: rank correlation of both. Empty with fewer than two such trials.
    """
    found = [t.evaluation for t in trials if t.evaluation.bound_us is not None]
    if len(found) < 2:
        return {}
    bound = np.array([evaluation.bound_us for evaluation in found])
    simulated = np.array([evaluation.row["layer_time_us"] for evaluation in found])
    low, middle, high = np.quantile(bound / simulated, [0.1, 0.5, 0.9])
    one, other = _ranked(bound), _ranked(simulated)
    spread = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return {
        "trials": len(found),
        "ratio_p10": float(low),
        "ratio_median": float(middle),
        "ratio_p90": float(high),
        "spearman": float((one * other).sum()) / spread if spread else 1.0,
    }


def _ranked(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value, the mean rank where some are equal, less the mean of all."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - 0.5 * count)[place] - 0.5 * len(values)
