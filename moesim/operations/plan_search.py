"""Search how to run a job: copies of experts, their refreshes, checkpoints and spare nodes.

All points meet the same failures (common random numbers), so that differences between them are
differences between the points. Points are a Latin hypercube over the choices (McKay et al. 1979,
doi 10.1080/00401706.1979.10489755); the first is the plan as written.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moesim.errors import require_int
from moesim.operations.days_result import DaysResult
from moesim.operations.days_setting import TrainingDays
from moesim.operations.failure_draws import Draws, check_runs
from moesim.operations.failure_rates import HOUR_S
from moesim.operations.plan_file import SearchRecord
from moesim.operations.training_days import simulate_days
from moesim.version import VERSION

#: numbers of `_at`
_CHOICES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatedPoint:
    """One way to run a job, over all seeds.

    Attributes:
        setting: The way.
        results: Its days, a result per seed.
    """

    setting: TrainingDays
    results: tuple[DaysResult, ...]

    @property
    def ettr(self) -> float:
        """The effective training time ratio, the mean over seeds."""
        return float(np.mean([result.ettr for result in self.results]))

    @property
    def samples_per_device_hour(self) -> float:
        """Samples in the lineage for each hour of each device, spare ones included: the mean over
        seeds.
        """
        recovery, topology = self.setting.recovery, self.setting.job.topology
        devices = topology.devices + recovery.spare_nodes * topology.devices_per_node
        goodput = np.mean([result.goodput_samples_per_s for result in self.results])
        return float(goodput) * HOUR_S / devices

    def row(self) -> dict[str, Any]:
        """Return the point as one row."""
        setting = self.setting
        mean = {
            key: float(np.mean([getattr(result, key) for result in self.results]))
            for key in ("lost_steps", "lost_updates", "lost_update_fraction", "interruptions")
        }
        return {
            "checkpoint_interval_s": setting.checkpoint.interval_s,
            "replication_degree": setting.replication.degree,
            "replication_interval_steps": setting.replication.interval_steps,
            "spare_nodes": setting.recovery.spare_nodes,
            "elastic": setting.recovery.elastic,
            "ettr": self.ettr,
            "samples_per_device_hour": self.samples_per_device_hour,
            **mean,
            "evidence": "simulated",
            "seed": self.results[0].seed,
            "seeds": len(self.results),
            "version": VERSION,
        }


def search_plan(
    setting: TrainingDays, choices: SearchRecord, points: int, *, seeds: int = 1, seed: int = 0
) -> list[OperatedPoint]:
    """Simulate points, and return them with the most samples per device-hour first.

    Args:
        setting: The plan as written.
        choices: What points choose from.
        points: Number of points.
        seeds: Number of seeds that each point is simulated with.
        seed: The first of them, and the seed of the points.

    Raises:
        ConfigError: There are too many failures, or fewer places than copies.
        CapacityError: All runs together would take too long.
    """
    require_int("search", points, 1)
    require_int("seeds", seeds, 1)
    check_runs(setting.causes, setting.job.topology, setting.days, points * seeds)
    settings = [setting, *_drawn(setting, choices, points - 1, seed)]
    # drawn once: every point meets the same failures
    draws = {one: setting.draws(one) for one in range(seed, seed + seeds)}
    found = [_simulated(one, draws) for one in settings]
    return sorted(found, key=lambda point: -point.samples_per_device_hour)


def _simulated(setting: TrainingDays, draws: dict[int, tuple[Draws, ...]]) -> OperatedPoint:
    results = tuple(simulate_days(setting, seed, drawn) for seed, drawn in draws.items())
    return OperatedPoint(setting=setting, results=results)


def _drawn(
    setting: TrainingDays, choices: SearchRecord, points: int, seed: int
) -> list[TrainingDays]:
    rng = np.random.default_rng(seed)
    strata = np.tile(np.arange(points), (_CHOICES, 1))
    rows = (rng.permuted(strata, axis=1).T + rng.random((points, _CHOICES))) / max(points, 1)
    return [_at(setting, choices, row) for row in rows.tolist()]


def _at(setting: TrainingDays, choices: SearchRecord, at: Sequence[float]) -> TrainingDays:
    """Return the way to run a job at a point of the unit cube."""
    return replace(
        setting,
        checkpoint=replace(
            setting.checkpoint, interval_s=_between(choices.checkpoint_interval_s, at[0])
        ),
        replication=replace(
            setting.replication,
            degree=_one_of(choices.replication_degree, at[1]),
            interval_steps=round(_between(choices.replication_interval_steps, at[2])),
        ),
        recovery=replace(
            setting.recovery,
            spare_nodes=_one_of(choices.spare_nodes, at[3]),
            elastic=bool(_one_of([int(one) for one in choices.elastic], at[4])),
        ),
    )


def _between(ends: Sequence[float], at: float) -> float:
    """Return a number between two ends, even on a logarithmic scale."""
    low, high = ends
    return low * float(high / low) ** at


def _one_of(values: Sequence[int], at: float) -> int:
    return values[min(int(at * len(values)), len(values) - 1)]
