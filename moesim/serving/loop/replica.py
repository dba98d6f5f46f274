"""A server whose ranks run their steps together, and a pool of such servers.

Ranks meet in every step, so that a step lasts as long as on the slowest rank. Steps without prompt
tokens are jumped over (`moesim.serving.loop.stretch`) until a sequence ends, blocks run out, a
prompt may be begun, or a request arrives that can be admitted; a jump stops at the end of the step
in which that happens.
"""

from collections.abc import Callable, Generator, Iterable
from functools import partial

import simpy

from moesim.errors import ConfigError
from moesim.serving.loop.config import ServerConfig
from moesim.serving.loop.gaps import Gaps
from moesim.serving.loop.job import Job
from moesim.serving.loop.rank import Rank
from moesim.serving.loop.steps import StepTimes
from moesim.serving.loop.stretch import Stretch
from moesim.serving.loop.watching import StepWatch


class Replica:
    """One server.

    Args:
        env: The simulation.
        ranks: Its attention ranks.
        times: How long steps take.
        tolerance: Relative error of the time of steps that are jumped over; 0 runs every step.
        watch: Takes steps that have run, with the name of the server; None for nobody.

    Attributes:
        ranks: Its attention ranks.
        steps: Number of steps that were run.
    """

    def __init__(
        self,
        env: simpy.Environment,
        ranks: list[Rank],
        times: StepTimes,
        tolerance: float,
        watch: Callable[[float, Stretch, int, list[Rank]], None] | None = None,
    ) -> None:
        self.ranks, self.steps, self._watch = ranks, 0, watch
        self._env, self._times, self._tolerance = env, times, tolerance
        #: what ends an idle wait or a jump; None in a step that cannot be cut short
        self._wake: simpy.Event | None = None

    def nudge(self) -> None:
        """Let the server look at its queues at the end of the step under way."""
        if self._wake is not None and not self._wake.triggered:
            self._wake.succeed()

    def run(self, leave: Callable[[Job], None]) -> Generator[simpy.Event, None, None]:
        """Run steps for as long as the simulation goes on.

        Args:
            leave: Takes each request that leaves, in order of their ids.
        """
        while True:
            begin_s = self._env.now
            for rank in self.ranks:
                rank.plan(begin_s)
            active = [rank for rank in self.ranks if rank.steps]
            if not active:
                self._wake = self._env.event()
                yield self._wake
                continue
            stretch = Stretch(
                partial(self._slowest_s, active),
                min(rank.steps for rank in active) if self._tolerance else 1,
                self._tolerance,
            )
            steps = yield from self._wait(stretch, begin_s)
            self.steps += steps
            leaving: list[Job] = []
            if steps:
                if self._watch is not None:
                    self._watch(begin_s, stretch, steps, active)
                for rank in active:
                    leaving += rank.complete(stretch, steps, begin_s)
            for job in sorted(leaving, key=lambda job: job.id):
                leave(job)

    def _slowest_s(self, ranks: list[Rank], ahead: int) -> float:
        """Return the seconds of a step some steps ahead, on the slowest of some ranks."""
        mean = sum(rank.prompt_tokens for rank in ranks) / len(self.ranks)
        return max(rank.step_s(self._times, ahead, mean) for rank in ranks)

    def _wait(self, stretch: Stretch, begin_s: float) -> Generator[simpy.Event, None, int]:
        """Wait until the steps are over, or the one in which something arrives; return how many."""
        self._wake = None
        done = self._env.timeout(stretch.seconds(stretch.steps))
        if stretch.steps == 1:
            yield done
            return 1
        self._wake = self._env.event()
        yield done | self._wake
        self._wake = None
        if done.processed:
            return stretch.steps
        steps = stretch.steps_by(self._env.now - begin_s)
        yield self._env.timeout(max(begin_s + stretch.seconds(steps) - self._env.now, 0.0))
        return steps


class Pool:
    """Equal servers, and whom they send requests to.

    A request goes to the rank with the fewest requests, waiting or admitted; among equals to the
    first rank of the first server.

    Args:
        env: The simulation.
        times: How long steps take.
        config: The servers.
        gaps: Takes the inter-token latencies.
        prefill_only: Whether requests leave with their first token.
        name: Name of the pool in errors.
        watch: Takes the steps that its servers have run; None for nobody.
    """

    def __init__(
        self,
        env: simpy.Environment,
        times: StepTimes,
        config: ServerConfig,
        gaps: Gaps,
        *,
        prefill_only: bool = False,
        name: str = "server",
        watch: StepWatch | None = None,
    ) -> None:
        self.config, self._name = config, name
        self._replicas = [
            Replica(
                env,
                [Rank(config, gaps, prefill_only=prefill_only) for _ in range(config.dp)],
                times,
                config.tolerance,
                None if watch is None else partial(watch, f"{name} {number}"),
            )
            for number in range(config.replicas)
        ]
        self._env = env
        self._ranks = [(rank, server) for server in self._replicas for rank in server.ranks]
        self._home: dict[int, tuple[Rank, Replica]] = {}

    @property
    def steps(self) -> int:
        """The number of steps that all servers have run."""
        return sum(server.steps for server in self._replicas)

    @property
    def peak_blocks(self) -> int:
        """The most KV blocks that a rank has had in use."""
        return max(rank.peak_blocks for rank, _ in self._ranks)

    def check(self, jobs: Iterable[Job]) -> None:
        """Refuse requests that can never be served.

        Raises:
            ConfigError: A request needs more KV blocks than a rank has.
        """
        rank, have = self._ranks[0][0], self.config.kv_blocks
        for job in jobs:
            need = rank.most_blocks(job)
            if need > have:
                raise ConfigError(
                    f"{self._name}.kv_blocks: expected at least {need} blocks of "
                    f"{self.config.block_size} tokens for request {job.id} (isl {job.isl}, osl "
                    f"{job.osl}), got {have}: {need - have} too few"
                )

    def start(self, leave: Callable[[Job], None]) -> None:
        """Start the servers.

        Args:
            leave: Takes each request that leaves.
        """
        for server in self._replicas:
            self._env.process(server.run(leave))

    def submit(self, job: Job) -> None:
        """Send a request to a rank."""
        rank, server = min(self._ranks, key=lambda pair: pair[0].load)
        self._home[job.id] = rank, server
        if rank.submit(job):
            server.nudge()

    def release(self, job: Job) -> None:
        """Free the KV blocks of a request that have been transferred from here."""
        rank, server = self._home[job.id]
        rank.release(job)
        server.nudge()
