"""Check candidates against measured Triton rows: expert phase against expert phase, exact shapes only.

A candidate on D devices with T tokens each meets D x T tokens in all; the row that times its kernel has that many
tokens, the same experts, top-k, width, format, tp and ep, and the same distribution of load. The row is predicted at
its *own* semantics (`moesim.measured.silicon`): experts contiguous, the hottest rank, no gate limits, warm L2, the
tile that framework ran. A candidate's placement and gate are therefore not what is checked here; its kernel is.
"""

from typing import Any

from moesim.candidate import Candidate, Workload
from moesim.measured import silicon
from moesim.measured.calibrate_kernels import may_fit
from moesim.measured.rows import PRECISION, draw_rows, residual_class, row_kernels, row_tile
from moesim.measured.sources import CheckRow
from moesim.model import MoELayer
from moesim.topology import Cluster
from moesim.units import US

#: datasets by device profile, the one to trust first
DATASETS = {"h100-sxm": ("sglang/0.5.14", "sglang/0.5.10", "vllm/0.24.0"), "a100-sxm": ("sglang/0.5.10",)}
_PRECISION_NAMES = {dtype: precision.name for dtype, precision in PRECISION.items()}


def distribution_of(routing: str) -> str:
    """The dataset's name of a routing: ``balanced`` for uniform, ``power_law_1.2`` for ``power_law:1.2``."""
    return "balanced" if routing == "uniform" else routing.replace(":", "_")


def measured_architectures(cluster: Cluster, workload: Workload, hidden_size: int) -> list[dict[str, Any]]:
    """Every architecture of one hidden size that the data measured on this device under this workload.

    Returns:
        Points as `moesim.search.Space` knows them (num_experts, top_k, expert_intermediate_size, parallelism,
        precision), each once, ordered; empty without the extra ``silicon`` or without rows of the device.
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
    """Measured rows of aiconfigurator-core as a measurement source."""

    name = "silicon"

    def unavailable_because(self) -> str | None:
        """The missing packages, or None."""
        return silicon.unavailable_because()

    def check(self, candidate: Candidate, cluster: Cluster, workload: Workload) -> CheckRow:
        """Look up the exact row and predict it at its own semantics."""
        about: dict[str, Any] = {
            "candidate": candidate.label,
            "source": self.name,
            "quantity": "experts_time_us",
            "seed": workload.seed,
        }
        if reason := self.unavailable_because():
            return CheckRow(status="unavailable", detail=reason, **about)
        row = self._row(candidate.layer, candidate, cluster, workload)
        if row is None:
            return CheckRow(
                status="not_measured", detail=f"no row of exactly this shape on {cluster.profile.name}", **about
            )
        profile = cluster.profile
        kernels = row_kernels(row["dataset"], profile)
        calibration = kernels.calibration
        predicted = float(draw_rows([row], profile).price(kernels)[0])
        low, high = calibration.interval(residual_class(row["moe_dtype"], row["moe_ep_size"]))
        tile = row_tile(row, profile.name)
        return CheckRow(
            status="checked",
            simulated=predicted / US,
            simulated_low=predicted * low / US,
            simulated_high=predicted * high / US,
            measured=row["latency_ms"] * 1e3,
            in_fit_set=may_fit(row),
            calibration=calibration.level,
            engine="kernel_model",
            profile_hash=calibration.digest,
            detail=f"{row['dataset']} {row['kernel_source']}, {row['num_tokens']} tokens, {row['distribution']}, "
            f"tp{row['moe_tp_size']} ep{row['moe_ep_size']}, tile {tile}: contiguous experts, hottest rank, "
            "no gate limits, warm L2; measured is a mean of back-to-back calls",
            extra={
                "row": (
                    row["dataset"],
                    row["num_experts"],
                    row["topk"],
                    row["inter_size"],
                    row["moe_dtype"],
                    row["moe_tp_size"],
                    row["moe_ep_size"],
                )
            },
            **about,
        )

    def _row(self, layer: MoELayer, candidate: Candidate, cluster: Cluster, workload: Workload) -> dict | None:
        if not layer.gated or layer.num_shared_experts or layer.capacity_factor is not None or layer.uneven:
            return None
        dtypes = {name: dtype for dtype, name in _PRECISION_NAMES.items()}
        wanted = {
            "moe_dtype": dtypes.get(layer.precision.name),
            "num_tokens": cluster.num_devices * workload.num_tokens_per_device,
            "hidden_size": layer.hidden_size,
            "inter_size": layer.expert_intermediate_size,
            "topk": layer.top_k,
            "num_experts": layer.num_experts,
            "moe_tp_size": candidate.parallelism.tp,
            "moe_ep_size": candidate.parallelism.ep,
            "distribution": distribution_of(workload.routing),
        }
        for dataset in DATASETS.get(cluster.profile.name, ()):
            rows = silicon.load_rows(cluster.profile.name.replace("-", "_"), dataset)
            for column, value in wanted.items():
                rows = rows[rows[column] == value]
            if len(rows):
                return rows.iloc[0].to_dict()
        return None
