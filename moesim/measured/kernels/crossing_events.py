"""Predict cells by fits that saw nothing of them, on rows that may be fitted.

The frameworks' Triton kernels are fitted again to parts of their rows: without a device, a format,
an EP kind or a framework. Other libraries fit each format of a device by itself; one's parameters
predict another's rows, and fits to one EP kind, one version or one shape predict the rest. A cell
of a single shape is no event: crossing it would cross the shape as well.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from moesim.costs.calibration import load_calibration
from moesim.hardware import load_profile
from moesim.measured.kernels import calibrate as triton
from moesim.measured.kernels.crossing_costs import Event, Key
from moesim.measured.kernels.family_calibrate import SHAPE, collect, fit, held_out_s
from moesim.measured.kernels.family_predict import format_parameters
from moesim.measured.kernels.family_records import FAMILIES
from moesim.measured.kernels.family_rows import FamilyRows
from moesim.measured.kernels.groups import FitGroup, Predictions
from moesim.measured.kernels.groups import collect as collect_triton
from moesim.measured.kernels.residuals import FEWEST

Array = np.ndarray
#: log(measured / predicted) by cell
Errors = dict[Key, Array]
#: which ten rows are known changes what they tell
_TEN_ROW_DRAWS = 9
#: a library's files, if several frameworks have their own
_TWINS = (("flashinfer-trtllm-sglang", "flashinfer-trtllm-vllm"),)


def all_events() -> list[Event]:
    """Return the events of all libraries (about two minutes).

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    return [*triton_events(), *family_events()]


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What was fitted."""

    name: str
    devices: frozenset[str]
    formats: frozenset[str]
    eps: frozenset[str]
    versions: frozenset[str]

    @classmethod
    def of(cls, name: str, keys: Iterable[Key]) -> "_Source":
        known = list(keys)
        return cls(
            name=name,
            devices=frozenset(k.device for k in known),
            formats=frozenset(k.format for k in known),
            eps=frozenset(k.ep for k in known),
            versions=frozenset(k.version for k in known),
        )

    def crosses(self, key: Key) -> tuple[str, ...]:
        """Return what a prediction of the cell crosses. Devices that may be fitted differ in
        generation; a version is counted only if nothing else is crossed.
        """
        found = []
        if key.device not in self.devices:
            found.append("generation")
        if key.format not in self.formats:
            found.append("format")
        if key.ep not in self.eps:
            found.append(key.ep)
        if not found and key.version not in self.versions:
            found.append("version")
        return tuple(found)


def _events(source: _Source, errors: Errors, home: Errors) -> list[Event]:
    return [
        Event.of(key, source.name, crossed, error_N, home[key])
        for key, error_N in errors.items()
        if (crossed := source.crosses(key)) and len(error_N) >= FEWEST and key in home
    ]


def triton_events() -> list[Event]:
    """Return the events of the frameworks' Triton kernels."""
    parts = {name: _by_ep(collect_triton(name)) for name in triton.FRAMEWORKS}
    home = _errors([pair for own in parts.values() for pair in triton.cross_validate(own)])
    sglang, vllm = (parts[name] for name in triton.FRAMEWORKS)
    h100 = [g for g in sglang if g.system == "h100_sxm"]
    a100 = [g for g in sglang if g.system != "h100_sxm"]
    found: list[Event] = []

    def predict(fitted: Sequence[FitGroup], rest: Sequence[FitGroup], name: str) -> None:
        parameters = triton.fit(list(fitted))
        source = _Source.of(name, (_key(g) for g in fitted))
        errors = _errors([(g, triton.predict(g, parameters)) for g in rest])
        found.extend(_events(source, errors, home))

    predict(h100, [*a100, *vllm], "sglang's on H100")
    predict(a100, h100, "sglang's on A100")
    predict(vllm, h100, "vllm's on H100")
    for framework, own in (("sglang", h100), ("vllm", vllm)):
        for ep in ("ep1", "epn"):
            fitted = [g for g in own if _key(g).ep == ep]
            predict(fitted, [g for g in own if g not in fitted], f"{framework}'s {ep} on H100")
        for precision in sorted({g.precision for g in own}):
            fitted = [g for g in own if g.precision == precision]
            rest = [g for g in own if g.precision != precision]
            predict(fitted, rest, f"{framework}'s {precision} on H100")
    for predictions in triton.with_ten_rows(sglang, _TEN_ROW_DRAWS):
        for key, error_N in _errors(predictions).items():
            if (key.format, key.ep) == ("bfloat16", "ep1"):
                crossed, name = ("few_shot",), "another device and ten rows"
                found.append(Event.of(key, name, crossed, error_N, home[key]))
    return found


def _by_ep(groups: Iterable[FitGroup]) -> list[FitGroup]:
    """Split groups into those of EP = 1 and of EP > 1."""
    return [
        g.only(g.spread == spread)
        for g in groups
        for spread in (False, True)
        if (g.spread == spread).any()
    ]


def _key(group: FitGroup) -> Key:
    return Key(
        "triton-moe" if group.dataset.startswith("sglang") else "triton-moe-vllm",
        load_profile(group.system).name,
        group.dataset,
        group.precision,
        "epn" if group.spread[0] else "ep1",
    )


def _errors(predictions: Predictions) -> Errors:
    found: dict[Key, list[Array]] = {}
    for group, predicted_s in predictions:
        found.setdefault(_key(group), []).append(np.log(group.measured_s / predicted_s))
    return {key: np.concatenate(parts) for key, parts in found.items()}


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
    """Return the events of other libraries' kernels."""
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
            source = _Source.of(f"{name} {part.rows.dtype} on {part.keys[0].device}", part.keys)
            for other in [*own, *(p for twin in twins for p in parts[twin])]:
                same = other.rows.dtype == part.rows.dtype
                if other is part or (other.library != name and not same):
                    continue
                errors = other.errors(other.rows.predicted_s(rule, parameters))
                found += _events(source, errors, home)
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
            source = _Source.of(value, (k for k, kept in zip(part.keys, keep, strict=True) if kept))
            predicted_s = part.rows.predicted_s(rule, fit(part.rows.only(keep), rule))
            found += _events(source, part.errors(predicted_s, ~keep), home)
    if len(shapes) > 2:
        for shape in (shapes[0], shapes[len(shapes) // 2], shapes[-1]):
            keep = np.array([s == shape for s in part.shapes])
            predicted_s = part.rows.predicted_s(rule, fit(part.rows.only(keep), rule))
            for key, error_N in part.errors(predicted_s, ~keep).items():
                if len(error_N) >= FEWEST:
                    text = "one shape: " + " ".join(map(str, shape))
                    found.append(Event.of(key, text, ("shape",), error_N, home[key]))
    return found
