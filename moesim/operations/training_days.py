"""Days of training with failures: a SimPy process for each cause, and one for the job.

Nothing is simulated step by step: between two events a stretch of steps and checkpoints has a
closed form (`moesim.operations.progress`), so that a month of 16,384 devices is a few hundred
events. Failures come at any time, also while the job stands: then its recovery begins anew.

What a failure does:

- of a ``job``: all processes end; the job goes back to the last checkpoint that lasts.
- of devices: the same, unless the experts on them have copies that live
  (`moesim.operations.replication`): then nothing is rolled back, and those experts resume from a
  copy. A copy that was lost itself counts again once it has been refreshed.
- planned: a checkpoint, then a restart.
- slow: steps take longer until it is noticed; then the node is replaced as in a planned stop.
- silent: once it is noticed, the job goes back to the last checkpoint before it.
"""

from collections.abc import Sequence

import simpy

from moesim.operations.days_result import DaysResult
from moesim.operations.days_setting import TrainingDays
from moesim.operations.failure_draws import Draws
from moesim.operations.failure_rates import DAY_S
from moesim.operations.running_job import Arrival, Process, RunningJob


def simulate_days(
    setting: TrainingDays, seed: int = 0, draws: Sequence[Draws] | None = None
) -> DaysResult:
    """Simulate days of training.

    Args:
        setting: The job and how it is run.
        seed: Seed of the failures.
        draws: Failures that were drawn before; by default those of the seed.

    Raises:
        ConfigError: There are too many failures to tell, or fewer places than copies.
    """
    drawn = setting.draws(seed) if draws is None else draws
    env = simpy.Environment()
    job = RunningJob(env, setting)
    for one in drawn:
        if len(one.time_s_F):
            env.process(_failing(env, one, job))
    env.process(job.run())
    env.run(until=setting.days * DAY_S)
    return job.result(seed)


def _failing(env: simpy.Environment, draws: Draws, job: RunningJob) -> Process:
    """Let the failures of a cause happen; fewer devices have fewer."""
    whole = draws.cause.per_second(0) / draws.cause.per_second(job.devices)
    for time_s, device, chance in zip(
        draws.time_s_F.tolist(), draws.device_F.tolist(), draws.chance_F.tolist(), strict=True
    ):
        yield env.timeout(time_s - env.now)
        share = job.pool.devices / job.devices
        if chance < whole + (1.0 - whole) * share:
            job.tell(Arrival(draws.cause, device))
