"""Check candidates against measured rows of the kernels they run: expert phase against expert
phase, for exact shapes only.

A candidate on D devices with T tokens each has D x T tokens in total. The row that times its kernel
has that many tokens, the same experts, top-k, width, format, tp and ep, and the same load
distribution. If that number of tokens was not measured, but smaller and larger ones were, the time
is interpolated linearly between both in logarithms, and the row is marked ``interpolated``; nothing
else is interpolated, and nothing is extrapolated.

A design that another library runs is checked against that library's rows; those of the Triton
kernels of SGLang and vLLM count for any other. The row is predicted with its *own* semantics
(`moesim.measured.kernels.table`): experts contiguous, the hottest rank, no gate limits, warm L2,
the tile that the framework ran. The check is therefore of a candidate's kernel, not of its
placement and gate.
"""

from functools import cache
from typing import Any

import numpy as np

from moesim.costs.calibration import load_calibration
from moesim.design.candidate import Candidate, Workload
from moesim.errors import MoesimError
from moesim.hardware import Cluster
from moesim.hardware.libraries import kernel_library
from moesim.measured.kernels import table as silicon
from moesim.measured.kernels.draws import (
    PRECISION,
    draw_rows,
    residual_class,
    row_kernels,
    row_tile,
)
from moesim.measured.kernels.family_calibrate import may_fit as may_fit_family
from moesim.measured.kernels.family_predict import family_rows, predict_family
from moesim.measured.kernels.family_records import FAMILIES, KernelFamily
from moesim.measured.kernels.groups import may_fit
from moesim.measured.sources import CheckRow
from moesim.model import MoELayer
from moesim.simulation.prepare import prepare
from moesim.units import US

#: device profile -> its datasets, the most trusted first
DATASETS = {
    "h100-sxm": ("sglang/0.5.14", "sglang/0.5.10", "vllm/0.24.0"),
    "a100-sxm": ("sglang/0.5.10",),
}
_PRECISION_NAMES = {dtype: precision.name for dtype, precision in PRECISION.items()}


def distribution_of(routing: str) -> str:
    """Return a routing's name in the datasets: ``balanced`` for uniform, ``power_law_1.2`` for
    ``power_law:1.2``.
    """
    return "balanced" if routing == "uniform" else routing.replace(":", "_")


def measured_architectures(
    cluster: Cluster, workload: Workload, hidden_size: int
) -> list[dict[str, Any]]:
    """Return every architecture of one hidden size that was measured on this device under this
    workload.

    Returns:
        Points of `moesim.search.Space` (num_experts, top_k, expert_intermediate_size, parallelism,
        precision), each once, in order; empty without the extra ``silicon`` or without rows of the
        device.
    """
    if silicon.unavailable_because():
        return []
    points: dict[tuple, dict[str, Any]] = {}
    devices = cluster.num_devices
    for dataset in DATASETS.get(cluster.profile.name, ()):
        rows = silicon.load_rows(cluster.profile.name.replace("-", "_"), dataset)
        rows = rows[
            (rows["hidden_size"] == hidden_size)
            & rows["moe_dtype"].isin(PRECISION)
            & (rows["num_tokens"] == devices * workload.num_tokens_per_device)
            & (rows["distribution"] == distribution_of(workload.routing))
            & (rows["moe_tp_size"] * rows["moe_ep_size"] == devices)
        ]
        for row in rows.to_dict("records"):
            point = {
                "num_experts": row["num_experts"],
                "top_k": row["topk"],
                "expert_intermediate_size": row["inter_size"],
                "parallelism": f"ep{row['moe_ep_size']}tp{row['moe_tp_size']}",
                "precision": _PRECISION_NAMES[row["moe_dtype"]],
            }
            points.setdefault(tuple(point.values()), point)
    return [points[key] for key in sorted(points)]


