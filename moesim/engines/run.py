"""Runs a program on the engine of a name."""

from typing import Literal

from moesim.errors import UnknownNameError
from moesim.program import Program, Timeline

Engine = Literal["bound", "flow", "event", "event_compiled"]
ENGINES: tuple[Engine, ...] = ("bound", "flow", "event", "event_compiled")


def run(program: Program, engine: str) -> Timeline:
    """Run a program.

    Args:
        program: What to run.
        engine: ``bound`` (a lower bound, closed form), ``flow`` (fluid, the default elsewhere),
            ``event`` (SimPy, chunk by chunk) or ``event_compiled`` (the same timeline, compiled).

    Raises:
        UnknownNameError: Another engine.
    """
    # numba and simpy are loaded when used: `import moesim` stays light.
    if engine == "bound":
        from moesim.engines.bound import run_bound

        return run_bound(program)
    if engine == "flow":
        from moesim.engines.flow import run_flow

        return run_flow(program)
    if engine == "event":
        from moesim.engines.event import run_event

        return run_event(program)
    if engine == "event_compiled":
        from moesim.engines.event_compiled import run_event_compiled

        return run_event_compiled(program)
    raise UnknownNameError("engine", engine, ENGINES)
