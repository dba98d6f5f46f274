"""A job that runs for days: how it answers to each failure, and what its time goes to."""

from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass
from math import ceil

import simpy

from moesim.operations.checkpoints import checkpoint_costs
from moesim.operations.days_result import DayEvent, DaysResult, WorkedStretch
from moesim.operations.days_setting import TrainingDays
from moesim.operations.failure_rates import DAY_S, Cause
from moesim.operations.progress import Lineage, trained
from moesim.operations.recovery import NodePool
from moesim.operations.replication import replication_costs

_REJOIN = Cause(name="rejoin", scope="job", planned=True)
Process = Generator[simpy.Event, object, None]


@dataclass(slots=True)
class Arrival:
    """A failure on its way to the job.

    Attributes:
        cause: Its cause.
        device: The device at which it begins.
        clean: Steps of the last checkpoint that lasted when it came, if it is silent.
        noticed: Whether a hidden one has been found.
    """

    cause: Cause
    device: int
    clean: int = 0
    noticed: bool = False

    @property
    def hidden(self) -> bool:
        """Whether the job goes on, since nobody knows."""
        return not self.noticed and (self.cause.silent or self.cause.slowdown > 1)


class RunningJob:
    """The job, and what its time went to."""

    def __init__(self, env: simpy.Environment, setting: TrainingDays) -> None:
        self.env, self.setting = env, setting
        self.devices = self.running = setting.job.devices
        self.checkpoints = checkpoint_costs(setting.checkpoint, setting.job)
        self.copies = replication_costs(setting.replication, setting.job)
        self.pool = NodePool(setting.recovery, setting.job.topology)
        self.lineage = Lineage()
        self.inbox: list[Arrival] = []
        self.news = env.event()
        self.stragglers: list[Arrival] = []
        #: devices whose experts are on their way back from copies
        self.restoring: set[int] = set()
        #: device -> steps of the model from which on its copies are whole again
        self.stale: dict[int, int] = {}
        #: experts of a turn -> steps of the model when they last went on from an older copy
        self.resumed = [0] * self.checkpoints.expert_turns
        self.began_s = 0.0
        self.standing: tuple[Arrival, str, tuple[int, float]] | None = None
        self.computed = self.lost = 0
        self.lost_updates = 0.0
        self.slow_s = self.replication_s = self.checkpoint_s = self.cut_s = 0.0
        self.down_s: dict[str, float] = defaultdict(float)
        self.events: list[DayEvent] = []
        self.stretches: list[WorkedStretch] = []

    def tell(self, arrival: Arrival) -> None:
        """Hand a failure to the job."""
        self.inbox.append(arrival)
        if not self.news.triggered:
            self.news.succeed()

    def run(self) -> Process:
        """Train, and come back after each failure."""
        while True:
            if not self.inbox:
                self.began_s, self.running = self.env.now, self.pool.devices
                self.news = self.env.event()
                yield self.news
                self._train()
            yield from self._handle(self.inbox.pop(0))

    def _step_s(self) -> float:
        slowest = max((one.cause.slowdown for one in self.stragglers), default=1.0)
        fewer = self.devices / max(self.running, 1)
        return self.setting.job.step_s * slowest * fewer

    def _train(self) -> None:
        """Account for the stretch that ends now."""
        step_s, nominal_s = self._step_s(), self.setting.job.step_s
        refresh_s = self.copies.exposed_s / self.setting.replication.interval_steps
        costs, left = self.checkpoints, self.checkpoints.interval_steps - self.lineage.since
        done = trained(self.lineage, costs, step_s + refresh_s, self.began_s, self.env.now)
        self.stretches.append(
            WorkedStretch(
                begin_s=self.began_s,
                end_s=self.env.now,
                step_s=step_s + refresh_s,
                until_checkpoint=left,
                interval_steps=costs.interval_steps,
                checkpoints=done.checkpoints,
                block_s=costs.block_s,
                steps=done.steps,
                cut_s=done.cut_s,
            )
        )
        self.computed += done.steps
        self.slow_s += done.steps * (step_s - nominal_s)
        self.replication_s += done.steps * refresh_s
        self.checkpoint_s += done.checkpoints * self.checkpoints.block_s
        self.cut_s += done.cut_s

    def _handle(self, arrival: Arrival) -> Process:
        cause, before = arrival.cause, (self.lost, self.lost_updates)
        if arrival.hidden:
            self._hide(arrival)
            response = "silent" if cause.silent else "slow"
            self._record(arrival, response, (self.env.now, 0.0), before)
            return
        began_s = self.env.now
        response, pause_s = self._respond(arrival)
        self.standing, self.began_s = (arrival, response, before), began_s
        while (left_s := began_s + pause_s - self.env.now) > 0:
            self.news = self.env.event()
            yield self.env.timeout(left_s) | self.news
            # what is hidden changes nothing now; anything else begins a recovery of its own
            if any(not one.hidden for one in self.inbox):
                break
        else:
            self.restoring.clear()
        self._stood(self.env.now)

    def _stood(self, now_s: float) -> None:
        """Account for the stop that ends now."""
        assert self.standing is not None
        (arrival, response, before), self.standing = self.standing, None
        down_s = now_s - self.began_s
        self.down_s[arrival.cause.name] += down_s
        self._record(arrival, response, (self.began_s, down_s), before)

    def _hide(self, arrival: Arrival) -> None:
        """Go on until it is noticed."""
        self.lineage.settle(self.env.now)
        arrival.clean = self.lineage.durable
        if arrival.cause.slowdown > 1:
            self.stragglers.append(arrival)
        self.env.process(self._notice(arrival))

    def _notice(self, arrival: Arrival) -> Process:
        yield self.env.timeout(self._detection_s(arrival.cause))
        arrival.noticed = True
        self.tell(arrival)

    def _detection_s(self, cause: Cause) -> float:
        own = cause.detection_s
        return self.setting.recovery.detection_s if own is None else own

    def _respond(self, arrival: Arrival) -> tuple[str, float]:
        """Change the state of the job, and return the response with the seconds it takes."""
        cause, recovery = arrival.cause, self.setting.recovery
        self.lineage.settle(self.env.now)
        if cause is _REJOIN:
            job = self.setting.job
            fetch_s = job.state_bytes / self.devices / job.nic_bytes_per_s
            return "rejoin", recovery.rejoin_s + fetch_s
        wait_s = self._replace(arrival)
        if cause.planned or cause.slowdown > 1:
            self.stragglers = [one for one in self.stragglers if one is not arrival]
            self.lineage.saved()
            ready_s = self.checkpoints.block_s + recovery.restart_s + self.checkpoints.read_s(0.0)
            return "planned" if cause.planned else "replaced", wait_s + ready_s
        found_s = 0.0 if cause.silent else self._detection_s(cause)
        lost = self.setting.job.topology.lost(cause, arrival.device)
        if lost and not cause.silent and self._copied(self.restoring.union(lost)):
            self._fail_over(lost)
            ready_s = self.setting.replication.failover_s + self.copies.restore_s
            return "failover", found_s + wait_s + ready_s
        share = 1.0 if cause.silent else len(lost) / self.devices
        self._roll_back(arrival, share)
        return "rollback", found_s + wait_s + recovery.restart_s + self.checkpoints.read_s(share)

    def _replace(self, arrival: Arrival) -> float:
        """Send what failed to repair, and return the seconds until there is a replacement."""
        topology, own = self.setting.job.topology, arrival.cause.repair_s
        repair_s = self.setting.recovery.repair_s if own is None else own
        lost = topology.lost(arrival.cause, arrival.device)
        if not lost or repair_s == 0 or arrival.cause.planned:
            # nodes that failed before may still be missing
            return self.pool.wait_s(self.env.now)
        nodes = ceil(len(lost) / topology.devices_per_node)
        self.env.process(self._repair(nodes, repair_s))
        return self.pool.fail(nodes, self.env.now, repair_s)

    def _repair(self, nodes: int, repair_s: float) -> Process:
        yield self.env.timeout(repair_s)
        self.pool.repaired(nodes)
        # a job that stands begins with them; one that trains has to stop for them
        if self.standing is None and self.pool.devices > self.running:
            self.tell(Arrival(_REJOIN, 0))

    def _copied(self, lost: set[int]) -> bool:
        """Return whether all experts of lost devices have a copy that lives and is whole."""
        if self.setting.replication.degree == 0:
            return False
        position = self.lineage.position
        return all(
            any(
                holder not in lost and self.stale.get(holder, 0) <= position
                for holder in self.copies.holders(device, self.devices)
            )
            for device in lost
        )

    def _fail_over(self, lost: range) -> None:
        """Let the lost experts resume from their last copies."""
        position, step_s = self.lineage.position, self._step_s()
        experts = self.setting.job.num_experts * len(lost) / self.devices
        self.lost_updates += experts * self.copies.age_steps(position, step_s)
        # copies that the devices held for others are whole again after the next refresh
        every = self.setting.replication.interval_steps
        again = (position // every + 1) * every + self.copies.transfer_steps(step_s)
        self.stale |= dict.fromkeys(lost, again)
        self.restoring.update(lost)

    def _roll_back(self, arrival: Arrival, share: float) -> None:
        """Go back to a checkpoint, in which experts may be older, after a share of the devices
        failed.
        """
        self.restoring.clear()
        if self.checkpoints.from_hosts_s is not None and share == 0.0:
            # what hosts hold need not have been written
            self.lineage.settle(float("inf"))
        if arrival.cause.silent:
            self.lineage.durable = min(self.lineage.durable, arrival.clean)
        self.lost += self.lineage.rolled_back(self.checkpoints.reach_steps)
        self.lost_updates += self._stale_updates(share)

    def _stale_updates(self, share: float) -> float:
        """Return the expert-steps that partial checkpoints lack, up to the last one that lasts.

        Experts were saved turn by turn. Steps that an expert lost before, and has not been saved
        since, are not lost again. Where hosts hold all states, only experts of failed devices come
        from storage.
        """
        from_storage = 1.0 if self.checkpoints.from_hosts_s is None else share
        if not from_storage:
            return 0.0
        turns, every = self.checkpoints.expert_turns, self.checkpoints.interval_steps
        durable, behind = self.lineage.durable, 0
        for turn in range(1, turns):
            group = (durable // every - turn) % turns
            known = max(durable - turn * every, self.resumed[group], 0)
            behind += max(durable - known, 0)
            if from_storage == 1.0:
                self.resumed[group] = durable
        return self.setting.job.num_experts / turns * behind * from_storage

    def _record(
        self,
        arrival: Arrival,
        response: str,
        stop_s: tuple[float, float],
        before: tuple[int, float],
    ) -> None:
        """Note an event: when it began and how long it took, and what was lost before it."""
        began_s, down_s = stop_s
        self.events.append(
            DayEvent(
                time_s=began_s,
                cause=arrival.cause.name,
                scope=arrival.cause.scope,
                device=arrival.device,
                response=response,
                down_s=down_s,
                lost_steps=self.lost - before[0],
                lost_updates=self.lost_updates - before[1],
                devices=self.pool.devices,
                spares=self.pool.spares,
            )
        )

    def result(self, seed: int) -> DaysResult:
        """Return what the days came to, the present stretch or pause included."""
        if self.standing is not None:
            self._stood(self.setting.days * DAY_S)
        else:
            self._train()
        responses = [event.response for event in self.events]
        return DaysResult(
            job=self.setting.job,
            days=self.setting.days,
            seed=seed,
            useful_steps=self.computed - self.lost,
            lost_steps=self.lost,
            slow_s=self.slow_s,
            replication_s=self.replication_s,
            checkpoint_s=self.checkpoint_s,
            cut_s=self.cut_s,
            down_s_by_cause=dict(self.down_s),
            interruptions=sum(response not in ("slow", "silent") for response in responses),
            failovers=responses.count("failover"),
            rollbacks=responses.count("rollback"),
            lost_updates=self.lost_updates,
            events=tuple(self.events),
            stretches=tuple(self.stretches),
        )
