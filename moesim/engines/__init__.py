"""Engines: `Program` in, `Timeline` out. They know resources and ops, and nothing of MoE."""

from typing import Literal

from moesim.engines.bound import run_bound
from moesim.errors import UnknownNameError
from moesim.program import Program, Timeline

Engine = Literal["bound", "flow", "event"]
ENGINES: tuple[Engine, ...] = ("bound", "flow", "event")


def run(program: Program, engine: str) -> Timeline:
    """Run a program.

    Args:
        program: What to run.
        engine: ``bound`` (a lower bound, closed form), ``flow`` (fluid, the default elsewhere) or ``event`` (SimPy,
            chunk by chunk).

    Raises:
        UnknownNameError: Another engine.
    """
    if engine == "bound":
        return run_bound(program)
    # numba and simpy are loaded when used: `import moesim` stays light.
    if engine == "flow":
        from moesim.engines.flow import run_flow

        return run_flow(program)
    if engine == "event":
        from moesim.engines.event import run_event

        return run_event(program)
    raise UnknownNameError("engine", engine, ENGINES)
