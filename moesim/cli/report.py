"""``moesim report``: write a study's output folder as one page, and its figures as files."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(help="Output folder of a study, finished or not.")],
    out: Annotated[Path, typer.Option(help="Page to write; it needs no network.")] = Path(
        "report.html"
    ),
    figures: Annotated[
        Path | None,
        typer.Option(help="Folder for every figure as SVG and PDF too (needs matplotlib)."),
    ] = None,
) -> None:
    """Write one page about a study: verdict, front, where the time goes, traffic, designs, checks."""
    from moesim.page.figures import check_matplotlib, write_figures
    from moesim.page.write import write_report
    from moesim.report.tables import check_writable, writable_folder
    from moesim.report.terminal import say

    if figures is not None:
        check_matplotlib()
        writable_folder(figures)
    check_writable(out, make_folder=True)
    found = write_report(folder, out)
    if figures is not None:
        names = write_figures(found.charts, figures)
        say(f"wrote {figures}/{', '.join(names)} as .svg and .pdf")
    say(f"wrote {out}")
