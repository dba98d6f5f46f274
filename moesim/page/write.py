"""Write the page of a study, and its figures."""

import html
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Template

from moesim.errors import printable
from moesim.files.output import write_file
from moesim.page.folder import read_folder
from moesim.page.gather import Gathered, gather
from moesim.report.embedded import ICON, json_for_script, plotly_loader
from moesim.report.terminal import say
from moesim.search.study import Study
from moesim.version import VERSION


@cache
def _shipped(name: str) -> str:
    return (files("moesim.page") / name).read_text(encoding="utf-8")


def page_text(found: Gathered, under: str) -> str:
    """Return the page.

    Args:
        found: What it shows.
        under: The line below its title.
    """
    answer = found.answer
    texts = {
        "build": answer.build,
        "confidence": answer.confidence,
        "next": answer.next_step,
        "version": VERSION,
    }
    assumed = "".join(f"<li>{_text(one)}</li>" for one in answer.assumptions)
    return Template(_shipped("page.html")).substitute(
        {name: _text(text) for name, text in texts.items()},
        title=html.escape(printable(found.title)),
        under=html.escape(printable(under)),
        icon=ICON,
        assumptions=assumed,
        css=_shipped("page.css"),
        data=json_for_script(found.data),
        loader=plotly_loader(),
        draw=_shipped("draw.js"),
        script=_shipped("page.js"),
    )


def _text(text: str) -> str:
    """Return a text as HTML, with what stands between backquotes as code."""
    parts = html.escape(printable(text)).split("`")
    if len(parts) % 2 == 0:  # one without its end
        return "`".join(parts)
    return "".join(f"<code>{one}</code>" if i % 2 else one for i, one in enumerate(parts))


def write_report(
    folder: Path,
    study: Study | None = None,
    *,
    out: Path | None = None,
    storage: str | None = None,
) -> Gathered:
    """Write the page of the study in a folder, the whole file or nothing, and say so.

    Args:
        folder: Output folder of a study, finished or not.
        study: The study, where it is at hand; None to load it.
        out: The page; None for ``report.html`` in the folder.
        storage: URL of the storage that holds the trials; None for the folder's journal.

    Returns:
        What it shows, from which `moesim.page.figures.write_figures` draws the figures.

    Raises:
        ConfigError: The folder holds no study, or a damaged table; or the page cannot be written.
    """
    read = read_folder(folder, study, storage)
    found = gather(read)
    count = len(read.study.trials)
    ended = "" if read.finished else ", interrupted"
    under = f"Study in {folder.name or folder}, {count:,} trials{ended}"
    path = write_file(out or folder / "report.html", page_text(found, under))
    say(f"wrote {path}")
    return found
