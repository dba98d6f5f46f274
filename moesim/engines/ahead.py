"""Compile the engines beside other work, the first time that they are used on a machine.

Compiling the fluid engine and the compiled event engine takes 5 s. A command that will need both
starts this module as a process of its own, and meanwhile draws tokens and bounds designs; what the
process compiled, the command then finds in numba's cache.
"""

import subprocess
import sys

from moesim.compiled import Compiled, can_cache, spend_nothing
from moesim.engines import event_compiled, flow
from moesim.engines.run import run
from moesim.program.builder import ProgramBuilder

#: those that take long, and only these: what is short is compiled sooner than awaited
_LONG: tuple[Compiled, ...] = (flow._solve, event_compiled._run)


def compile_ahead() -> None:
    """Start to compile the engines; if they are in the cache, compiled code is used from the start:
    it will be loaded in any case.
    """
    if all(function.is_cached() for function in _LONG):
        spend_nothing()
        return
    if not can_cache(_LONG[0]):
        # nothing that another process compiles would be found here
        return
    process = subprocess.Popen([sys.executable, "-m", __name__], stdout=subprocess.DEVNULL)
    for function in _LONG:
        function.awaits(process)


def _compile() -> None:
    """Compile the engines for the types that all programs have."""
    builder = ProgramBuilder()
    port = builder.resource("port", 1.0)
    builder.op("op", resources=[port], amounts=[1.0])
    spend_nothing()
    for engine in ("flow", "event_compiled"):
        run(builder.build(), engine)


if __name__ == "__main__":
    _compile()
