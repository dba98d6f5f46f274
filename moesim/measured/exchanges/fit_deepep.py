"""Fit DeepEP's two modes to measured rows of H100.

Only one generation was measured, so NCCL's spread between generations is added in quadrature for
devices of others. DeepEP's latencies (starts, work per token that moves no bytes, pipeline depth)
take one factor on such a device: that of NCCL's start, ceiling and ramp when the device's ten rows
may move them only together. Bytes take as long as the spec sheet says. Exchanges across nodes have
intervals of their own, from two nodes.
"""

from dataclasses import replace

import numpy as np

from moesim.costs.comm.deepep import ACROSS
from moesim.measured.exchanges.batches import LONG
from moesim.measured.exchanges.fit import (
    CROSS_VALIDATED,
    TABLES,
    FitQuantity,
    Parameters,
    Residuals,
    Scores,
    fitted_rows,
    folds,
    generations,
    in_quadrature,
    release_spread,
    residual,
    scores_by,
    spread,
    symmetric_spread,
)
from moesim.measured.fitting import Bounds, Fitted

_NORMAL: dict[str, Bounds] = {
    "dispatch": {
        "start_us": (23.5, 5.0, 60.0),
        "start_us_per_kb": (0.25, 0.001, 5.0),
        "scan_us": (0.3, 0.001, 3.0),
        "copy_us": (0.055, 0.0001, 1.0),
        "copy_gb_per_s": (27.0, 5.0, 200.0),
        "port_efficiency": (0.77, 0.3, 1.0),
        "fill_us": (12.5, 0.1, 60.0),
        "fill_us_per_kb": (0.3, 0.001, 10.0),
        "hop_factor": (1.4, 0.5, 4.0),
        "node_us": (1.0, 0.01, 40.0),
    },
    "combine": {
        "start_us": (24.0, 5.0, 60.0),
        "start_tokens": (7.4, 0.1, 40.0),
        "token_gb_per_s": (8.2, 1.0, 100.0),
        "copy_gb_per_s": (66.0, 5.0, 500.0),
        "send_gb_per_s": (22.0, 5.0, 200.0),
        "port_efficiency": (0.76, 0.3, 1.0),
        "fill_us": (12.6, 0.1, 60.0),
        "hop_factor": (2.0, 0.5, 6.0),
        "node_us": (1.0, 0.01, 40.0),
    },
}
#: parameters that are latency: bytes take as long as before on a device whose latencies are longer
NORMAL_LATENCIES = (
    "dispatch_start_us",
    "dispatch_scan_us",
    "dispatch_copy_us",
    "dispatch_fill_us",
    "dispatch_fill_us_per_kb",
    "dispatch_node_us",
    "combine_start_us",
    "combine_fill_us",
    "combine_node_us",
)
_LOW_LATENCY: dict[str, Bounds] = {
    "dispatch": {
        "start_us": (8.5, 1.0, 40.0),
        "expert_us": (3.9, 0.01, 20.0),
        "token_us": (2.0, 0.01, 20.0),
        "port_efficiency": (0.57, 0.2, 1.0),
        "nic_efficiency": (0.94, 0.5, 1.0),
        "node_us": (8.0, 0.1, 30.0),
    },
    "combine": {
        "start_us": (10.2, 1.0, 40.0),
        "expert_us": (1.6, 0.01, 20.0),
        "memory_efficiency": (0.2, 0.02, 1.0),
        "nic_efficiency": (0.94, 0.5, 1.0),
        "node_us": (12.0, 0.1, 30.0),
    },
}
LOW_LATENCY_LATENCIES = tuple(
    f"{direction}_{name}"
    for direction in _LOW_LATENCY
    for name in ("start_us", "expert_us", "token_us", "node_us")
)
#: levels of calibration of devices of the fitted generation
_NEAR = ("calibrated", "spec_sheet")
_ROWS = {
    "deepep_normal": "wideep_deepep_normal_perf.parquet",
    "deepep_ll": "wideep_deepep_ll_perf.parquet",
}


