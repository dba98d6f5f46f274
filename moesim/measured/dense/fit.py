"""Fit the prices of GEMMs and attention: ``moesim calibrate dense`` and ``... attention``.

One set of parameters is fitted for each serving engine, format and generation, to all rows of the
groups that may be fitted (`moesim.measured.dense.table`); rows under 20 us, which a launch decides,
count half. The other groups of the same table give scores and intervals, so that no row decides
both. The fit is robust and a pure function of the rows.
"""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from moesim.costs.calibration import generation_of
from moesim.costs.dense import decode, prefill
from moesim.costs.dense.fitted import ENGINE_HALF_WIDTH, ONE_RANK, WINDOW, prefix
from moesim.costs.dense.prices import CALIBRATIONS, Op
from moesim.hardware import load_profile
from moesim.measured.dense.price import DenseBatch, is_windowed, sizes_of
from moesim.measured.dense.table import DATASETS, FITTED, GROUP, OPS, SIZES, Kind, load_rows
from moesim.measured.fitting import Bounds, Fitted, robust_fit, write_calibration
from moesim.measured.scores import error_scores
from moesim.units import US

Array = np.ndarray
#: rows longer than this are scored, as a launch decides shorter ones
FLOOR_S = 20.0 * US
_SHORT_WEIGHT = 0.5
#: columns of what two engines have in common
_LIKE = ["system", "format"]
#: head sizes whose efficiency is fitted. One kind of decode reads heads of 192 in part only: they
#: lie between others
_PREFILL_SIZES, _DECODE_SIZES = (64, 128, 192, 256), (64, 128, 256)
_GEMM: Bounds = {
    "launch_us": (2.5, 0.3, 20.0),
    "compute_efficiency": (0.75, 0.1, 1.0),
    "memory_efficiency": (0.85, 0.2, 1.0),
    "tile_us": (0.7, 0.01, 10.0),
    "split_us": (2.5, 0.3, 50.0),
    "output_factor": (1.1, 1.0, 4.0),
    "step_ns": (0.3, 0.001, 10.0),
}
_QUANTIZED: Bounds = {"quantize_bytes": (3.0, 0.5, 20.0)}
_ALL_REDUCE: Bounds = {
    "launch_us": (3.0, 0.5, 20.0),
    "peer_us": (0.2, 0.01, 5.0),
    "once_efficiency": (0.6, 0.1, 1.0),
    "sync_us": (4.0, 0.1, 40.0),
    "twice_efficiency": (0.7, 0.1, 1.0),
}
_PREFILL: Bounds = {
    "launch_us": (9.0, 1.0, 40.0),
    "ramp_tokens": (100.0, 1.0, 2000.0),
    "tail": (0.5, 0.01, 5.0),
    "tile_us": (1.0, 0.01, 20.0),
    "kv_factor": (2.0, 1.0, 20.0),
}
_DECODE: Bounds = {
    "launch_us": (9.0, 1.0, 40.0),
    "doubling_us": (0.7, 0.01, 8.0),
    "wave_us": (1.5, 0.01, 20.0),
    "pad_tokens": (100.0, 1.0, 1000.0),
    "cached_share": (0.5, 0.01, 0.95),
    "cache_fraction": (0.6, 0.2, 1.0),
    "query_factor": (1.0, 0.5, 10.0),
    "compute_rate": (0.4, 0.15, 0.9),
}
#: relative to the bfloat16 rate: fp8 products may be twice as fast, and one engine dequantizes the
#: latent, so that its products seem slow
_LATENT: Bounds = {"compute_rate": (0.8, 0.05, 1.9)}
_WINDOW: Bounds = {"window_us": (1.0, 0.001, 20.0)}
_PREFILL_SHARE, _READ_SHARE = (0.6, 0.03, 1.1), (0.6, 0.3, 1.0)
#: rows of a tile of latent attention, which the fitted rows cannot tell: a matrix instruction takes
#: 64 rows on Hopper and 128 on Blackwell (NVIDIA, PTX ISA, wgmma and tcgen05.mma), and the tiles of
#: FlashAttention-3's fp8 kernels have 128 or more (Dao-AILab/flash-attention, hopper/tile_size.h)
_SMALL_TILE, _LARGE_TILE, _BLACKWELL = 64.0, 128.0, 100
_TITLES: dict[Op, str] = {
    "gemm": "Dense GEMMs of serving engines: tiles, splits and bytes",
    "all_reduce": "All-reduces of serving engines within an NVLink domain",
    "prefill": "Attention of a prefill: pairs, tiles and bytes",
    "decode": "Attention of a decode: bytes of the KV cache",
    # counted as projected up on both, see `moesim.costs.dense.prices.DensePrices.latent_prefill`
    "mla_prefill": "Multi-head latent attention of a prefill: absorbed on Hopper, not on Blackwell",
    "mla_decode": "Multi-head latent attention of a decode, absorbed",
}


