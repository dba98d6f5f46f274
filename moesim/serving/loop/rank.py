"""The scheduler of one attention rank: what its next step computes, and who waits.

Rules, in the order of a step:

1. Every decode step writes a token of each running sequence. Where blocks run out, the request
   that was admitted last loses its own and goes back to the head of the queue; what it had is
   computed again (preemption by recomputation, as in vLLM).
2. Prompts that were begun go on, then requests are admitted in order of arrival while there are
   sequences to spare and blocks for the whole prompt, for one token more of it and of every running
   sequence. The head of the queue that does not fit holds up those behind it. A step takes up to
   ``chunk`` prompt tokens.
3. Running sequences decode beside the prompt tokens, or, where steps are not mixed, if the step has
   none.
"""

import math
from collections import Counter, deque

from moesim.serving.loop.config import ServerConfig
from moesim.serving.loop.decoding import Decoding
from moesim.serving.loop.gaps import Gaps
from moesim.serving.loop.job import Job
from moesim.serving.loop.steps import StepTimes, checked_s
from moesim.serving.loop.stretch import Stretch


class Rank:
    """An attention rank of a server.

    Args:
        config: The server.
        gaps: Takes the inter-token latencies.
        prefill_only: Whether requests leave with their first token, for a decode server.

    Attributes:
        decoding: The running sequences.
        waiting: The queue.
        chunks: The prompts of the planned step, and how many tokens of each.
        decodes: Whether running sequences take part in the planned step.
        steps: How many times the planned step can be run before something else has to happen.
        peak_blocks: The most KV blocks in use so far.
    """

    __slots__ = (
        "_admitted",
        "_config",
        "_gaps",
        "_held",
        "_last_prefill",
        "_newest_s",
        "_plan_until",
        "_prefill_only",
        "_prefilling",
        "_reserved",
        "_since",
        "chunks",
        "decodes",
        "decoding",
        "peak_blocks",
        "steps",
        "waiting",
    )

    def __init__(self, config: ServerConfig, gaps: Gaps, *, prefill_only: bool) -> None:
        self._config, self._gaps, self._prefill_only = config, gaps, prefill_only
        self.decoding = Decoding(config)
        self.waiting: deque[Job] = deque()
        self.chunks: list[tuple[Job, int]] = []
        self.decodes = False
        self.steps = self.peak_blocks = 0
        #: admitted requests in that order, and those of them that are prefilled
        self._admitted: dict[int, Job] = {}
        self._prefilling: dict[int, Job] = {}
        #: KV blocks of prefilled requests here, and of those whose KV cache is being transferred
        self._reserved = self._held = 0
        self._last_prefill = -config.prefill_interval
        #: when running sequences got their newest tokens: (time, how many sequences)
        self._since: list[tuple[float, int]] = []
        self._newest_s: dict[int, float] = {}
        #: clock before which the plan stays as it is
        self._plan_until = 0

    @property
    def load(self) -> int:
        """The number of requests that wait or are admitted."""
        return len(self.waiting) + len(self._admitted)

    def blocks_for(self, tokens: int) -> int:
        """Return the number of KV blocks of so many tokens."""
        return math.ceil(tokens / self._config.block_size)

    def most_blocks(self, job: Job) -> int:
        """Return the most KV blocks that a request holds here at any time."""
        tokens = job.isl if self._prefill_only else job.most_tokens(self._config.draft_length)
        return self.blocks_for(tokens)

    def submit(self, job: Job) -> bool:
        """Put a request into the queue, and return whether that may change the planned steps."""
        self.waiting.append(job)
        if len(self.waiting) > 1 or len(self._admitted) >= self._config.max_seqs:
            return False
        self._plan_until = 0
        return True

    def release(self, job: Job) -> None:
        """Free the KV blocks of a request that have been transferred."""
        self._held -= job.blocks
        self._plan_until = 0

    def plan(self, now_s: float) -> None:
        """Decide what the next step computes.

        Args:
            now_s: When the step would begin.
        """
        clock, running = self.decoding.clock, self.decoding
        if clock < self._plan_until:
            self.steps = self._plan_until - clock
            return
        interval = self._last_prefill + self._config.prefill_interval
        due = not len(running) or clock >= interval
        if self._config.mixed:
            self._make_room(now_s)
        self._take_prompts(self._config.chunk if due else 0, now_s)
        self.decodes = len(running) > 0 and (self._config.mixed or not self.chunks)
        if self.decodes and not self._config.mixed:
            self._make_room(now_s)
        self.steps = 1 if self.chunks else 0
        if self.decodes and not self.chunks:
            self.steps = running.steps_within(self._room())
            if not due and (self.waiting or self._prefilling):
                self.steps = min(self.steps, interval - clock)
            self._plan_until = clock + self.steps

    @property
    def prompt_tokens(self) -> int:
        """The prompt tokens of the planned step."""
        return sum(count for _, count in self.chunks)

    def step_s(self, times: StepTimes, ahead: int, mean_prompt_tokens: float) -> float:
        """Return the seconds of this rank's planned step, some steps ahead.

        Args:
            times: How long steps take.
            ahead: How many steps.
            mean_prompt_tokens: Prompt tokens of a rank of the server on average.

        Raises:
            ConfigError: The model of steps returned no time.
        """
        tokens = self.prompt_tokens
        # preceding tokens, summed over new ones: the arithmetic series from `done` on
        preceding = sum(n * (job.done + (n - 1) / 2) for job, n in self.chunks)
        if tokens != mean_prompt_tokens:
            times = times.among(mean_prompt_tokens)
        return checked_s(
            times.step_s(
                prefill_tokens=tokens,
                prefill_context=preceding / tokens if tokens else 0.0,
                sequences=len(self.decoding) if self.decodes else 0,
                context=self.decoding.context(ahead) if self.decodes else 0.0,
                tokens_per_sequence=1 + self._config.draft_length,
            )
        )

    def complete(self, stretch: Stretch, steps: int, begin_s: float) -> list[Job]:
        """Finish planned steps.

        Args:
            stretch: Durations of the steps.
            steps: Number of steps that were run.
            begin_s: When the first of them began.

        Returns:
            The requests that leave this rank: they have ended, or their KV cache is to be
            transferred.
        """
        now_s = begin_s + stretch.seconds(steps)
        leaving: list[Job] = []
        if self.decodes:
            self._note_gaps(stretch, steps, begin_s, now_s)
            self._note_peak(self.decoding.blocks(steps - 1))
            leaving = self.decoding.advance(steps)
            for job in leaving:
                job.end_s = now_s
                del self._admitted[job.id]
            self._newest_s.clear()
            self._since = [(now_s, len(self.decoding))]
        elif self.chunks:
            self._note_peak(self.decoding.blocks(-1))
        if self.chunks:
            self._last_prefill = self.decoding.clock
            for job, count in self.chunks:
                job.done += count
                if job.done == job.todo:
                    leaving += self._prefilled(job, now_s)
        if leaving or self.chunks:
            self._plan_until = 0
        return leaving

    def _room(self) -> int:
        """Return the KV blocks that running sequences may have."""
        return self._config.kv_blocks - self._reserved - self._held

    def _make_room(self, now_s: float) -> None:
        """Preempt the newest requests until every running sequence can write its next token."""
        while len(self.decoding) and self.decoding.blocks(0) > self._room():
            self._preempt(next(reversed(self._admitted.values())), now_s)

    def _preempt(self, job: Job, now_s: float) -> None:
        if job in self.decoding:
            job.last_s = self._newest_s.get(job.id, self._since[0][0])
            self.decoding.remove(job)
            # a count below 0 takes one from the entry of the same time
            self._since.append((job.last_s, -1))
            # the newest token of the answer was not computed yet
            job.recomputed_tokens += job.isl + job.emitted - 1
        else:
            del self._prefilling[job.id]
            self._reserved -= job.blocks
            job.recomputed_tokens += job.done
        del self._admitted[job.id]
        job.preemptions += 1
        job.cached = False
        job.todo, job.done = job.isl + job.emitted, 0
        self.waiting.appendleft(job)

    def _take_prompts(self, budget: int, now_s: float) -> None:
        """Fill the step with prompt tokens, and admit requests for it."""
        self.chunks = []
        for job in self._prefilling.values():
            budget = self._take(job, budget)
        while self.waiting and len(self._admitted) < self._config.max_seqs:
            job = self.waiting[0]
            if not (budget or job.cached) or not self._fits(job):
                return
            self.waiting.popleft()
            self._admitted[job.id] = job
            if job.cached:
                self._emit(job, now_s)
                continue
            if job.start_s is None:
                job.start_s = now_s
            self._prefilling[job.id] = job
            self._reserved += job.blocks
            budget = self._take(job, budget)

    def _take(self, job: Job, budget: int) -> int:
        count = min(budget, job.todo - job.done)
        if count:
            self.chunks.append((job, count))
        return budget - count

    def _fits(self, job: Job) -> bool:
        """Return whether the blocks of a request are free, and note their number in it."""
        tokens = job.isl if self._prefill_only else self._first_tokens(job)
        job.blocks = self.blocks_for(tokens)
        return self.decoding.blocks(0) + job.blocks <= self._room()

    def _first_tokens(self, job: Job) -> int:
        """Return the KV tokens of a request in its first decode step."""
        draft_length = self._config.draft_length
        return min(job.isl + job.emitted + 1 + draft_length, job.most_tokens(draft_length))

    def _prefilled(self, job: Job, now_s: float) -> list[Job]:
        """Let a request go on with its next token, and return it if it leaves."""
        del self._prefilling[job.id]
        self._reserved -= job.blocks
        if self._prefill_only:
            del self._admitted[job.id]
            self._held += job.blocks
            return [job]
        self._emit(job, now_s)
        if job.emitted < job.osl:
            return []
        job.end_s = now_s
        del self._admitted[job.id]
        return [job]

    def _emit(self, job: Job, now_s: float) -> None:
        """Emit the token that a prefill gives, and let the request decode if one is left to go."""
        job.emitted += 1
        if job.first_s is None:
            job.first_s = now_s
        else:
            gap_s = now_s - job.last_s
            self._gaps.add(now_s, gap_s, gap_s, 1)
        if job.emitted < job.osl:
            self.decoding.add(job)
            self._since.append((now_s, 1))
            self._newest_s[job.id] = now_s

    def _note_gaps(self, stretch: Stretch, steps: int, begin_s: float, now_s: float) -> None:
        """Note the gaps that decode steps end."""
        first_end_s = begin_s + stretch.seconds(1)
        counts: Counter[float] = Counter()
        for since_s, count in self._since:
            counts[since_s] += count
        for since_s, count in counts.items():
            if count:
                gap_s = first_end_s - since_s
                self._gaps.add(first_end_s, gap_s, gap_s, count)
        for low_s, high_s, count in stretch.pieces(1, steps):
            self._gaps.add(now_s, low_s, high_s, count * len(self.decoding))

    def _note_peak(self, decoding_blocks: int) -> None:
        used = decoding_blocks + self._reserved + self._held
        self.peak_blocks = max(self.peak_blocks, used)
