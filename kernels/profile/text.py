"""Write the text of measured profiles: numbers with kind, source, and spread, as
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
    """Return five significant digits, in the form of a TOML float."""
    return repr(float(f"{value:.5g}"))


def quantity(
    value: float, *, kind: str = "measured", source: str = "protocol", **more: float | int | None
) -> str:
    """Return an inline table ``{value = ..., kind = ..., source = ...}``.

    Args:
        value: Number, > 0.
        kind: Kind of evidence, one of `moesim.files.toml.Kind`.
        source: Key of the source under ``[sources]``.
        **more: Further numbers of the table (low, high, min, median, repeats); entries that are
            None are left out.
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
    """Return a quantity measured by repeats: the value that counts, minimum and median, P10 and
    P90, and the number of repeats.

    Args:
        values: Measured values in the quantity's unit, ndarray of shape (repeats,).
        best: Function that picks the value that counts: np.min of times, np.max of rates, or the
            median.
        source: Key of the source under ``[sources]``.
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
    """Return the lines of a ``[name]`` table: P10 and P90 of measured over predicted time of calls
    left out of the fit.

    Args:
        name: Key path of the table.
        ratios: Measured over predicted times, ndarray of shape (N,).
        source: Key of the source under ``[sources]``.
    """
    low, high = np.percentile(ratios, (10, 90))
    return [
        f"[{name}]",
        f"low = {quantity(float(low), source=source)}",
        f"high = {quantity(float(high), source=source)}",
        f"points = {len(ratios)}",
    ]


def sources(entries: Iterable[tuple[str, str, str]]) -> list[str]:
    """Return the lines of ``[sources]`` from (key, title, locator) entries."""
    return [
        line
        for key, title, locator in entries
        for line in (
            f"[sources.{key}]",
            # JSON strings are valid TOML strings.
            f"title = {json.dumps(title)}",
            f"locator = {json.dumps(locator)}",
        )
    ]


def measurement(
    *, machine: str, command: str, seconds: float, slowdown: float, contended: bool
) -> list[str]:
    """Return the lines of ``[measurement]``: what ran where, and whether something else ran
    meanwhile.
    """
    return [
        "[measurement]",
        f"command = {json.dumps(command)}",
        f'created = "{today()}"',
        f"machine = {json.dumps(machine)}",
        f"software = {json.dumps(software())}",
        # A profile needs a positive number, also from a test that takes no time.
        f"seconds = {number(max(seconds, 1e-3))}",
        f"slowdown = {number(slowdown)}",
        f"contended = {'true' if contended else 'false'}",
    ]


def today() -> str:
    """Return the current date in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def software() -> str:
    """Return the versions of the software that ran the calls."""
    return f"torch {torch.__version__}, Python {platform.python_version()}, {sys.platform}"


def cpu() -> tuple[str, float | None]:
    """Return the name of the CPU, and its clock in GHz if the system reports it."""
    name, clock = platform.processor() or platform.machine() or "unknown CPU", None
    # Linux knows the model and the current clock; elsewhere only a generic name is known.
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
    """Return the size of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
