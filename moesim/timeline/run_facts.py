"""Say on a timeline which run it is of: design, version, engine, and what was left out."""

from dataclasses import replace

from moesim.report.slices import Sheet, Slice
from moesim.version import VERSION

#: process and track of the slice that spans the run and says what it is
RUN = ("run", "what is shown")


def with_facts(sheet: Sheet, *, shown: str, **facts: object) -> Sheet:
    """Return a sheet that begins with a slice over all of it, whose arguments say what it is; the
    file's metadata say the same.

    Args:
        sheet: The timeline.
        shown: What part of the run it shows.
        **facts: Design key, engine, seed and others.
    """
    told = {"version": VERSION, **facts, "shown": shown, **sheet.facts}
    process, track = RUN
    head = Slice(
        process=process,
        track=track,
        name=shown,
        category="run",
        begin_s=0.0,
        end_s=sheet.end_s,
        args=told,
    )
    found = Sheet(title=sheet.title, facts=told)
    found.add(head)
    found.join(sheet)
    return found


def named_apart(sheet: Sheet, prefix: str) -> Sheet:
    """Return a sheet whose processes have a prefix, for a file that holds several."""
    return Sheet(
        title=sheet.title,
        slices=[replace(one, process=f"{prefix}{one.process}") for one in sheet.slices],
        arrows=sheet.arrows,
        counters=[replace(one, process=f"{prefix}{one.process}") for one in sheet.counters],
        facts=sheet.facts,
    )