def calibrate(kind: Kind, folder: Path) -> dict[str, dict[str, float]]:
    """Fit every price of a kind, and write its calibration files.

    Args:
        kind: ``dense`` or ``attention``.
        folder: Folder for the files.

    Returns:
        Scores on groups left out of the fit, on rows of 20 us and more, by what was fitted.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    scores: dict[str, dict[str, float]] = {}
    for op in OPS[kind]:
        found = fit_op(op, FITTED[kind])
        command = f"moesim calibrate {kind}"
        write_calibration(folder / f"{CALIBRATIONS[op]}.toml", found, command)
        scores |= {f"{CALIBRATIONS[op]} {name}": one for name, one in found.scores.items()}
    return scores


def fit_op(op: Op, systems: tuple[str, ...]) -> Fitted:
    """Fit one kind of price to the rows of several systems that may be fitted.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    parameters: dict[str, float] = {}
    cells, scores, sources, groups = [], {}, [], []
    profiles: dict[str, int] = {}
    sets: list[tuple[Any, dict[str, float]]] = []
    count = 0
    for system in systems:
        rows = load_rows(op, system)
        rows = rows[rows["dataset"].isin(DATASETS) & rows["main"]]
        profile = load_profile(system)
        for (dataset, fmt), part in rows.groupby(["dataset", "format"]):
            values, own, score = fit_set(op, fmt, part)
            sets.append((_plain(part[part["fitted"]]), values))
            start = prefix(dataset, fmt, generation_of(profile))
            parameters |= {start + name: value for name, value in values.items()}
            cells += [cell | {"version": dataset} for cell in own]
            scores[start.rstrip("_").replace("_", "-")] = score
            sources.append(f"aiconfigurator-core 0.12.0, {system} {dataset}")
            count += int(part["fitted"].sum())
            profiles[profile.name] = generation_of(profile)
            groups.append(f"{system} {dataset} {fmt}: {_group_count(op, part)}")
    parameters |= _engine_half_width(op, sets)
    return Fitted(
        title=_TITLES[op],
        fitted_on=(
            f"{count} rows: groups ({', '.join(GROUP[op])}) of which the first byte of "
            "the SHA-256 of the comma-separated numbers is even; the others score"
        ),
        sources=list(dict.fromkeys(sources)),
        profiles=list(profiles),
        generations=sorted(set(profiles.values())),
        parameters=parameters,
        scores=scores,
        fit_groups=groups,
        cells=cells,
    )


def fit_set(
    op: Op, fmt: str, rows
) -> tuple[dict[str, float], list[dict[str, Any]], dict[str, float]]:
    """Fit one set of parameters: all but one to rows without a window, and what a window costs to
    those with one.

    Args:
        op: Kind of price.
        fmt: Format.
        rows: DataFrame of one system, dataset and format; ``fitted`` says which rows are fitted.

    Returns:
        The parameters, the cells without their version, and the scores of the rows not fitted and
        without a window.
    """
    plain, windowed = _plain(rows), rows[is_windowed(rows)]
    generation = generation_of(load_profile(rows["system"].iloc[0]))
    mine = plain[plain["fitted"]]
    attention = {} if op in OPS["dense"] else {"window_us": 0.0}
    found = [
        _fit_free(op, mine, bounds_of(op, fmt, mine), attention | rule)
        for rule in _rules(op, fmt, generation)
    ]
    _, values = min(found, key=lambda one: one[0])
    cells = [_cell(op, fmt, plain, values)]
    if windowed["fitted"].any():
        _, values = _fit_free(op, windowed[windowed["fitted"]], _WINDOW, values)
        cells.append(_cell(op, fmt + WINDOW, windowed, values))
    others = plain[~plain["fitted"]]
    others = others[others["seconds"] >= FLOOR_S]
    scores = error_scores(_batch(op, others).seconds(values), others["seconds"].to_numpy())
    return values, cells, scores


def _plain(rows):
    return rows[~is_windowed(rows)]


