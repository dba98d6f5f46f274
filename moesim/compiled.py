"""Functions that are compiled by numba once they have enough to do.

Loading numba and compiled functions takes 0.6 s, and compiling them where no cache holds
them takes ten. A layer on eight devices is priced sooner in plain Python, which gives the same
result to the last digit. So a process does its first `BUDGET_S` of such work in plain Python, and
compiles whatever would take longer.
"""

import math
import sys
from collections.abc import Callable
from functools import update_wrapper
from pathlib import Path
from subprocess import Popen
from threading import RLock
from typing import Any

#: seconds of work that a process does in plain Python, in all, before it loads numba
BUDGET_S = 0.6
_spent_s = 0.0
_MAKING = RLock()
_said = False


def _affords(seconds: float) -> bool:
    """Return whether that much work may be done in plain Python, and count it if so."""
    global _spent_s
    if _spent_s + seconds > BUDGET_S:
        return False
    _spent_s += seconds
    return True


def spend_nothing() -> None:
    """Compile everything from now on."""
    global _spent_s
    _spent_s = math.inf


class Compiled:
    """A function that runs in plain Python at first, and compiled for more work.

    Attributes:
        py_func: The function as written.
        plain: What runs instead of it in plain Python: itself, or a twin that computes on whole
            arrays.
        plain_s: A function of its arguments: about how many seconds ``plain`` takes.
    """

    def __init__(
        self, function: Callable, plain_s: Callable[..., float], plain: Callable | None
    ) -> None:
        update_wrapper(self, function)
        self.py_func, self.plain, self.plain_s = function, plain or function, plain_s
        self._compiled: Any = None
        self._awaited: Popen | None = None

    def __call__(self, *args: Any) -> Any:
        """Call the function, in one way or the other."""
        if self._compiled is not None:
            return self._compiled(*args)
        return (self.plain if _affords(self.plain_s(*args)) else self.compiled)(*args)

    @property
    def compiled(self) -> Any:
        """The compiled function."""
        if self._compiled is None:
            if self._awaited is not None:
                # if that process failed, the function is compiled here
                self._awaited.wait()
            # two threads would otherwise compile it twice
            with _MAKING:
                if self._compiled is None:
                    self._compiled = _numba(self)
        return self._compiled

    def is_cached(self) -> bool:
        """Return whether numba's cache holds the function."""
        file = getattr(_numba(self)._cache, "_cache_file", None)
        return file is not None and Path(file._index_path).exists()

    def is_kept(self) -> bool:
        """Return whether what another process compiles could be found in numba's cache."""
        return hasattr(_numba(self)._cache, "_cache_file")

    def awaits(self, process: Popen) -> None:
        """Let a process that compiles the function end before this one compiles it."""
        self._awaited = process


def _numba(function: Compiled) -> Any:
    """Return the compiled function; only now numba is loaded."""
    from numba import njit, types
    from numba.extending import typeof_impl

    # compiled functions that call this one see what it stands for
    typeof_impl.register(Compiled)(lambda value, _: types.Dispatcher(value.compiled))
    # rewriting array expressions pays nowhere here, and costs a tenth of compiling; without the
    # interpreter's lock another thread can go on meanwhile
    options: dict[str, Any] = {"cache": True, "no_rewrites": True, "nogil": True}
    try:
        made = njit(**options)(function.py_func)
    except RuntimeError as error:  # neither beside the module nor at home can a file be written
        if "no locator" not in str(error):
            raise
        made = njit(**options | {"cache": False})(function.py_func)
        _say_uncached("no folder for it is writable")
    else:
        made._cache = _Kept(made._cache)
    template = made.get_call_template

    # a caller that begins with a literal 0 would have everything compiled for it, too
    def call_template(args: tuple, kws: dict) -> Any:
        return template(tuple(types.unliteral(kind) for kind in args), kws)

    made.get_call_template = call_template
    return made


class _Kept:
    """A cache of numba's; where it cannot be written, code is compiled again next time.

    Args:
        cache: The cache.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def save_overload(self, signature: Any, data: Any) -> None:
        """Save compiled code, if there is room."""
        try:
            self._cache.save_overload(signature, data)
        except OSError as error:
            _say_uncached(error.strerror or str(error))


def _say_uncached(why: str) -> None:
    """Say once on stderr that every process compiles anew."""
    global _said
    if not _said:
        _said = True
        print(
            f"compiled code is not kept ({why}), so that each command takes seconds longer; "
            "NUMBA_CACHE_DIR names a folder for it",
            file=sys.stderr,
        )


def cache_folder() -> str | None:
    """Return the folder in which numba keeps compiled code; None where it can write to none."""
    from numba import njit

    try:
        return str(njit(cache=True)(at_once).stats.cache_path)
    except RuntimeError as error:
        if "no locator" not in str(error):
            raise
        return None


def at_once(*_: Any) -> float:
    """Say that a function is always compiled."""
    return math.inf


def with_caller(*_: Any) -> float:
    """Say that a function is called by others of its kind, which count its work as theirs."""
    return 0.0


def compiled(
    plain_s: Callable[..., float] = at_once, *, plain: Callable | None = None
) -> Callable[[Callable], Compiled]:
    """Return a decorator that makes a function `Compiled`.

    Args:
        plain_s: A function of the same arguments: about how many seconds the function takes in
            plain Python.
        plain: A twin on whole arrays that runs in plain Python.
    """
    return lambda function: Compiled(function, plain_s, plain)
