"""The reference engine: SimPy discrete events, one per chunk, with fork-join over FIFO ports.

An op is cut into equal chunks. A chunk that arrives at time t joins the queue of every resource it
demands. Each resource is a FIFO server whose only state is the time at which it becomes free:
``free_r = max(t, free_r) + s_r``. The chunk ends at the latest of these times; then the op sends
its next chunk (window 1). No chunk holds one resource while it waits for another, so nothing can
deadlock. (Holding several `simpy.Resource` at once deadlocks, or serializes the ops if they are
taken in a fixed order.)

Ops that use the same port take turns chunk by chunk, so chunks of equal *fair unit* approach the
shares of the flow engine. Ties are broken by op index: SimPy's heap is ordered by (time, priority,
order) and the priority is the op index.
"""

import math

import numpy as np
import simpy

from moesim.engines.bound import run_bound
from moesim.errors import ConfigError
from moesim.program import Program, Timeline

#: number of chunks that a makespan is cut into; with 1024 the result is within 1 % of the flow
#: engine
CHUNKS_PER_MAKESPAN = 1024
MIN_CHUNKS_PER_OP = 4
#: an op with fewer demands than this walks its ports one by one, since an array operation costs
#: more
_FEW = 12


def chunks_per_op(program: Program, quantum_s: float, min_chunks: int | None = None) -> np.ndarray:
    """Return the number of chunks of each op: ndarray of shape (N,), at least ``min_chunks`` (4),
    such that each chunk has a fair unit of about ``quantum_s``.
    """
    # 1e-9 absorbs rounding, so that a whole number of quanta is not cut into one chunk more
    counts = np.ceil(program.fair_unit_s_N / quantum_s - 1e-9)
    return np.maximum(counts, MIN_CHUNKS_PER_OP if min_chunks is None else min_chunks).astype(
        np.int64
    )


def run_event(
    program: Program, *, quantum_s: float | None = None, min_chunks: int | None = None
) -> Timeline:
    """Simulate a program chunk by chunk.

    Args:
        program: The program with N ops and R resources.
        quantum_s: Fair unit of one chunk in seconds, by default the makespan of the bound / 1024;
            if it is infinite, every op has ``min_chunks`` chunks.
        min_chunks: Minimum number of chunks of an op; 4 by default.

    Returns:
        Timeline: the start (latency included) and end of every op, and the work that each resource
        served.

    Raises:
        ConfigError: The quantum is not a number > 0.
        CapacityError: Factored demands would not fit in memory once expanded.
    """
    program = program.expanded()
    n = program.num_ops
    if n == 0:
        return Timeline(
            start_s_N=np.zeros(0),
            end_s_N=np.zeros(0),
            busy_s_R=program.busy_s_R(),
            engine="event",
            makespan_s=0.0,
        )
    if quantum_s is None:
        quantum_s = max(run_bound(program).makespan_s / CHUNKS_PER_MAKESPAN, 1e-15)
    if not quantum_s > 0 or math.isnan(quantum_s):
        raise ConfigError(f"event: expected a quantum > 0 s, got {quantum_s!r}")
    chunks = chunks_per_op(program, quantum_s, min_chunks).tolist()
    run = _Run(program, chunks)
    run.run()
    # SimPy's clock begins as the integer 0, hence the conversion
    starts, ends = (np.array(values, dtype=np.float64) for values in (run.start, run.end))
    sent_N = 1.0 - np.array(run.left) / np.array(chunks)
    seconds_sent = program.demand_s() * sent_N[program.op_of_entry()]
    busy = np.bincount(program.demand_resource, seconds_sent, len(program.capacity_R))
    ptr = program.demand_ptr.tolist()
    return Timeline(
        start_s_N=starts,
        end_s_N=ends,
        busy_s_R=busy.astype(np.float64),
        engine="event",
        makespan_s=float(max(run.end)),
        events=sum(chunks[i] for i in range(n) if ptr[i] < ptr[i + 1]),
    )


