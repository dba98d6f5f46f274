"""Predict cells of other libraries' kernels by fits that saw nothing of them.

Each format of a device is fitted by itself, so that one's parameters predict another's rows; fits
to one EP kind, one version or one shape predict the rest. A cell of a single shape is no event:
crossing it would cross the shape as well.
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np

from moesim.costs.calibration import load_calibration
from moesim.costs.devices.fused_formats import format_parameters
from moesim.hardware import load_profile
from moesim.measured.kernels.crossing_costs import Event, Key
from moesim.measured.kernels.crossing_sources import Array, Errors, FittedCells, events_of
from moesim.measured.kernels.family_calibrate import collect, fit, held_out_s
from moesim.measured.kernels.family_records import FAMILIES, SHAPE
from moesim.measured.kernels.family_rows import FamilyRows
from moesim.measured.kernels.residuals import FEWEST

#: libraries that two frameworks call, with a file of each
_TWINS = (("flashinfer-trtllm-sglang", "flashinfer-trtllm-vllm"),)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """Rows of one format of a library on one device."""

    library: str
    rows: FamilyRows
    keys: list[Key]
    shapes: list[tuple[int, ...]]

    def errors(self, predicted_s: Array, keep_N: Array | None = None) -> Errors:
        """Return log errors by cell, of the rows that are kept."""
        log_N = np.log(self.rows.measured_s / predicted_s)
        keep = np.ones(len(log_N), dtype=bool) if keep_N is None else keep_N
        return {
            key: log_N[chosen]
            for key in sorted(set(self.keys))
            if (chosen := keep & np.array([k == key for k in self.keys])).any()
        }


def _parts(name: str) -> list[_Part]:
    out = []
    for (system, dtype), part in collect(FAMILIES[name]).groupby(["system", "moe_dtype"]):
        profile, records = load_profile(str(system)), part.to_dict("records")
        keys = [
            Key(
                name,
                profile.name,
                r["dataset"],
                str(dtype),
                "epn" if r["moe_ep_size"] > 1 else "ep1",
            )
            for r in records
        ]
        shapes = [tuple(r[column] for column in SHAPE) for r in records]
        if len(set(shapes)) > 1:
            rows = FamilyRows.of(records, profile, FAMILIES[name])
            out.append(_Part(library=name, rows=rows, keys=keys, shapes=shapes))
    return out


def family_events() -> list[Event]:
    """Return the events of other libraries' kernels.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    parts = {name: _parts(name) for name in FAMILIES}
    home: Errors = {}
    for part in chain.from_iterable(parts.values()):
        rule, _ = _parameters(part.library, part)
        home |= part.errors(held_out_s(part.rows, part.shapes, rule))
    found: list[Event] = []
    for name, own in parts.items():
        twins = [other for pair in _TWINS if name in pair for other in pair if other != name]
        for part in own:
            rule, parameters = _parameters(name, part)
            source = FittedCells.of(f"{name} {part.rows.dtype} on {part.keys[0].device}", part.keys)
            for other in [*own, *(p for twin in twins for p in parts[twin])]:
                same = other.rows.dtype == part.rows.dtype
                if other is part or (other.library != name and not same):
                    continue
                errors = other.errors(other.rows.predicted_s(rule, parameters))
                found += events_of(source, errors, home)
            found += _inner_events(part, home)
    return found


def _parameters(name: str, part: _Part):
    return format_parameters(
        load_calibration(name, part.rows.profile), part.rows.dtype, part.rows.profile
    )


def _inner_events(part: _Part, home: Errors) -> list[Event]:
    """Return the events within one format of a device: fits to an EP kind, a version, a shape."""
    rule, _ = _parameters(part.library, part)
    found: list[Event] = []
    shapes = sorted(set(part.shapes))
    for column in ("ep", "version"):
        values = [getattr(key, column) for key in part.keys]
        for value in sorted(set(values)):
            keep = np.array([v == value for v in values])
            if keep.all() or keep.sum() < FEWEST:
                continue
            source = FittedCells.of(
                value, (k for k, kept in zip(part.keys, keep, strict=True) if kept)
            )
            predicted_s = part.rows.predicted_s(rule, fit(part.rows.only(keep), rule))
            found += events_of(source, part.errors(predicted_s, ~keep), home)
    if len(shapes) > 2:
        for shape in (shapes[0], shapes[len(shapes) // 2], shapes[-1]):
            keep = np.array([s == shape for s in part.shapes])
            predicted_s = part.rows.predicted_s(rule, fit(part.rows.only(keep), rule))
            for key, error_N in part.errors(predicted_s, ~keep).items():
                if len(error_N) >= FEWEST:
                    text = "one shape: " + " ".join(map(str, shape))
                    found.append(Event.of(key, text, ("shape",), error_N, home[key]))
    return found
