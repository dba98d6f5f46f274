"""Let processes end together, and in order.

A command that is told to end (Ctrl-C, SIGTERM, a closed terminal) raises `Ended` in its main
thread, so that files are closed, locks are released and workers are stopped on the way out. Workers
hear nothing of Ctrl-C, which a terminal sends to all processes at once, and end when their parent
is gone.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, resource_tracker
from types import FrameType

#: how often a worker looks whether its parent is there
_LOOK_S = 0.5
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(BaseException):
    """This process was told to end.

    It is no `KeyboardInterrupt`, which command-line libraries answer themselves. What is kept, and
    how to continue, is in its notes.

    Attributes:
        signal: The signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


@contextmanager
def listening() -> Iterator[None]:
    """Raise `Ended` in the main thread when this process is told to end meanwhile.

    A signal that whoever started the process lets it ignore (nohup) stays ignored, and one that
    somebody else answers is theirs.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {
            number: signal.signal(number, _end)
            for number in _SIGNALS
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
        }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    # once is enough: the way out is not to be cut short by impatience
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise Ended(number)


def follow_parent() -> None:
    """End this process soon after its parent has gone, whatever it is doing."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, name="follow-parent", daemon=True).start()


@contextmanager
def deaf_children() -> Iterator[None]:
    """Let processes that are started meanwhile hear nothing of Ctrl-C.

    The signal is blocked, which children inherit, and reaches this process right afterwards.
    """
    resource_tracker.ensure_running()  # it unblocks signals when it starts, so it must have
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Workers(ProcessPoolExecutor):
    """A pool of processes that hear nothing of Ctrl-C and end with this process.

    Args:
        number: Number of processes.
    """

    def __init__(self, number: int) -> None:
        # spawned, not forked, since the parent runs threads of NumPy and Numba
        super().__init__(number, mp_context=get_context("spawn"), initializer=follow_parent)

    def submit(self, function, /, *args, **named):
        """Start work; see `concurrent.futures.Executor.submit`."""
        with deaf_children():  # processes start as they are needed
            return super().submit(function, *args, **named)

    def kill(self) -> None:
        """End all processes at once; their work is lost."""
        for process in list((self._processes or {}).values()):
            process.kill()
        self.shutdown(wait=True, cancel_futures=True)


__all__ = ["Ended", "Workers", "deaf_children", "follow_parent", "listening"]
