"""Fit the communication kernels to the rows that may be fitted: ``moesim calibrate comm``, about
two minutes.

One file per kernel. Robust log-error fits (`fitting.robust_fit`); scores and intervals from rows
left out: every fifth size of NCCL, a shape of DeepEP, an EP size of NVL72. A device of a generation
nobody fitted gets wider intervals: NCCL was fitted on two generations, each of which is predicted
from the other, without (``other_generation``) and with ten rows of its own
(``other_generation_few_shot``); for DeepEP, fitted on one, that spread adds to its own in
quadrature.

Factors of devices with ten NCCL rows: start, ceiling and port efficiency of its all-to-all; rings
follow. DeepEP's latencies - starts, work per token that moves no bytes, pipeline depth - take one
factor: that of NCCL's start, ceiling and ramp when the ten rows may move them only together. Bytes
take as long as the spec sheet says.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from moesim.costs.calibration import generation_of
from moesim.costs.comm.nccl import COLLECTIVES
from moesim.measured.exchanges.batches import PHASES
from moesim.measured.exchanges.fit import (
    Factors,
    Parameters,
    Quantity,
    Residuals,
    Scores,
    fitted_rows,
    in_quadrature,
    release_spread,
    residual,
    scores_by,
    spread,
    symmetric_spread,
)
from moesim.measured.exchanges.table import few_shot_rows, systems
from moesim.measured.fitting import Bounds, Fitted, few_shot_fit, write_calibration

_FOLDS = 5
_CROSS = "cross-validated"
#: class of residuals that says how well a device of one generation foretells one of another;
#: elements of its rows
_TRANSFER, _LARGE = "transfer", 1 << 16
_NCCL: Bounds = {
    "start_us": (7.0, 1.0, 40.0),
    "port_efficiency": (0.7, 0.3, 1.0),
    "few_peers": (0.13, 0.001, 2.0),
    "ramp_kb": (5000.0, 1.0, 50000.0),
    "ramp_knee_kb": (2000.0, 10.0, 50000.0),
    "protocol_gb_per_s": (6.0, 0.5, 200.0),
    "ceiling_us": (14.0, 1.0, 60.0),
}
_LEGACY: Bounds = {"legacy_ceiling_us": (9.0, 1.0, 60.0)}
_HOP: Bounds = {"hop_us": (0.8, 0.01, 5.0)}
#: what an A100 has of its own, and what ten rows may move
_OWN = ("start_us", "ceiling_us", "port_efficiency")
_LATENCIES = ("alltoall_start_us", "alltoall_ceiling_us", "alltoall_ramp_kb")
#: CTAs of the kernel: 32 point-to-point channels, 24 ring channels as NCCL prints them on 8 H100
#: (assumed)
_CHANNELS, _RING_CHANNELS = 32.0, 24.0
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
_NORMAL_LATENCIES = (
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
        "port_efficiency": (0.5, 0.2, 1.0),
        "nic_efficiency": (0.94, 0.5, 1.0),
        "node_us": (12.0, 0.1, 30.0),
    },
}
_LOW_LATENCY_LATENCIES = tuple(
    f"{direction}_{name}"
    for direction in _LOW_LATENCY
    for name in ("start_us", "expert_us", "token_us", "node_us")
)
_NVL72: Bounds = {
    "start_us": (9.0, 1.0, 40.0),
    "rank_us": (1.2, 0.01, 10.0),
    "port_efficiency": (0.7, 0.1, 1.0),
    "token_us": (0.02, 0.0001, 0.5),
}
_TABLES = "aiconfigurator-core 0.12, "


#: files that `calibrate` writes
NAMES = ("nccl", "deepep-normal", "deepep-ll", "nvl72")


def _folds(values) -> np.ndarray:
    """Every fifth of the distinct values: ndarray of int."""
    return np.unique(np.asarray(values), return_inverse=True)[1] % _FOLDS


def _nccl_quantity(rows, collective: str, node: Parameters) -> Quantity:
    own = rows[rows["op_name"] == collective].reset_index(drop=True)
    if collective == "alltoall":
        bounds, fixed = _NCCL | _LEGACY, node | {"channels": _CHANNELS, "hop_us": 0.0}
    else:
        bounds, fixed = _NCCL | _HOP, node | {"channels": _RING_CHANNELS}
    return Quantity(
        rows=own, kind=collective, bounds=bounds, fixed=fixed, factors={"a100_sxm": _OWN}
    )


def _own_factors(shot: Quantity, parameters: Parameters) -> Parameters:
    """Factors of a device from ten all-to-all rows: start, ceiling, port efficiency."""
    names = tuple(f"alltoall_{n}" for n in _OWN)
    found = few_shot_fit(lambda p: np.log(shot.predict(p, {}) / shot.measured), parameters, names)
    return {n: found[f"alltoall_{n}"] for n in _OWN}


def _latency_factor(shot: Quantity, parameters: Parameters) -> float:
    """How much longer all latencies of a device are, from the same rows."""

    def log_errors(p: Parameters) -> np.ndarray:
        moved = {n: v * (p["latency"] if n in _LATENCIES else 1.0) for n, v in p.items()}
        return np.log(shot.predict(moved, {}) / shot.measured)

    return few_shot_fit(
        log_errors, parameters | {"latency": 1.0}, ("latency", "alltoall_port_efficiency")
    )["latency"]


def _of_collective(own: Parameters, collective: str) -> Parameters:
    """Factors of a collective after the all-to-all's; a ring is hops of the short protocol, whose
    start it shares.
    """
    ceiling = own["ceiling_us"] if collective == "alltoall" else own["start_us"]
    return {f"{collective}_{n}": v for n, v in (own | {"ceiling_us": ceiling}).items()}


def _as_shot(rows, system: str):
    """The rows of a fitted device that stand where the ten of B200 do, of one version."""
    place = ["num_gpus", "message_size"]
    shots = few_shot_rows()
    wanted = set(shots[shots["system"] == "b200_sxm"][place].itertuples(index=False, name=None))
    part = rows[
        (rows["system"] == system)
        & (rows["op_name"] == "alltoall")
        & (rows["nccl_dtype"] == "half")
    ]
    part = part[part["dataset"] == part["dataset"].max()]
    here = [key in wanted for key in part[place].itertuples(index=False, name=None)]
    return part[here].reset_index(drop=True)


def fit_nccl(low_latency: Parameters) -> tuple[Fitted, Parameters]:
    """NCCL's collectives on A100 and H100; few-shot factors of three Blackwells.

    Args:
        low_latency: DeepEP's low-latency parameters: what nodes and NICs cost, which no NCCL row
            shows.

    Returns:
        The fit, and device -> the one factor of all its latencies.
    """
    rows = fitted_rows("nccl", ("a100_sxm", "h100_sxm"))
    node = {
        "node_us": low_latency["dispatch_node_us"],
        "nic_efficiency": low_latency["dispatch_nic_efficiency"],
    }
    parameters: Parameters = {}
    factors: Factors = {"a100-sxm": {}}
    residuals: Residuals = {}
    scores: Scores = {}
    alone: dict[str, tuple[Parameters, Parameters]] = {}
    for collective in COLLECTIVES:
        quantity = _nccl_quantity(rows, collective, node)
        some, of_a100 = quantity.fit()
        parameters |= some
        factors["a100-sxm"] |= of_a100["a100_sxm"]
        predicted = quantity.cross_validate(_folds(quantity.rows["message_size"]))
        ratio = quantity.measured / predicted
        near = residual(spread(ratio), len(ratio), f"{_CROSS} by size")
        residuals |= {f"calibrated-{collective}": near, f"spec_sheet-{collective}": near}
        scores |= {
            f"{k}-{collective}": v
            for k, v in scores_by(
                quantity.rows,
                predicted,
                quantity.measured,
                lambda r: r["system"].str.replace("_", "-"),
            ).items()
        }
        without, with_ten, large = [], [], []
        for device, other in (("a100_sxm", "h100_sxm"), ("h100_sxm", "a100_sxm")):
            is_other = (quantity.rows["system"] == other).to_numpy()
            here, there = quantity.of(~is_other), quantity.of(is_other)
            guessed, _ = there.fit()
            if collective == "alltoall":
                shot = replace(here, rows=_as_shot(rows, device))
                alone[device] = guessed, _own_factors(shot, guessed)
            shot_factors = {device: _of_collective(alone[device][1], collective)}
            large.append((here.rows["message_size"] >= _LARGE).to_numpy())
            without.append(here.measured / here.predict(guessed, {}))
            with_ten.append(here.measured / here.predict(guessed, shot_factors))
        for level, ratios in (
            ("other_generation", without),
            ("other_generation_few_shot", with_ten),
        ):
            both = np.concatenate(ratios)
            residuals[f"{level}-{collective}"] = residual(
                spread(both), len(both), "A100 from H100 and H100 from A100"
            )
            if collective == "alltoall":
                long = both[np.concatenate(large)]
                residuals[f"{level}-{_TRANSFER}"] = residual(
                    spread(long), len(long), "the same, alltoall >= 64 KiB"
                )
    shots = few_shot_rows()
    few_shot: Factors = {}
    latency: Parameters = {}
    for system, ten in shots.groupby("system"):
        shot = replace(
            _nccl_quantity(rows, "alltoall", node), rows=ten.reset_index(drop=True), factors={}
        )
        own = _own_factors(shot, parameters)
        device = systems()[str(system)].profile.name
        latency[device] = _latency_factor(shot, parameters)
        few_shot[device] = {n: v for c in COLLECTIVES for n, v in _of_collective(own, c).items()}
    fitted = Fitted(
        title="NCCL collectives: two protocols, of which the slower decides",
        fitted_on=(
            f"{len(rows)} rows of NCCL on 2, 4 and 8 A100 and H100; few-shot factors on ten rows "
            "per device"
        ),
        sources=[
            f"{_TABLES}nccl_perf.parquet",
            "node_us and nic_efficiency: deepep-ll.toml, no NCCL row spans nodes",
            "channels: what NCCL prints on 8 H100 (assumed)",
        ],
        profiles=["a100-sxm", "h100-sxm"],
        generations=_generations("a100_sxm", "h100_sxm"),
        parameters=parameters,
        device_factors=factors,
        few_shot_factors=few_shot,
        residuals=residuals,
        scores=scores,
        fit_groups=sorted(
            {f"{s} {d}" for s, d in zip(rows["system"], rows["dataset"], strict=True)}
        ),
    )
    return fitted, latency


def _fit_deepep(
    family: str, bounds: dict[str, Bounds], fixed: dict[str, Parameters], title: str, table: str
) -> Fitted:
    rows = fitted_rows(family, ("h100_sxm",))
    parameters: Parameters = {}
    residuals: Residuals = {}
    scores: Scores = {}
    shape = rows[["hidden_size", "num_topk", "num_experts"]].astype(str).agg("-".join, axis=1)
    groups = np.where(
        rows["node_num"] == 1, shape, [f"EP16 {f}" for f in _folds(rows["num_token"])]
    )
    for direction, limits in bounds.items():
        quantity = Quantity(
            rows=rows, kind=direction, bounds=limits, fixed=fixed[direction], factors={}
        )
        parameters |= quantity.fit()[0]
        predicted = quantity.cross_validate(groups)
        both = in_quadrature(spread(quantity.measured / predicted), release_spread(rows, quantity))
        near = residual(both, len(rows), f"{_CROSS} by shape, with the spread between releases")
        residuals |= {f"calibrated-{direction}": near, f"spec_sheet-{direction}": near}
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
        sources=[f"{_TABLES}{table}"],
        profiles=["h100-sxm"],
        generations=_generations("h100_sxm"),
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


def _widened(fitted: Fitted, nccl: Fitted, latency: Parameters, names: tuple[str, ...]) -> Fitted:
    """A fit of one generation with factors of other devices, and intervals there, after NCCL's.

    Args:
        latency: Device -> the factor of parameters ``names``.
    """
    residuals = dict(fitted.residuals)
    # without rows of the device its latencies are unknown, which short exchanges are made of; with
    # ten they are not
    for level, kind in (("other_generation", "alltoall"), ("other_generation_few_shot", _TRANSFER)):
        added = nccl.residuals[f"{level}-{kind}"]
        for direction in ("dispatch", "combine"):
            own = fitted.residuals[f"spec_sheet-{direction}"]
            both = in_quadrature((own["low"], own["high"]), (added["low"], added["high"]))
            residuals[f"{level}-{direction}"] = residual(
                both, own["rows"], f"{own['kind']}, with NCCL's from one generation to another"
            )
    few_shot = {
        device: {n: v for n in names if n in fitted.parameters} for device, v in latency.items()
    }
    return replace(fitted, residuals=residuals, few_shot_factors=few_shot)


def fit_low_latency() -> Fitted:
    """DeepEP's low-latency mode on 8 and 16 H100."""
    return _fit_deepep(
        "deepep_ll",
        _LOW_LATENCY,
        {"dispatch": {}, "combine": {"token_us": 0.0}},
        "DeepEP low latency: a copy per choice",
        "wideep_deepep_ll_perf.parquet",
    )


