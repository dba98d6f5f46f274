"""``moesim doctor``: what works on this machine, and how to get the rest."""

import typer

_COLUMNS = {"name": "part", "state": "state", "detail": "what", "remedy": "how to get it"}


def doctor() -> None:
    """Say what works on this machine (Python, Triton, GPU, measurements, clusters), and how to get
    the rest.
    """
    from moesim.measured.workplace import workplace_parts
    from moesim.report.terminal import print_table, tell

    parts = list(workplace_parts())
    print_table("What works here", [part.row() for part in parts], _COLUMNS)
    broken = [part.name for part in parts if part.needed and part.state != "ok"]
    missing = sum(part.state != "ok" for part in parts)
    if broken:
        tell(f"moesim cannot run: {', '.join(broken)}")
        raise typer.Exit(2)
    if missing:
        tell(f"moesim works; {missing} of {len(parts)} parts are missing, which it can do without.")
    else:
        tell("Everything works.")
