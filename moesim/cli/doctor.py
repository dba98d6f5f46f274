"""``moesim doctor``: what works here, and how to get the rest."""

import json
from typing import Annotated

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Say what works on this machine, and how to get the rest; exit 1 if the core cannot run."""
    from moesim.errors import printable
    from moesim.measured.environment import look_around, works
    from moesim.version import VERSION

    findings = look_around()
    if as_json:
        rows = [one.row() for one in findings]
        print(json.dumps({"version": VERSION, "works": works(findings), "findings": rows}))
    else:
        print(f"moesim {VERSION}")
        width = max(len(one.name) for one in findings)
        for one in findings:
            fix = f"  -> {one.fix}" if one.fix else ""
            print(printable(f"{one.status:<8}{one.name:<{width}}  {one.says}{fix}"))
    if not works(findings):
        raise typer.Exit(1)
