"""``moesim report``: write a study's output folder as one page, and its figures as files."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(help="Output folder of a study, finished or not.")],
    out: Annotated[Path, typer.Option(help="Page to write; it needs no network.")] = Path(
        "report.html"
    ),
    storage: Annotated[
        str | None,
        typer.Option(help="URL of the storage that holds the trials; default: the folder."),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="Folder for every figure as SVG and PDF too (needs matplotlib)."),
    ] = None,
) -> None:
    """Write one page about a study: verdict, front, where time goes, traffic, designs, checks."""
    from moesim.page.figures import check_matplotlib, write_figures
    from moesim.page.write import write_report
    from moesim.report.answer import print_answer
    from moesim.report.tables import check_writable, writable_folder
    from moesim.report.terminal import say

    if figures is not None:
        check_matplotlib()
        writable_folder(figures)
    check_writable(out, make_folder=True)
    found = write_report(folder, out=out, storage=storage)
    if figures is not None:
        names = write_figures(found.charts, figures)
        say(f"wrote {figures}/{', '.join(names)} as .svg and .pdf")
    print_answer(found.answer)
