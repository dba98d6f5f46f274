"""Check a file in the Trace Event Format strictly, and sum up what it holds."""

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

_META = {"process_name", "process_sort_index", "thread_name", "thread_sort_index"}
#: microseconds that binary fractions of whole nanoseconds may be off by
_ROUNDING_US = 5e-4


class CheckedTrace:
    """A checked file.

    Attributes:
        facts: Its metadata.
        slices: (process, thread) -> its slices in order of time.
        flows: Flow id -> its events in order of the file.
        counters: (process, counter) -> (microseconds, value) in order of time.

    Raises:
        AssertionError: The file is not in the format, or viewers would show something else than
            was meant; the text says which event.
    """

    def __init__(self, path: Path) -> None:
        whole = json.loads(path.read_text(encoding="utf-8"))
        assert set(whole) == {"displayTimeUnit", "otherData", "traceEvents"}, set(whole)
        assert whole["displayTimeUnit"] in ("ms", "ns")
        self.facts: dict[str, Any] = whole["otherData"]
        events = whole["traceEvents"]
        self.process = self._names(events, "process_name", lambda e: e["pid"])
        self.thread = self._names(events, "thread_name", lambda e: (e["pid"], e["tid"]))
        self.slices: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        self.flows: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self.counters: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        for event in events:
            self._take(event)
        for track in self.slices.values():
            track.sort(key=lambda one: one["ts"])
        self._check_overlaps()
        self._check_flows()

    @staticmethod
    def _names(events: list[dict[str, Any]], kind: str, key: Any) -> dict[Any, str]:
        named = [e for e in events if e["name"] == kind]
        found = {key(e): e["args"]["name"] for e in named}
        assert len(found) == len(named), f"{kind}: named twice"
        return found

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["ph"]
        assert event["ts"] >= 0, event
        assert event["pid"] in self.process, event
        if kind == "M":
            assert event["name"] in _META, event
        elif kind == "X":
            assert event["dur"] > 0, event
            assert isinstance(event["args"], dict), event
            where = event["pid"], event["tid"]
            self.slices[self.process[event["pid"]], self.thread[where]].append(event)
        elif kind in ("s", "t", "f"):
            assert (event["pid"], event["tid"]) in self.thread, event
            assert kind == "s" or event["bp"] == "e", event
            self.flows[event["id"]].append(event)
        elif kind == "C":
            ((_, value),) = event["args"].items()
            series = self.counters[self.process[event["pid"]], event["name"]]
            assert not series or series[-1][0] <= event["ts"], event
            series.append((event["ts"], value))
        else:
            raise AssertionError(f"unknown phase of an event: {event}")

    def _check_overlaps(self) -> None:
        for where, track in self.slices.items():
            for before, after in pairwise(track):
                gap = after["ts"] - (before["ts"] + before["dur"])
                assert gap > -_ROUNDING_US, (where, before, after)

    def _check_flows(self) -> None:
        begins = {
            (one["pid"], one["tid"], one["ts"]) for track in self.slices.values() for one in track
        }
        for number, chain in self.flows.items():
            kinds = "".join(event["ph"] for event in chain)
            assert kinds == "s" + "t" * (len(chain) - 2) + "f", (number, kinds)
            times = [event["ts"] for event in chain]
            assert times == sorted(times), (number, chain)
            for event in chain:
                assert (event["pid"], event["tid"], event["ts"]) in begins, (number, event)

    def seconds(self, process: str, thread: str) -> dict[str, float]:
        """Return category -> seconds of the slices of a thread."""
        found: dict[str, float] = defaultdict(float)
        for one in self.slices[process, thread]:
            found[one["cat"]] += one["dur"] * 1e-6
        return dict(found)

    def span_s(self, process: str, thread: str) -> float:
        """Return the seconds from the first begin to the last end on a thread."""
        track = self.slices[process, thread]
        return (track[-1]["ts"] + track[-1]["dur"] - track[0]["ts"]) * 1e-6

    def mean_of(self, process: str, counter: str, span_s: float) -> float:
        """Return the mean of a counter over a span, which is 0 where it has no value."""
        series = self.counters[process, counter]
        total = sum(value * (after - at) for (at, value), (after, _) in pairwise(series))
        return total * 1e-6 / span_s