def _fit_deepep(
    family: str, bounds: dict[str, Bounds], fixed: dict[str, Parameters], title: str, source: str
) -> Fitted:
    rows = fitted_rows(family, ("h100_sxm",))
    parameters: Parameters = {}
    residuals: Residuals = {}
    scores: Scores = {}
    shape = rows[["hidden_size", "num_topk", "num_experts"]].astype(str).agg("-".join, axis=1)
    # fold by shape inside a node; across nodes, where shapes are few, by number of tokens
    groups = np.where(rows["node_num"] == 1, shape, [f"EP16 {f}" for f in folds(rows["num_token"])])
    for direction, limits in bounds.items():
        quantity = FitQuantity(
            rows=rows, kind=direction, bounds=limits, fixed=fixed[direction], factors={}
        )
        parameters |= quantity.fit()[0]
        predicted = quantity.cross_validate(groups)
        ratios, far = quantity.measured / predicted, (rows["node_num"] > 1).to_numpy()
        releases = release_spread(rows, quantity)
        for suffix, chosen, width, by in (
            ("", ~far, spread, "shape"),
            (ACROSS, far, symmetric_spread, "number of tokens, both ways"),
        ):
            entry = residual(
                in_quadrature(width(ratios[chosen]), releases),
                int(chosen.sum()),
                f"{CROSS_VALIDATED} by {by}, with the spread between releases",
            )
            residuals |= {f"{level}-{direction}{suffix}": entry for level in _NEAR}
        scores |= {
            f"{k}-{direction}": v
            for k, v in scores_by(
                rows,
                predicted,
                quantity.measured,
                lambda r: "h100-sxm-EP" + (8 * r["node_num"]).astype(str),
            ).items()
        }
    return Fitted(
        title=title,
        fitted_on=f"{len(rows)} rows of DeepEP on 8 and 16 H100, top-k not 1, 2 or 22",
        sources=[f"{TABLES}{_ROWS[family]}", source],
        profiles=["h100-sxm"],
        generations=generations("h100_sxm"),
        parameters=parameters,
        residuals=residuals,
        scores=scores,
        fit_groups=sorted(
            {
                f"h100_sxm {d} EP{8 * n}"
                for d, n in zip(rows["dataset"], rows["node_num"], strict=True)
            }
        ),
    )


def widened(fitted: Fitted, nccl: Fitted, latency: Parameters, names: tuple[str, ...]) -> Fitted:
    """Add factors and intervals of other devices to a fit of one generation, derived from NCCL's.

    Args:
        fitted: The fit of DeepEP.
        nccl: The fit of NCCL.
        latency: Device -> the factor of the parameters ``names``.
        names: Parameters that are latencies.
    """
    residuals = dict(fitted.residuals)
    # without rows of the device its latencies are unknown, and short exchanges consist of them; ten
    # rows make them known
    for level, kind in (
        ("other_generation", "alltoall"),
        ("other_generation_few_shot", f"alltoall{LONG}"),
    ):
        added = nccl.residuals[f"{level}-{kind}"]
        for direction in (f"{d}{a}" for d in ("dispatch", "combine") for a in ("", ACROSS)):
            own = fitted.residuals[f"spec_sheet-{direction}"]
            both = in_quadrature((own["low"], own["high"]), (added["low"], added["high"]))
            residuals[f"{level}-{direction}"] = residual(
                both, own["rows"], f"{own['kind']}, with NCCL's from one generation to another"
            )
    few_shot = {
        device: {n: v for n in names if n in fitted.parameters} for device, v in latency.items()
    }
    return replace(fitted, residuals=residuals, few_shot_factors=few_shot)


def fit_network() -> Parameters:
    """Fit what nodes and NICs cost to low-latency dispatch on 8 and 16 H100.

    Returns:
        ``node_us`` and ``nic_efficiency``.
    """
    quantity = FitQuantity(
        rows=fitted_rows("deepep_ll", ("h100_sxm",)),
        kind="dispatch",
        bounds=_LOW_LATENCY["dispatch"],
        fixed={},
        factors={},
    )
    found = quantity.fit()[0]
    return {n: found[f"dispatch_{n}"] for n in ("node_us", "nic_efficiency")}


def fit_low_latency(normal: Parameters) -> Fitted:
    """Fit DeepEP's low-latency mode on 8 and 16 H100; in combine the port is as efficient as in the
    normal mode's.

    Rows of one port rate cannot tell how long a copy is read and how long it travels.
    """
    port = {"port_efficiency": normal["combine_port_efficiency"]}
    return _fit_deepep(
        "deepep_ll",
        _LOW_LATENCY,
        {"dispatch": {}, "combine": port},
        "DeepEP low latency: a copy per choice",
        "combine_port_efficiency: deepep-normal.toml",
    )


def fit_normal(network: Parameters) -> Fitted:
    """Fit DeepEP's normal mode on 8 and 16 H100; the NIC's efficiency is that of `fit_network`."""
    fixed = {d: {"nic_efficiency": network["nic_efficiency"]} for d in _NORMAL}
    return _fit_deepep(
        "deepep_normal",
        _NORMAL,
        fixed,
        "DeepEP normal mode: a copy per rank, on a few SMs",
        "nic_efficiency: that of dispatch in deepep-ll.toml",
    )
