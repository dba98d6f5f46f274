"""Where points are evaluated: in this process, in a pool of processes, or on a Dask cluster.

Every place is a `concurrent.futures.Executor` that is given chunks of points. A worker that dies
takes its chunk with it: chunks that were lost are run once more, each by itself, and a chunk that
is lost again becomes failed trials that say so. An evaluation that raises what it should not is a
failed trial with the error; nothing stops the search.
"""

import multiprocessing
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from moesim.errors import ConfigError, MoesimError, UnreachableError
from moesim.search.evaluate import Evaluation, Problem

#: points that travel together: few enough that a lost worker costs little, enough that travel does
#: not
CHUNK = 5
_DASK_TIMEOUT_S = 10
Found = tuple[Evaluation, float, float]


@lru_cache(maxsize=2)
def _problem(packed: bytes) -> Problem:
    """The problem once per worker: caches of routings and placements live as long as its cluster.
    """
    return pickle.loads(packed)


def evaluate_chunk(packed: bytes, points: list[dict[str, Any]]) -> list[Found]:
    """Evaluate points, in a worker.

    Returns:
        For each what was found, seconds it took, and when it ended.
    """
    return [evaluate_point(_problem(packed), point) for point in points]


def apply_piece(packed: bytes, function: Callable[[Problem, Any], Any], piece: Any) -> Any:
    """Apply a function to a piece of work, in a worker."""
    return function(_problem(packed), piece)


def evaluate_point(problem: Problem, point: dict[str, Any]) -> Found:
    """Evaluate one point; what should not happen becomes a failed trial that names it."""
    begun = time.perf_counter()
    try:
        found = problem.evaluate(point)
    except Exception as error:  # whatever it is, the trial's row and the end of the run say so
        found = _failed(problem, error)
    return found, time.perf_counter() - begun, time.time()


def _failed(problem: Problem, error: BaseException) -> Evaluation:
    text = " ".join(str(error).split()) or "no message"
    return Evaluation(
        row=problem.blank_row(problem.cluster),
        reason=f"{type(error).__name__}: {text}",
        failed=True,
    )


class Evaluator:
    """Evaluates batches of points in order, on whatever an executor is.

    Args:
        problem: What points are evaluated on.
        make: Makes an executor; None evaluates in this process, one point at a time.
    """

    def __init__(self, problem: Problem, make: Callable[[], Executor] | None) -> None:
        self._problem, self._make = problem, make
        self._executor: Executor | None = None
        self._packed = pickle.dumps(problem) if make else b""

    def submit(self, points: list[dict[str, Any]]) -> Callable[[], Iterator[list[Found]]]:
        """Start a batch; returns what iterates over its chunks of findings, in order."""
        if self._make is None:
            return lambda: ([evaluate_point(self._problem, point)] for point in points)
        chunks = [points[i : i + CHUNK] for i in range(0, len(points), CHUNK)]
        waiting = deque((chunk, self._start(evaluate_chunk, chunk)) for chunk in chunks)
        return lambda: self._collect(waiting)

    def map(self, function: Callable[[Problem, Any], Any], pieces: list[Any]) -> Iterator[Any]:
        """Apply a function of the problem to pieces of work, in order.

        Raises:
            MoesimError: A worker was lost twice with the same piece. The function's own errors are
                raised as they are.
        """
        if self._make is None:
            yield from (function(self._problem, piece) for piece in pieces)
            return
        waiting = deque((piece, self._start(apply_piece, function, piece)) for piece in pieces)
        while waiting:
            piece, (executor, future) = waiting.popleft()
            try:
                yield future.result()
            except BrokenExecutor:
                self._forget(executor)
                executor, future = self._start(apply_piece, function, piece)
                try:
                    yield future.result()
                except BrokenExecutor as error:
                    raise MoesimError(
                        f"executor: a worker died twice at the same piece of work: {error}"
                    ) from None

    def _start(self, function: Callable[..., Any], *work: Any) -> tuple[Executor, Future]:
        for retry in (False, True):
            if self._executor is None:
                assert self._make is not None
                self._executor = self._make()
            executor = self._executor
            try:
                return executor, executor.submit(function, self._packed, *work)
            except BrokenExecutor:
                self._forget(executor)
                if retry:
                    raise
        raise AssertionError("unreachable")

    def _forget(self, executor: Executor) -> None:
        """A broken pool breaks all that was given to it, but is replaced once."""
        if self._executor is executor:
            self._executor = None

    def _collect(self, waiting: deque) -> Iterator[list[Found]]:
        while waiting:
            chunk, (executor, future) = waiting.popleft()
            try:
                yield future.result()
            # an executor's own: the worker is gone, and the chunk with it
            except Exception as error:
                if isinstance(error, BrokenExecutor):
                    self._forget(executor)
                yield self._again(chunk)

    def _again(self, chunk: list[dict[str, Any]]) -> list[Found]:
        """A lost chunk once more, by itself: in a new pool where the old one broke."""
        executor, future = self._start(evaluate_chunk, chunk)
        try:
            return future.result()
        except Exception as error:
            if isinstance(error, BrokenExecutor):
                self._forget(executor)
            return [(_failed(self._problem, error), 0.0, time.time()) for _ in chunk]

    def close(self) -> None:
        """Let a pool of its own go; what that has not begun is not waited for."""
        if isinstance(self._executor, ProcessPoolExecutor):
            self._executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def evaluator(
    problem: Problem, executor: str | Executor | None, num_workers: int
) -> Iterator[Evaluator]:
    """An evaluator, closed at the end.

    Args:
        problem: What points are evaluated on.
        executor: An executor, ``dask://HOST:PORT`` for a scheduler, or None for processes of this
            machine.
        num_workers: How many of these; 1 evaluates in this process.

    Raises:
        ConfigError: Another text, or Dask is not installed.
        UnreachableError: No scheduler there.
    """
    client = None
    make: Callable[[], Executor] | None
    if isinstance(executor, Executor):
        make = lambda: executor  # noqa: E731
    elif executor is None:
        make = (lambda: _pool(num_workers)) if num_workers > 1 else None
    else:
        client = _dask(executor)
        make = client.get_executor
    found = Evaluator(problem, make)
    try:
        yield found
    finally:
        if not isinstance(executor, Executor):
            found.close()
        if client is not None:
            client.close()


def _pool(num_workers: int) -> Executor:
    # not forked: the parent runs threads of NumPy's and Numba's
    return ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"))


def _dask(address: str) -> Any:
    parts = urlsplit(address)
    if parts.scheme != "dask" or not parts.hostname:
        raise ConfigError(f"executor: expected dask://HOST:PORT, got {address!r}")
    try:
        from distributed import Client
    except ImportError:
        raise ConfigError("executor: Dask is not installed: pip install 'moesim[dask]'") from None
    where = f"tcp://{parts.hostname}:{parts.port or 8786}"
    try:
        return Client(where, timeout=_DASK_TIMEOUT_S, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise UnreachableError(
            f"executor: no Dask scheduler answers at {where} ({type(error).__name__})"
        ) from None