class Silicon:
    """The measured rows of aiconfigurator-core as a measurement source."""

    name = "silicon"

    def unavailable_because(self) -> str | None:
        """Return which packages are missing, or None."""
        return silicon.unavailable_because()

    def check(self, candidate: Candidate, cluster: Cluster, workload: Workload) -> list[CheckRow]:
        """Look up the exact row, or interpolate over tokens, and predict it with its
        own semantics.
        """
        return [self._check(candidate, cluster, workload)]

    def _check(self, candidate: Candidate, cluster: Cluster, workload: Workload) -> CheckRow:
        about: dict[str, Any] = {
            "candidate": candidate.label,
            "source": self.name,
            "quantity": "experts_time_us",
            "seed": workload.seed,
        }
        if reason := self.unavailable_because():
            return CheckRow(status="unavailable", detail=reason, **about)
        try:
            library = prepare(candidate, cluster, workload).kernels
        except MoesimError as error:  # it cannot be simulated, so that nothing is compared
            return CheckRow(status="not_measured", detail=str(error), **about)
        if library in FAMILIES:
            return self._of_library(FAMILIES[library], candidate, cluster, workload, about)
        row = self._row(candidate.layer, candidate, cluster, workload)
        if row is None:
            return CheckRow(
                status="not_measured",
                detail=f"no row of exactly this shape on {cluster.profile.name}, nor rows "
                "of fewer and more tokens",
                **about,
            )
        profile = cluster.profile
        kernels = row_kernels(row["dataset"], profile)
        calibration = kernels.calibration
        predicted = float(draw_rows([row], profile).price(kernels)[0])
        low, high = calibration.interval(
            residual_class(row["moe_dtype"], row["moe_ep_size"]), row["dataset"]
        )
        tile = row_tile(row, profile.name)
        return CheckRow(
            status="checked",
            simulated=predicted / US,
            simulated_low=predicted * low / US,
            simulated_high=predicted * high / US,
            measured=row["latency_ms"] * 1e3,
            interpolated="between" in row,
            in_fit_set=may_fit(row),
            calibration=calibration.level,
            engine="kernel_model",
            profile_hash=calibration.digest,
            detail=f"{row['dataset']} {row['kernel_source']}, {row['num_tokens']} tokens, "
            f"{row['distribution']}, tp{row['moe_tp_size']} ep{row['moe_ep_size']}, tile "
            f"{tile}: contiguous experts, hottest rank, no gate limits, warm L2; measured is "
            "a mean of back-to-back calls" + _between(row),
            extra=_key_of(row),
            **about,
        )

    def _of_library(
        self,
        family: KernelFamily,
        candidate: Candidate,
        cluster: Cluster,
        workload: Workload,
        about: dict[str, Any],
    ) -> CheckRow:
        """Look up a row of the library that runs the design, and predict it by its prices."""
        profile, layer = cluster.profile, candidate.layer
        dtype = kernel_library(family.name).formats[layer.precision.name]
        plain = not layer.num_shared_experts and layer.capacity_factor is None and not layer.uneven
        wanted = _wanted(candidate, workload) | {"moe_dtype": dtype}
        num_tokens = cluster.num_devices * workload.num_tokens_per_device
        found = []
        for table in _tables(profile.name.replace("-", "_"), family.name) if plain else ():
            rows = table
            for column, value in wanted.items():
                rows = rows[rows[column] == value]
            found.append(_at_tokens(rows.to_dict("records"), num_tokens))
        known = [row for row in found if row is not None]
        row = min(known, key=lambda one: "between" in one, default=None)
        if row is None:
            return CheckRow(
                status="not_measured",
                detail=f"no row of {family.name} of exactly this shape on {profile.name}, nor rows "
                "of fewer and more tokens",
                **about,
            )
        predicted = predict_family([row], profile, family)
        return CheckRow(
            status="checked",
            simulated=float(predicted["predicted_latency_ms"][0]) * 1e3,
            simulated_low=float(predicted["low_ms"][0]) * 1e3,
            simulated_high=float(predicted["high_ms"][0]) * 1e3,
            measured=row["latency_ms"] * 1e3,
            interpolated="between" in row,
            in_fit_set=may_fit_family(row),
            calibration=str(predicted["calibration"][0]),
            engine="kernel_model",
            profile_hash=load_calibration(family.name, profile).digest,
            detail=f"{row['dataset']} {row['kernel_source']}, {row['num_tokens']} tokens, "
            f"{row['distribution']}, tp{row['moe_tp_size']} ep{row['moe_ep_size']}: contiguous "
            "experts, hottest rank, no gate limits; measured is a mean of back-to-back calls"
            + _between(row),
            extra=_key_of(row),
            **about,
        )

    def _row(
        self, layer: MoELayer, candidate: Candidate, cluster: Cluster, workload: Workload
    ) -> dict | None:
        if (
            not layer.gated
            or layer.num_shared_experts
            or layer.capacity_factor is not None
            or layer.uneven
        ):
            return None
        dtypes = {name: dtype for dtype, name in _PRECISION_NAMES.items()}
        num_tokens = cluster.num_devices * workload.num_tokens_per_device
        wanted = _wanted(candidate, workload) | {"moe_dtype": dtypes.get(layer.precision.name)}
        same_but_tokens = []
        for dataset in DATASETS.get(cluster.profile.name, ()):
            rows = silicon.load_rows(cluster.profile.name.replace("-", "_"), dataset)
            for column, value in wanted.items():
                rows = rows[rows[column] == value]
            same_but_tokens.append(rows.to_dict("records"))
        found = [_at_tokens(rows, num_tokens) for rows in same_but_tokens]
        known = [row for row in found if row is not None]
        return min(known, key=lambda row: "between" in row, default=None)


