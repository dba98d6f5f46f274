"""The text of measured profiles: numbers with kind, source and spread, as
`moesim.hardware.profile_file` reads them.
"""

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

Array = np.ndarray


def number(value: float) -> str:
    """Five significant digits, as TOML writes a float."""
    return repr(float(f"{value:.5g}"))


def quantity(
    value: float, *, kind: str = "measured", source: str = "protocol", **more: float | int | None
) -> str:
    """An inline table ``{value = ..., kind = ..., source = ...}``.

    Args:
        value: The number, > 0.
        kind: See `moesim.files.toml.Kind`.
        source: Key under ``[sources]``.
        **more: Further numbers of the table (low, high, min, median, repeats), left out where None.
    """
    extra = "".join(
        f", {key} = {part if isinstance(part, int) else number(part)}"
        for key, part in more.items()
        if part is not None
    )
    return f'{{value = {number(value)}, kind = "{kind}", source = "{source}"{extra}}}'


def spread(
    values: Array, best: Callable[[Array], float] = np.median, source: str = "protocol"
) -> str:
    """A measured quantity of repeats: the one that counts, their minimum and median, P10 and P90,
    and how many.

    Args:
        values: ndarray of shape (repeats,), in the quantity's unit.
        best: Which of them counts: np.min of times, np.max of rates, or the median.
        source: Key under ``[sources]``.
    """
    low, median, high = np.percentile(values, (10, 50, 90))
    return quantity(
        float(best(values)),
        source=source,
        low=float(low),
        high=float(high),
        min=float(np.min(values)),
        median=float(median),
        repeats=len(values),
    )


def held_out(name: str, ratios: Array, source: str = "fit") -> list[str]:
    """Lines of a ``[name]`` table: P10 and P90 of measured over predicted time of calls left out of
    the fit.

    Args:
        name: Key path of the table.
        ratios: ndarray of shape (N,).
        source: Key under ``[sources]``.
    """
    low, high = np.percentile(ratios, (10, 90))
    return [
        f"[{name}]",
        f"low = {quantity(float(low), source=source)}",
        f"high = {quantity(float(high), source=source)}",
        f"points = {len(ratios)}",
    ]


def sources(entries: Iterable[tuple[str, str, str]]) -> list[str]:
    """Lines of ``[sources]``: (key, title, locator) each."""
    return [
        line
        for key, title, locator in entries
        for line in (
            f"[sources.{key}]",
            f"title = {json.dumps(title)}",
            f"locator = {json.dumps(locator)}",
        )
    ]


def measurement(
    *, machine: str, command: str, seconds: float, slowdown: float, contended: bool
) -> list[str]:
    """Lines of ``[measurement]``: what was run where, and whether something else ran meanwhile."""
    return [
        "[measurement]",
        f"command = {json.dumps(command)}",
        f'created = "{today()}"',
        f"machine = {json.dumps(machine)}",
        f"software = {json.dumps(software())}",
        f"seconds = {number(max(seconds, 1e-3))}",
        f"slowdown = {number(slowdown)}",
        f"contended = {'true' if contended else 'false'}",
    ]


def today() -> str:
    """Date of now, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def software() -> str:
    """What ran the calls."""
    return f"torch {torch.__version__}, Python {platform.python_version()}, {sys.platform}"


def cpu() -> tuple[str, float | None]:
    """Name of the CPU, and its clock in GHz if the system tells."""
    name, clock = platform.processor() or platform.machine() or "unknown CPU", None
    if Path("/proc/cpuinfo").is_file():
        lines = [
            line.partition(":")
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        ]
        told = {key.strip(): value.strip() for key, _, value in lines}
        name = told.get("model name", name)
        clock = float(told["cpu MHz"]) / 1e3 if told.get("cpu MHz") else None
    return name, clock


def memory_bytes() -> int:
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
