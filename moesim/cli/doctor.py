"""``moesim doctor``: what works on this machine, and how to get the rest."""

import typer

_COLUMNS = {"name": "part", "status": "status", "says": "what", "fix": "how to get it"}


def doctor() -> None:
    """Say what works on this machine (Python, Triton, GPU, measurements, clusters), and how to get
    the rest.
    """
    from moesim.measured.environment import look_around, works
    from moesim.report.terminal import print_table, tell
    from moesim.version import VERSION

    found = look_around()
    print_table(f"moesim {VERSION}: what works here", [one.row() for one in found], _COLUMNS)
    if not works(found):
        broken = [one.name for one in found if one.needed and one.status == "missing"]
        tell(f"moesim cannot run: {', '.join(broken)}")
        raise typer.Exit(2)
    others = sum(one.status != "ok" for one in found)
    tell(f"moesim works; of {len(found)} parts it can do without {others} that are not here.")