def _wanted(candidate: Candidate, workload: Workload) -> dict[str, Any]:
    """Return what a row of the design's experts must have, apart from its format and tokens."""
    layer = candidate.layer
    return {
        "hidden_size": layer.hidden_size,
        "inter_size": layer.expert_intermediate_size,
        "topk": layer.top_k,
        "num_experts": layer.num_experts,
        "moe_tp_size": candidate.parallelism.tp,
        "moe_ep_size": candidate.parallelism.ep,
        "distribution": distribution_of(workload.routing),
    }


@cache
def _tables(system: str, name: str) -> list:
    """Return the rows of a library on a system, a table for each dataset, the newest first."""
    family = FAMILIES[name]
    found = silicon.datasets(system, every=True, name=family.table)
    return [family_rows(system, dataset, family)[0] for dataset in reversed(found)]


def _between(row: dict[str, Any]) -> str:
    if "between" not in row:
        return ""
    return ", interpolated between {} and {} tokens".format(*row["between"])


def _key_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return what tells a row from others, for those that count distinct rows."""
    names = ("num_experts", "topk", "inter_size", "moe_dtype", "moe_tp_size", "moe_ep_size")
    return {"row": (row["dataset"], *(row[name] for name in names), row["num_tokens"])}


def _at_tokens(rows: list[dict[str, Any]], num_tokens: int) -> dict[str, Any] | None:
    """Return the row of a number of tokens, or one interpolated between the next smaller and larger
    numbers, which its ``between`` names.
    """
    by_tokens: dict[int, dict[str, Any]] = {}
    for row in rows:
        by_tokens.setdefault(row["num_tokens"], row)
    if num_tokens in by_tokens:
        return by_tokens[num_tokens]
    below, above = (
        [n for n in by_tokens if n < num_tokens],
        [n for n in by_tokens if n > num_tokens],
    )
    if not below or not above:
        return None
    low, high = max(below), min(above)
    latency = np.exp(
        np.interp(
            np.log(num_tokens),
            np.log([low, high]),
            np.log([by_tokens[n]["latency_ms"] for n in (low, high)]),
        )
    )
    return by_tokens[low] | {
        "num_tokens": num_tokens,
        "latency_ms": float(latency),
        "between": (low, high),
    }
