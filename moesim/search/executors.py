"""Evaluate points in this process, in a pool of processes, or on a Dask cluster.

Pools and clusters are a `concurrent.futures.Executor` that receives chunks of points. A worker that
dies loses its chunk. A lost chunk runs once more, and then its points one by one; a point that
takes its worker along each time ends the search, since a lost worker says nothing about a design:
what is finished is kept, and the same command tries again. An evaluation that raises an unexpected
error becomes a failed trial with that error.
"""

import logging
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from moesim.errors import ConfigError, MoesimError, UnreachableError, shown
from moesim.files import toml
from moesim.files.addresses import without_password
from moesim.processes import Workers
from moesim.search.problem import Evaluation, SearchProblem

#: points that are sent together: few enough that a lost worker costs little, and enough that
#: sending costs little
CHUNK = 5
_DASK_TIMEOUT_S = 10
#: how often a wait for a cluster looks whether its scheduler is there, and how long it may be away
_LOOK_S, _AWAY_S = 1.0, 10.0
#: what says something about this machine, not about the design that was evaluated
_NOT_THE_DESIGN = (MemoryError, OSError)
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
    """Evaluate one point; an unexpected error becomes a failed trial that names it.

    Raises:
        MemoryError: This machine has too little memory at the moment.
        OSError: The system refused to read or write.
    """
    begun = time.perf_counter()
    try:
        found = problem.evaluate(point)
    except _NOT_THE_DESIGN:
        raise
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
        check: Function that raises an error once nothing more can come of an executor.
    """

    def __init__(
        self,
        problem: SearchProblem,
        make: Callable[[], Executor] | None,
        check: Callable[[], None] | None = None,
    ) -> None:
        self._problem, self._make, self._check = problem, make, check
        self._executor: Executor | None = None
        self._packed = pickle.dumps(problem) if make else b""

    def submit(self, points: list[dict[str, Any]]) -> Callable[[], Iterator[list[Found]]]:
        """Start a batch, and return a function that yields its chunks of findings in order.

        Raises:
            UnreachableError: Workers are lost again and again, or the cluster went away.
        """
        if self._make is None:
            return lambda: ([evaluate_point(self._problem, point)] for point in points)
        chunks = [points[i : i + CHUNK] for i in range(0, len(points), CHUNK)]
        waiting = deque((chunk, self._start(evaluate_chunk, chunk)) for chunk in chunks)
        return lambda: self._collect(waiting)

    def map(self, function: Callable[[Any, Any], Any], pieces: list[Any]) -> Iterator[Any]:
        """Apply a function of the problem to pieces of work, in order.

        Raises:
            UnreachableError: A worker was lost twice with the same piece. The function's own errors
                are raised as they are.
        """
        if self._make is None:
            yield from (function(self._problem, piece) for piece in pieces)
            return
        waiting = deque((piece, self._start(apply_piece, function, piece)) for piece in pieces)
        while waiting:
            piece, started = waiting.popleft()
            try:
                yield self._result(started)
            except BrokenExecutor:
                try:
                    yield self._result(self._start(apply_piece, function, piece))
                except BrokenExecutor as error:
                    raise _lost("a piece of work", error) from None

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

    def _result(self, started: tuple[Executor, Future]) -> Any:
        """Wait for work, as long as anything can come of it."""
        executor, future = started
        while True:
            try:
                return future.result(_LOOK_S if self._check else None)
            except BrokenExecutor:
                self._forget(executor)
                raise
            except TimeoutError:
                if self._check is None or future.done():
                    raise  # the work's own
                self._check()

    def _forget(self, executor: Executor) -> None:
        """Drop a broken pool: all of its pending work fails, but it is replaced only once."""
        if self._executor is executor:
            self._executor = None

    def _collect(self, waiting: deque) -> Iterator[list[Found]]:
        while waiting:
            chunk, started = waiting.popleft()
            try:
                yield self._result(started)
            except MoesimError:
                raise
            except Exception:
                # the executor's own error: the worker is gone, and the chunk with it
                yield self._again(chunk)

    def _again(self, chunk: list[dict[str, Any]]) -> list[Found]:
        """Run a lost chunk once more, in a new pool if the old one broke, then point by point."""
        if self._check:
            self._check()
        try:
            return self._result(self._start(evaluate_chunk, chunk))
        except MoesimError:
            raise
        except Exception as error:
            if len(chunk) == 1:
                raise _lost(f"a trial with {shown(chunk[0])}", error) from None
        return [self._again([point])[0] for point in chunk]

    def close(self, *, kill: bool) -> None:
        """Shut down a pool that was made here.

        Args:
            kill: Whether to end its work at once; otherwise work that has begun goes on to its end.
        """
        if isinstance(self._executor, Workers):
            if kill:
                self._executor.kill()
            else:
                self._executor.shutdown(wait=True, cancel_futures=True)


def _lost(what: str, error: BaseException) -> UnreachableError:
    said = str(error) or type(error).__name__
    return UnreachableError(
        f"executor: {what} took its worker along each time it ran ({said}); finished trials are "
        "kept, and the same command tries again"
    )


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
    client = check = None
    make: Callable[[], Executor] | None
    if isinstance(executor, Executor):
        make = lambda: executor  # noqa: E731
    elif executor is None:
        make = (lambda: Workers(num_workers)) if num_workers > 1 else None
    else:
        client = _dask(executor)
        make, check = client.get_executor, _Scheduler(client, executor).check
    found = Evaluator(problem, make, check)
    kill = True
    try:
        yield found
        kill = False
    finally:
        if not isinstance(executor, Executor):
            found.close(kill=kill)
        if client is not None:
            client.close(timeout=_LOOK_S if kill else _DASK_TIMEOUT_S)


class _Scheduler:
    """Whether a Dask scheduler is there.

    Args:
        client: The client that is connected to it.
        address: Its address, for errors.
    """

    def __init__(self, client: Any, address: str) -> None:
        self._client, self._address = client, address
        self._seen_s = time.monotonic()

    def check(self) -> None:
        """Raise an error once it has been away for some seconds.

        Raises:
            UnreachableError: It went away, and with it what was under way.
        """
        if self._client.status == "running":
            self._seen_s = time.monotonic()
        elif time.monotonic() - self._seen_s > _AWAY_S or self._client.status == "closed":
            raise UnreachableError(
                f"executor: the Dask scheduler at {without_password(self._address)} went away; "
                "finished trials are kept, and the same command continues"
            )


def _dask(address: str) -> Any:
    parts = urlsplit(address)
    if parts.scheme != "dask" or not parts.hostname:
        raise ConfigError(f"executor: expected dask://HOST:PORT, got {without_password(address)!r}")
    try:
        from distributed import Client
    except ImportError:
        raise ConfigError("executor: Dask is not installed: pip install 'moesim[dask]'") from None
    for name in ("distributed", "distributed.client", "distributed.utils"):
        # what it says of a connection that breaks, an error of ours says in one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    where = f"tcp://{parts.hostname}:{parts.port or 8786}"
    try:
        return Client(where, timeout=_DASK_TIMEOUT_S, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise UnreachableError(
            f"executor: no Dask scheduler answers at {where} ({type(error).__name__})"
        ) from None
