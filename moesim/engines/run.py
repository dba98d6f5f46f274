"""Run a program on the engine with a given name."""

from typing import Literal

from moesim.errors import UnknownNameError
from moesim.program import Program, Timeline

Engine = Literal["bound", "flow", "event", "event_compiled"]
ENGINES: tuple[Engine, ...] = ("bound", "flow", "event", "event_compiled")


def run(program: Program, engine: str, *, scale_s: float | None = None) -> Timeline:
    """Run a program on one engine.

    Args:
        program: The program to run.
        engine: ``bound`` (a lower bound in closed form), ``flow`` (the fluid model, which the rest
            of moesim uses by default), ``event`` (SimPy, chunk by chunk) or ``event_compiled`` (the
            same timeline in compiled code).
        scale_s: The time of which the fluid model's tolerance is a share, see
            `moesim.engines.flow.run_flow`; by default the bound of the program.

    Raises:
        UnknownNameError: The engine does not exist.
    """
    # simpy is imported only when it is used, which keeps `import moesim` fast
    if engine == "bound":
        from moesim.engines.bound import run_bound

        return run_bound(program)
    if engine == "flow":
        from moesim.engines.flow import run_flow

        return run_flow(program, scale_s=scale_s)
    if engine == "event":
        from moesim.engines.event import run_event

        return run_event(program)
    if engine == "event_compiled":
        from moesim.engines.event_compiled import run_event_compiled

        return run_event_compiled(program)
    raise UnknownNameError("engine", engine, ENGINES)