def _fit_free(
    op: Op, rows, bounds: Bounds, fixed: dict[str, float]
) -> tuple[float, dict[str, float]]:
    """Fit some parameters to rows while others are fixed.

    Returns:
        The weighted mean of the absolute log errors, and all parameters.
    """
    batch, measured = _batch(op, rows), rows["seconds"].to_numpy()
    weights = np.where(measured >= FLOOR_S, 1.0, _SHORT_WEIGHT)

    def log_errors(free: dict[str, float]) -> Array:
        return np.log(batch.seconds(fixed | free) / measured)

    free = robust_fit(log_errors, bounds, weights / weights.mean())
    return float(np.mean(weights * np.abs(log_errors(free)))), fixed | free


def _cell(op: Op, name: str, rows, values: dict[str, float]) -> dict[str, Any]:
    """Return the cell of a set: its spread on rows left out of the fit."""
    others, profile = rows[~rows["fitted"]], load_profile(rows["system"].iloc[0])
    ratios = others["seconds"].to_numpy() / _batch(op, others).seconds(values)
    low, high = np.percentile(ratios, (10, 90))
    return {
        "device": profile.name,
        "generation": generation_of(profile),
        "format": name,
        "ep": ONE_RANK,
        "low": float(low),
        "high": float(high),
        "kind": "groups left out of the fit",
        "rows": int(rows["fitted"].sum()),
    }


def _engine_half_width(op: Op, sets: list[tuple[Any, dict[str, float]]]) -> dict[str, float]:
    """Return what crossing the engine costs: half the logarithmic width of the 80 % interval of
    the fitted rows of each engine, priced by the parameters of another of the same system and
    format; nothing where one engine was fitted.

    Args:
        op: Kind of price.
        sets: Fitted rows and parameters.
    """
    found = []
    for (rows, _), (others, values) in permutations(sets, 2):
        if (rows[_LIKE].iloc[0] == others[_LIKE].iloc[0]).all():
            predicted = _batch(op, rows).seconds(values)
            found.append(np.abs(np.log(predicted / rows["seconds"].to_numpy())))
    if not found:
        return {}
    return {ENGINE_HALF_WIDTH: float(np.percentile(np.concatenate(found), 80))}


def _batch(op: Op, rows) -> DenseBatch:
    """Return rows of one system and format as what is priced."""
    return DenseBatch(
        op=op,
        fmt=rows["format"].iloc[0],
        system=rows["system"].iloc[0],
        sizes=sizes_of(rows, SIZES[op]),
    )


def bounds_of(op: Op, fmt: str, rows) -> Bounds:
    """Return first guesses and limits of the parameters that rows can tell."""
    if op == "gemm":
        return _GEMM if fmt == "bfloat16" else _GEMM | _QUANTIZED
    if op == "all_reduce":
        return _ALL_REDUCE
    if "prefill" in op:
        sizes = _sizes(rows, _PREFILL_SIZES, 192)
        return _PREFILL | {f"{prefill.EFFICIENCY}{size}": _PREFILL_SHARE for size in sizes}
    sizes = _sizes(rows, _DECODE_SIZES, 576)
    latent = _LATENT if op == "mla_decode" else {}
    return _DECODE | latent | {f"{decode.EFFICIENCY}{size}": _READ_SHARE for size in sizes}


def _rules(op: Op, fmt: str, generation: int) -> list[dict[str, float]]:
    """Return the rules of tiles of which the fitted rows choose one."""
    if op == "prefill":
        return [{"packed": 1.0}, {"packed": 0.0}]
    if op == "decode":
        return [{"tile_rows": _SMALL_TILE}, {"tile_rows": _LARGE_TILE}]
    if op == "mla_decode":
        small = fmt == "bfloat16" and generation < _BLACKWELL
        return [{"tile_rows": _SMALL_TILE if small else _LARGE_TILE}]
    # every head has its own keys and values
    return [{"packed": 1.0}] if op == "mla_prefill" else [{}]


def _sizes(rows, known: tuple[int, ...], latent: int) -> list[int]:
    """Return the head sizes that rows have, or that of multi-head latent attention."""
    if "head_dim" not in rows:
        return [latent]
    there = set(rows["head_dim"])
    return [size for size in known if size in there]


def _group_count(op: Op, rows) -> str:
    """Return how many groups and rows were fitted, of how many."""
    columns = list(GROUP[op])
    fitted = rows[rows["fitted"]]
    return (
        f"{len(fitted.drop_duplicates(columns))} of {len(rows.drop_duplicates(columns))} groups, "
        f"{len(fitted)} of {len(rows)} rows"
    )
