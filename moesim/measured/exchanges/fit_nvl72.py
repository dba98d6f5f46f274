"""Fit TensorRT-LLM's all-to-all to measured rows of GB200, inside one NVL72 domain."""

import numpy as np

from moesim.measured.exchanges.batches import PHASES
from moesim.measured.exchanges.fit import (
    CROSS_VALIDATED,
    TABLES,
    FitQuantity,
    Parameters,
    Residuals,
    Scores,
    fitted_rows,
    generations,
    residual,
    scores_by,
    symmetric_spread,
)
from moesim.measured.fitting import Bounds, Fitted

_NVL72: Bounds = {
    "start_us": (9.0, 1.0, 40.0),
    "rank_us": (1.2, 0.01, 10.0),
    "port_efficiency": (0.7, 0.1, 1.0),
    "token_us": (0.02, 0.0001, 0.5),
}


def fit_nvl72() -> Fitted:
    """Fit TensorRT-LLM's all-to-all on GB200 at EP 4, 8 and 16."""
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
        # this phase moves no payload, so its rows say nothing about the port
        if phase == "prepare":
            fixed["port_efficiency"] = bounds.pop("port_efficiency")[2]
        if own["moe_dtype"].nunique() > 1 and phase == "dispatch_two_sided":
            bounds["local_us_per_kb"] = (0.003, 0.0001, 0.1)
        else:
            fixed["local_us_per_kb"] = 0.0
        quantity = FitQuantity(rows=own, kind=phase, bounds=bounds, fixed=fixed, factors={})
        parameters |= quantity.fit()[0]
        predicted = quantity.cross_validate(own["moe_ep_size"])
        near = residual(
            symmetric_spread(quantity.measured / predicted),
            len(own),
            f"{CROSS_VALIDATED} by EP size, both ways",
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
        sources=[f"{TABLES}trtllm_alltoall_perf.parquet"],
        fitted_on=f"{len(rows)} rows of trtllm_alltoall on GB200 at EP 4, 8 and 16",
        profiles=["gb200"],
        generations=generations("gb200"),
        parameters=parameters,
        residuals=residuals,
        scores=scores,
        fit_groups=[f"gb200 trtllm_alltoall EP{n}" for n in sorted(rows["moe_ep_size"].unique())],
    )
