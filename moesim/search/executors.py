"""Evaluate points in this process, in a pool of processes, or on a Dask cluster.

Pools and clusters are a `concurrent.futures.Executor` that receives chunks of points. A worker that
dies loses its chunk. A lost chunk runs once more, alone; if it is lost again, its points become
failed trials that say so. An evaluation that raises an unexpected error becomes a failed trial with
that error. Nothing stops the search.
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
from moesim.files import toml
from moesim.files.addresses import without_password
from moesim.search.problem import Evaluation, SearchProblem

#: points that are sent together: few enough that a lost worker costs little, and enough that
#: sending costs little
CHUNK = 5
_DASK_TIMEOUT_S = 10
Found = tuple[Evaluation, float, float]


@lru_cache(maxsize=2)
def _problem(packed: bytes) -> SearchProblem:
    """Unpack the problem once per worker: caches of routings and placements live as long as its
    cluster.
    """
    return pickle.loads(packed)


def evaluate_chunk(packed: bytes, points: list[dict[str, Any]]) -> list[Found]:
    """Evaluate points, in a worker.

    Returns:
        For each point its evaluation, the seconds it took, and when it ended.
    """
    with toml.same_files():
        return [evaluate_point(_problem(packed), point) for point in points]


def apply_piece(packed: bytes, function: Callable[[Any, Any], Any], piece: Any) -> Any:
    """Apply a function to a piece of work, in a worker."""
    with toml.same_files():
        return function(_problem(packed), piece)


def evaluate_point(problem: SearchProblem, point: dict[str, Any]) -> Found:
    """Evaluate one point; an unexpected error becomes a failed trial that names it."""
    begun = time.perf_counter()
    try:
        found = problem.evaluate(point)
    except Exception as error:  # the trial's row and the end of the run report it
        found = _failed(problem, error)
    return found, time.perf_counter() - begun, time.time()


def _failed(problem: SearchProblem, error: BaseException) -> Evaluation:
    text = " ".join(str(error).split()) or "no message"
    return Evaluation(
        row=problem.blank_row(problem.cluster),
        reason=f"{type(error).__name__}: {text}",
        failed=True,
    )


class Evaluator:
    """Evaluate batches of points in order, on any executor.

    Args:
        problem: The problem that the points belong to.
        make: Function that makes an executor; None evaluates in this process, one point at a time.
    """

    def __init__(self, problem: SearchProblem, make: Callable[[], Executor] | None) -> None:
        self._problem, self._make = problem, make
        self._executor: Executor | None = None
        self._packed = pickle.dumps(problem) if make else b""

    def submit(self, points: list[dict[str, Any]]) -> Callable[[], Iterator[list[Found]]]:
        """Start a batch, and return a function that yields its chunks of findings in order."""
        if self._make is None:
            return lambda: ([evaluate_point(self._problem, point)] for point in points)
        chunks = [points[i : i + CHUNK] for i in range(0, len(points), CHUNK)]
        waiting = deque((chunk, self._start(evaluate_chunk, chunk)) for chunk in chunks)
        return lambda: self._collect(waiting)

    def map(self, function: Callable[[Any, Any], Any], pieces: list[Any]) -> Iterator[Any]:
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
        """Drop a broken pool: all of its pending work fails, but it is replaced only once."""
        if self._executor is executor:
            self._executor = None

    def _collect(self, waiting: deque) -> Iterator[list[Found]]:
        while waiting:
            chunk, (executor, future) = waiting.popleft()
            try:
                yield future.result()
            # an error of the executor itself: the worker is gone, and the chunk with it
            except Exception as error:
                if isinstance(error, BrokenExecutor):
                    self._forget(executor)
                yield self._again(chunk)

    def _again(self, chunk: list[dict[str, Any]]) -> list[Found]:
        """Run a lost chunk once more, alone, in a new pool if the old one broke."""
        executor, future = self._start(evaluate_chunk, chunk)
        try:
            return future.result()
        except Exception as error:
            if isinstance(error, BrokenExecutor):
                self._forget(executor)
            return [(_failed(self._problem, error), 0.0, time.time()) for _ in chunk]

    def close(self) -> None:
        """Shut down a pool that was made here, and cancel the work that has not begun."""
        if isinstance(self._executor, ProcessPoolExecutor):
            self._executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def evaluator(
    problem: SearchProblem, executor: str | Executor | None, num_workers: int
) -> Iterator[Evaluator]:
    """Provide an evaluator, and close it at the end.

    Args:
        problem: The problem that the points belong to.
        executor: An executor, ``dask://HOST:PORT`` for a scheduler, or None for processes of this
            machine.
        num_workers: Number of such processes; 1 evaluates in this process.

    Raises:
        ConfigError: The text has another form, or Dask is not installed.
        UnreachableError: No scheduler answers there.
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
    # spawned, not forked, since the parent runs threads of NumPy and Numba
    return ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"))


def _dask(address: str) -> Any:
    parts = urlsplit(address)
    if parts.scheme != "dask" or not parts.hostname:
        raise ConfigError(f"executor: expected dask://HOST:PORT, got {without_password(address)!r}")
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
