"""Write the pages of reference that follow from the code: CSV columns and the command line.

python docs/tools/reference.py
"""

import re
from collections.abc import Iterator
from pathlib import Path

import typer

from moesim.cli.root import app
from moesim.report.columns import known_columns

REFERENCE = Path(__file__).parent.parent / "reference"
_ABOUT = {
    "trial": "The trial and its place",
    "design": "The design",
    "workload": "The workload",
    "layer": "One MoE layer",
    "loss": "Loss",
    "memory": "Memory",
    "cost": "Energy and cost",
    "serving": "Serving",
    "training": "Training",
    "check": "Checks (check.csv)",
    "advice": "Advice (recommend, what-if)",
    "operations": "Days with failures",
    "provenance": "What a row rests on",
}


def columns_page() -> str:
    """Return the page of CSV columns, from the schema in moesim/report/columns.csv."""
    text = [
        "# CSV columns",
        "Every column that moesim writes, with its unit and meaning; `moesim.report.columns` holds "
        "the same schema. Files are UTF-8 with a header, numbers in full precision and nothing for "
        "a value that does not apply. `x_low` and `x_high` are the P10 and P90 of `x` as the "
        "residuals of its calibration give them; `x_mean_ms`, `x_p50_ms`, `x_p90_ms` and "
        "`x_p99_ms` are over the requests that are counted. A cell that a spreadsheet would take "
        "for a formula begins with an apostrophe; `moesim.report.tables.unescaped` removes it.",
    ]
    known = known_columns().values()
    for group, title in _ABOUT.items():
        lines = [f"| `{c.name}` | {c.unit} | {c.meaning} |" for c in known if c.group == group]
        text += [f"## {title}", "\n".join(["| column | unit | meaning |", "|---|---|---|", *lines])]
    return "\n\n".join(text) + "\n"


def commands(command, path: str) -> Iterator[tuple[str, object]]:
    """Yield every command below a group, with its full name."""
    for name in sorted(getattr(command, "commands", {})):
        yield from commands(command.commands[name], f"{path} {name}")
    if not hasattr(command, "commands"):
        yield path, command


def one_line(text: str | None) -> str:
    """Return a text as the cell of a table, its brackets as text."""
    words = re.sub(r"\s+", " ", text or "").strip()
    return words.replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


def command_text(path: str, command) -> str:
    """Return the section of a command: what it does, its arguments and options."""
    rows, names = [], []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            names.append(parameter.name.upper())
            rows.append((f"`{parameter.name.upper()}`", one_line(getattr(parameter, "help", ""))))
        elif not parameter.hidden:
            # the long form comes first in every declaration
            flag = " / ".join(f"`{one}`" for one in (*parameter.opts, *parameter.secondary_opts))
            default = parameter.default
            shown = default is not None and default is not False and not callable(default)
            says = one_line(parameter.help)
            rows.append((flag, f"{says} (default {default})" if shown and str(default) else says))
    lines = [f"| {flag} | {says} |" for flag, says in rows]
    head = f"## {path}\n\n{one_line(command.help)}"
    if names:
        head += f"\n\n`{path} {' '.join(names)}`"
    if not lines:
        return head
    return head + "\n\n" + "\n".join(["| option | meaning |", "|---|---|", *lines])


def commands_page() -> str:
    """Return the page of all commands and their options."""
    text = [
        "# Command line",
        "Data goes to stdout, everything else to stderr; `--json` gives one JSON document. Bad "
        "input is one line and exit code 2. `moesim --help` and `moesim COMMAND --help` say the "
        "same as this page.",
    ]
    text += [
        command_text(path, one) for path, one in commands(typer.main.get_command(app), "moesim")
    ]
    return "\n\n".join(text) + "\n"


PAGES = {"csv.md": columns_page, "cli.md": commands_page}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (REFERENCE / name).write_text(make(), encoding="utf-8")
