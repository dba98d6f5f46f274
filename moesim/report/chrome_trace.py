"""Write a timeline in the Trace Event Format, which ui.perfetto.dev and chrome://tracing open.

Slices are complete events (``X``), arrows are flows (``s``, ``t``, ``f``) that bind to the slice
around them, counters are ``C`` events, and metadata events name processes and threads ("Trace Event
Format", Google, docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU). Times are
microseconds. They are rounded to whole nanoseconds at both ends of a slice, so that slices which
follow one another still do after rounding.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from moesim.files.output import write_file
from moesim.report.slices import Sheet, processes

_NS_PER_S = 1e9
_NS_PER_US = 1000


def write_trace(path: str | Path, sheet: Sheet) -> Path:
    """Write a timeline as one JSON object.

    Args:
        path: The file.
        sheet: The timeline; slices that overlap move to lanes of their own.

    Returns:
        The path.

    Raises:
        ConfigError: The file cannot be written.
    """
    return write_file(Path(path), trace_text(sheet))


def trace_text(sheet: Sheet) -> str:
    """Return a timeline as the text of a file."""
    events = ",\n".join(json.dumps(event, separators=(",", ":")) for event in _events(sheet))
    head = {"title": sheet.title, **sheet.facts}
    return (
        f'{{"displayTimeUnit":"ns","otherData":{json.dumps(head)},"traceEvents":[\n{events}\n]}}\n'
    )


def _us(ns: int) -> float:
    return ns / _NS_PER_US


def _ns(seconds: float) -> int:
    return round(seconds * _NS_PER_S)


def _events(sheet: Sheet) -> Iterator[dict[str, object]]:
    sheet = sheet.in_lanes()
    names = [*processes(sheet.slices), *(c.process for c in sheet.counters)]
    pids = {name: pid for pid, name in enumerate(dict.fromkeys(names), start=1)}
    tids: dict[tuple[str, str], int] = {}
    for one in sheet.slices:
        key = (one.process, one.track)
        if key not in tids:
            tids[key] = 1 + sum(process == one.process for process, _ in tids)
    for name, pid in pids.items():
        yield _named("process_name", pid, 0, {"name": name})
        yield _named("process_sort_index", pid, 0, {"sort_index": pid})
    for (process, track), tid in tids.items():
        yield _named("thread_name", pids[process], tid, {"name": track})
        yield _named("thread_sort_index", pids[process], tid, {"sort_index": tid})
    for one in sheet.slices:
        begin, end = _ns(one.begin_s), _ns(one.end_s)
        if end > begin:
            yield {
                "ph": "X",
                "name": one.name,
                "cat": one.category,
                "pid": pids[one.process],
                "tid": tids[one.process, one.track],
                "ts": _us(begin),
                "dur": _us(end - begin),
                "args": one.args,
            }
    for number, chain in enumerate(sheet.arrows, start=1):
        for at, index in enumerate(chain):
            one = sheet.slices[index]
            yield {
                "ph": "s" if at == 0 else "f" if at == len(chain) - 1 else "t",
                "name": "tokens",
                "cat": "flow",
                "id": number,
                "pid": pids[one.process],
                "tid": tids[one.process, one.track],
                "ts": _us(_ns(one.begin_s)),
                **({"bp": "e"} if at else {}),
            }
    for counter in sheet.counters:
        for time_s, value in zip(counter.time_s_P.tolist(), counter.value_P.tolist(), strict=True):
            yield {
                "ph": "C",
                "name": counter.name,
                "pid": pids[counter.process],
                "tid": 0,
                "ts": _us(_ns(time_s)),
                "args": {counter.unit: round(value, 3)},
            }


def _named(kind: str, pid: int, tid: int, args: dict[str, object]) -> dict[str, object]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "ts": 0, "args": args}
