"""The sequences that decode together on a rank.

All of them run every decode step of the rank, so that one clock, which counts these steps, stands
for the progress of all: a sequence is a context at step 0 of the clock and a step at which it ends.

Shape legend: B sequences.
"""

import heapq
from bisect import bisect_right

import numpy as np

from moesim.serving.loop.config import ServerConfig
from moesim.serving.loop.job import Job

#: of a block: expected tokens of speculative decoding are no whole numbers, and rounding of their
#: sums must not begin a block
_ROUNDING = 1e-9


class Decoding:
    """Sequences that are decoded on a rank.

    Attributes:
        clock: Number of decode steps of the rank so far.
        rate: Tokens that a sequence gains in a step.
    """

    __slots__ = (
        "_base_B",
        "_blocks_at",
        "_context_at_0",
        "_draft_length",
        "_ends",
        "_jobs",
        "_joined",
        "_most_B",
        "_row",
        "_size",
        "clock",
        "rate",
    )

    def __init__(self, config: ServerConfig) -> None:
        self.clock = 0
        self.rate = config.tokens_per_step
        self._draft_length, self._size = config.draft_length, config.block_size
        #: job in each row of the arrays, row of each job, and (clock, tokens emitted) at its start
        self._jobs: list[Job] = []
        self._row: dict[int, int] = {}
        self._joined: dict[int, tuple[int, int]] = {}
        #: tokens that the next step attends to if the clock were 0, and the most of a KV cache
        self._base_B, self._most_B = np.zeros(8), np.zeros(8)
        self._context_at_0 = 0.0
        #: (clock at the end, job id); those of preempted jobs stay until they come up
        self._ends: list[tuple[int, int]] = []
        self._blocks_at: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job: Job) -> bool:
        return job.id in self._row

    def add(self, job: Job) -> None:
        """Add a sequence that has emitted at least one token and has at least one to go."""
        row = len(self._jobs)
        if row == len(self._base_B):
            self._base_B, self._most_B = (
                np.concatenate([a, np.zeros(row)]) for a in (self._base_B, self._most_B)
            )
        base = job.isl + job.emitted - self.rate * self.clock
        self._base_B[row], self._most_B[row] = base, job.most_tokens(self._draft_length)
        self._context_at_0 += base
        self._jobs.append(job)
        self._row[job.id], self._joined[job.id] = row, (self.clock, job.emitted)
        heapq.heappush(self._ends, (self._end(job), job.id))
        self._blocks_at.clear()

    def remove(self, job: Job) -> None:
        """Take a sequence out, and note in the job how many tokens it has emitted."""
        joined, emitted = self._joined.pop(job.id)
        gained = int(self.rate * (self.clock - joined) + _ROUNDING)
        job.emitted = min(emitted + gained, job.osl)
        # the last row takes the place of the one that leaves
        row, last = self._row.pop(job.id), self._jobs.pop()
        self._context_at_0 -= float(self._base_B[row])
        if last is not job:
            self._jobs[row], self._row[last.id] = last, row
            self._base_B[row] = self._base_B[len(self._jobs)]
            self._most_B[row] = self._most_B[len(self._jobs)]
        self._blocks_at.clear()

    def advance(self, steps: int) -> list[Job]:
        """Run decode steps.

        Args:
            steps: Their number, not beyond the first end.

        Returns:
            The jobs that have ended, which are taken out, in order of their ids.
        """
        self.clock += steps
        ended = []
        while self._ends and self._ends[0][0] <= self.clock:
            end, number = heapq.heappop(self._ends)
            row = self._row.get(number)
            if row is not None and self._end(self._jobs[row]) == end:
                ended.append(self._jobs[row])
                self.remove(self._jobs[row])
        return ended

    def context(self, ahead: int) -> float:
        """Return the mean number of tokens that a sequence attends to, some steps ahead."""
        return self._context_at_0 / len(self._jobs) + self.rate * (self.clock + ahead)

    def blocks(self, ahead: int) -> int:
        """Return the KV blocks that the sequences hold in the step that is so many ahead; -1 is the
        step before the next.
        """
        clock = self.clock + ahead
        if clock not in self._blocks_at:
            count = len(self._jobs)
            tokens_B = self._base_B[:count] + (self.rate * clock + self._draft_length)
            np.minimum(tokens_B, self._most_B[:count], out=tokens_B)
            self._blocks_at[clock] = int(np.ceil(tokens_B / self._size - _ROUNDING).sum())
        return self._blocks_at[clock]

    def steps_within(self, blocks: int) -> int:
        """Return the number of steps until a sequence ends or the next step needs more blocks."""
        while self._ends[0][1] not in self._row or self._stale(*self._ends[0]):
            heapq.heappop(self._ends)
        steps = self._ends[0][0] - self.clock
        if self.blocks(steps - 1) <= blocks:
            return steps
        return bisect_right(range(steps), blocks, key=self.blocks)

    def _end(self, job: Job) -> int:
        joined, emitted = self._joined[job.id]
        return joined + int(np.ceil((job.osl - emitted) / self.rate - _ROUNDING))

    def _stale(self, end: int, number: int) -> bool:
        return self._end(self._jobs[self._row[number]]) != end
