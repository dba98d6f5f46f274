"""Predict cells of the frameworks' Triton kernels by fits that saw nothing of them.

The kernel model is fitted again to parts of the rows that may be fitted: without a device, a
format, an EP kind or a framework; and to one device and ten rows of another.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from moesim.hardware import load_profile
from moesim.measured.kernels import calibrate as triton
from moesim.measured.kernels.crossing_costs import Event, Key
from moesim.measured.kernels.crossing_sources import Array, Errors, FittedCells, events_of
from moesim.measured.kernels.groups import SEED, FitGroup, Predictions, collect

#: which ten rows are known changes what they tell
_TEN_ROW_DRAWS = 9


def triton_events() -> list[Event]:
    """Return the events of the frameworks' Triton kernels.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    parts = {name: _by_ep(collect(name)) for name in triton.FRAMEWORKS}
    home = _errors([pair for own in parts.values() for pair in triton.cross_validate(own)])
    sglang, vllm = (parts[name] for name in triton.FRAMEWORKS)
    h100 = [g for g in sglang if g.system == "h100_sxm"]
    a100 = [g for g in sglang if g.system != "h100_sxm"]
    found: list[Event] = []

    def predict(fitted: Sequence[FitGroup], rest: Sequence[FitGroup], name: str) -> None:
        parameters = triton.fit(list(fitted))
        source = FittedCells.of(name, (_key(g) for g in fitted))
        errors = _errors([(g, triton.predict(g, parameters)) for g in rest])
        found.extend(events_of(source, errors, home))

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
    for predictions in _with_ten_rows(sglang, _TEN_ROW_DRAWS):
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


def _with_ten_rows(groups: list[FitGroup], draws: int) -> list[Predictions]:
    """Predict half of each device's shapes by a fit to other devices, with factors from ten rows of
    its other half.

    As in few-shot mode, the ten rows are bf16 at EP = 1. A single device leaves nothing to fit on,
    so that nothing is predicted.

    Args:
        groups: Groups of one framework.
        draws: How often shapes and rows are drawn.

    Returns:
        Predictions by draw.
    """
    out: list[Predictions] = [[] for _ in range(draws)]
    for system in sorted({g.system for g in groups}):
        others = [g for g in groups if g.system != system]
        own = [g for g in groups if g.system == system]
        if not others:
            continue
        parameters = triton.fit(others)
        alone = [g.only(~g.spread) for g in own if g.precision == "bfloat16" and not g.spread.all()]
        for draw, predictions in enumerate(out):
            order = np.random.default_rng(SEED + draw).permutation(len(alone))
            known = [alone[i] for i in order[: len(alone) // 2]]
            picks = [
                known[i % len(known)].few(SEED + draw * triton.FEW + i) for i in range(triton.FEW)
            ]
            factors = triton.few_shot_factors(picks, parameters)
            scaled = parameters | {n: parameters[n] * f for n, f in factors.items()}
            seen = {g.shape for g in known}
            predictions += [(g, triton.predict(g, scaled)) for g in own if g.shape not in seen]
    return out