class _Run:
    """The state of one run: the clock, the queues of the resources, and the progress of every op.

    An op goes through `begin`, then `serve` once per chunk and once more, then `finish`.

    Attributes:
        env: SimPy's clock and its heap of events.
        free: ndarray of shape (R,): the time at which each resource becomes free.
        left: Chunks that each op has not sent yet.
        waits_for: Number of unfinished ops that each op waits for.
        wakes: The ops that wait for each op.
        pieces: Resources of each op, and the seconds that one chunk takes on each of them.
        short: The same as pairs of plain numbers for an op with few demands; None for the others.
        start: Start of each op.
        end: End of each op.
    """

    __slots__ = (
        "end",
        "env",
        "free",
        "latency",
        "left",
        "pieces",
        "release",
        "short",
        "start",
        "waits_for",
        "wakes",
    )

    def __init__(self, program: Program, chunks: list[int]) -> None:
        n = program.num_ops
        self.env = simpy.Environment()
        self.free = np.zeros(len(program.capacity_R))
        self.left = list(chunks)
        # lists, since reading one element of an array costs several times as much
        self.latency, self.release = program.latency_s_N.tolist(), program.release_s_N.tolist()
        self.start, self.end = [0.0] * n, [0.0] * n
        ptr, seconds = program.demand_ptr.tolist(), program.demand_s()
        rows = [slice(ptr[i], ptr[i + 1]) for i in range(n)]
        self.pieces = [
            (program.demand_resource[row], seconds[row] / count)
            for row, count in zip(rows, chunks, strict=True)
        ]
        self.short = [
            list(zip(which.tolist(), each_s.tolist(), strict=True)) if len(which) < _FEW else None
            for which, each_s in self.pieces
        ]
        dep_ptr, dep_index = program.dep_ptr.tolist(), program.dep_index.tolist()
        self.waits_for = [dep_ptr[i + 1] - dep_ptr[i] for i in range(n)]
        self.wakes: list[list[int]] = [[] for _ in range(n)]
        for i in range(n):
            for dep in dep_index[dep_ptr[i] : dep_ptr[i + 1]]:
                self.wakes[dep].append(i)

    def run(self) -> None:
        """Begin every op that waits for nothing, and let the clock run until no event is left."""
        for op, waits in enumerate(self.waits_for):
            if waits == 0:
                self.begin(op)
        self.env.run()

    def begin(self, op: int) -> None:
        """Start an op whose dependencies have ended, and serve it once its latency has elapsed."""
        now = self.env.now
        self.start[op] = max(now, self.release[op])
        self._serve_after(self.start[op] - now + self.latency[op], op)

    def serve(self, event: simpy.Event) -> None:
        """Send the next chunk of an op, or finish the op if none is left."""
        # private: the public `value` is a property that checks again what `_serve_after` has set
        op = event._value
        short = self.short[op]
        # an empty list: an op without demand sends no chunk
        if self.left[op] == 0 or short == []:
            self.finish(op)
            return
        self.left[op] -= 1
        now, free = self.env.now, self.free
        if short is not None:
            done = now
            for r, s in short:
                until = max(now, free.item(r)) + s
                free[r] = until
                done = max(done, until)
        else:
            which, each_s = self.pieces[op]
            until_M = np.maximum(free[which], now)
            until_M += each_s
            free[which] = until_M
            done = float(until_M.max())
        self._serve_after(done - now, op)

    def finish(self, op: int) -> None:
        """End an op, and begin the ops for which it was the last dependency."""
        self.end[op] = self.env.now
        for other in self.wakes[op]:
            self.waits_for[other] -= 1
            if self.waits_for[other] == 0:
                self.begin(other)

    def _serve_after(self, delay: float, op: int) -> None:
        """Schedule `serve` for an op."""
        event = simpy.Event(self.env)
        # private: the public `Event.succeed` sets these two fields too, but schedules the event now
        # and with its own priority, so that neither a delay nor ties by op would be possible
        event._ok, event._value = True, op
        # replaced instead of appended to, since nothing else listens to this event
        event.callbacks = [self.serve]
        # not meant for an op index: SimPy documents two priorities, but orders equal times by any
        # integer, which makes the order of ties independent of the order of scheduling
        self.env.schedule(event, priority=op, delay=delay)  # type: ignore[arg-type]