def fit_normal(low_latency: Parameters) -> Fitted:
    """DeepEP's normal mode on 8 and 16 H100; NIC efficiencies are those of the low-latency mode."""
    fixed = {d: {"nic_efficiency": low_latency[f"{d}_nic_efficiency"]} for d in _NORMAL}
    fitted = _fit_deepep(
        "deepep_normal",
        _NORMAL,
        fixed,
        "DeepEP normal mode: a copy per rank, on a few SMs",
        "wideep_deepep_normal_perf.parquet",
    )
    return replace(fitted, sources=[*fitted.sources, "nic_efficiency: deepep-ll.toml"])


def fit_nvl72() -> Fitted:
    """TensorRT-LLM's all-to-all on GB200 at EP 4, 8 and 16."""
    rows = fitted_rows("nvl72_alltoall", ("gb200",))
    phases = np.array(
        [PHASES[key] for key in zip(rows["op_name"], rows["kernel_source"], strict=True)]
    )
    parameters: Parameters = {}
    residuals: Residuals = {}
    scores: Scores = {}
    for phase in dict.fromkeys(PHASES.values()):
        own = rows[phases == phase].reset_index(drop=True)
        bounds, fixed = dict(_NVL72), {}
        if phase == "prepare":
            fixed["port_efficiency"] = bounds.pop("port_efficiency")[2]
        if own["moe_dtype"].nunique() > 1 and phase == "dispatch_two_sided":
            bounds["local_us_per_kb"] = (0.003, 0.0001, 0.1)
        else:
            fixed["local_us_per_kb"] = 0.0
        quantity = Quantity(rows=own, kind=phase, bounds=bounds, fixed=fixed, factors={})
        parameters |= quantity.fit()[0]
        predicted = quantity.cross_validate(own["moe_ep_size"])
        near = residual(
            symmetric_spread(quantity.measured / predicted),
            len(own),
            f"{_CROSS} by EP size, both ways",
        )
        residuals |= {f"calibrated-{phase}": near, f"spec_sheet-{phase}": near}
        scores |= {
            f"{k}-{phase}": v
            for k, v in scores_by(
                own,
                predicted,
                quantity.measured,
                lambda r: "gb200-EP" + r["moe_ep_size"].astype(str),
            ).items()
        }
    return Fitted(
        title="TensorRT-LLM all-to-all inside an NVL72 domain",
        sources=[f"{_TABLES}trtllm_alltoall_perf.parquet"],
        fitted_on=f"{len(rows)} rows of trtllm_alltoall on GB200 at EP 4, 8 and 16",
        profiles=["gb200"],
        generations=_generations("gb200"),
        parameters=parameters,
        residuals=residuals,
        scores=scores,
        fit_groups=[f"gb200 trtllm_alltoall EP{n}" for n in sorted(rows["moe_ep_size"].unique())],
    )


def _generations(*names: str) -> list[int]:
    return sorted({generation_of(systems()[n].profile) for n in names})


def calibrate(folder: Path) -> dict[str, dict[str, float]]:
    """Fit all kernels, write their files into a folder, and return the cross-validated scores by
    class.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    low_latency = fit_low_latency()
    normal = fit_normal(low_latency.parameters)
    nccl, latency = fit_nccl(low_latency.parameters)
    files = {
        "nccl": nccl,
        "deepep-normal": _widened(normal, nccl, latency, _NORMAL_LATENCIES),
        "deepep-ll": _widened(low_latency, nccl, latency, _LOW_LATENCY_LATENCIES),
        "nvl72": fit_nvl72(),
    }
    scores: Scores = {}
    for name, fitted in files.items():
        write_calibration(folder / f"{name}.toml", fitted, "moesim calibrate comm")
        scores |= {f"{name} {k}": v for k, v in fitted.scores.items()}
    return scores
