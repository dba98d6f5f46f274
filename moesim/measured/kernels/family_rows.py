"""Turn measured rows of a family into what its price needs: draws of the timed rank's histogram.

What the timed rank computes is said by `moesim.measured.kernels.family_counts`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.costs.devices.fused_formats import FORMATS
from moesim.costs.devices.fused_model import FusedWork, TileRule, fused_seconds_R
from moesim.hardware import Profile
from moesim.measured.kernels import table as silicon
from moesim.measured.kernels.family_counts import timed_counts
from moesim.measured.kernels.family_records import KernelFamily

Array = np.ndarray
_NUMBERS = (
    "rows",
    "active",
    "local",
    "tokens",
    "choices",
    "expected",
    "hidden",
    "width",
    "num_up",
)
_BLOCKS = (8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FamilyRows:
    """Rows of one format on one device, drawn.

    Attributes:
        profile: The device.
        dtype: Format of the rows.
        row_of_draw: Row of each draw, shape (draws,).
        num_rows: Number of rows.
        numbers: Column -> values by draw, shape (draws,).
        blocks: Rows of a tile -> row blocks by draw, shape (draws,).
        measured_s: Measured seconds by row; NaN where there is none.
    """

    profile: Profile
    dtype: str
    row_of_draw: Array
    num_rows: int
    numbers: dict[str, Array]
    blocks: dict[int, Array]
    measured_s: Array

    @classmethod
    def of(
        cls, rows: Sequence[dict[str, Any]], profile: Profile, family: KernelFamily
    ) -> "FamilyRows":
        """Draw the histograms of rows that share one device and format."""
        of_draw, sums, blocks = [], [], []
        for index, row in enumerate(rows):
            for draw in silicon.draws(row["distribution"]):
                counts, tokens, present = timed_counts(row, draw, family)
                of_draw.append(index)
                gated = silicon.is_gated(row) and "nongated" not in row["kernel_source"]
                sums.append(
                    (
                        counts.sum(),
                        (counts > 0).sum(),
                        len(counts),
                        tokens,
                        present * row["topk"],
                        present * row["topk"] / row["num_experts"],
                        row["hidden_size"],
                        row["inter_size"] // row["moe_tp_size"],
                        2 if gated else 1,
                    )
                )
                blocks.append([(-(-counts // size)).sum() for size in _BLOCKS])
        table, blocks_RB = np.array(sums, dtype=np.float64), np.array(blocks, dtype=np.float64)
        return cls(
            profile=profile,
            dtype=rows[0]["moe_dtype"],
            row_of_draw=np.array(of_draw),
            num_rows=len(rows),
            numbers={name: table[:, i] for i, name in enumerate(_NUMBERS)},
            blocks={size: blocks_RB[:, i] for i, size in enumerate(_BLOCKS)},
            measured_s=np.array([float(row.get("latency_ms", "nan")) for row in rows]) * 1e-3,
        )

    def only(self, keep_row: Array) -> "FamilyRows":
        """Return the rows that are kept: bool of shape (rows,)."""
        keep = keep_row[self.row_of_draw]
        number = np.cumsum(keep_row) - 1
        return FamilyRows(
            profile=self.profile,
            dtype=self.dtype,
            row_of_draw=number[self.row_of_draw[keep]],
            num_rows=int(keep_row.sum()),
            numbers={name: values[keep] for name, values in self.numbers.items()},
            blocks={size: values[keep] for size, values in self.blocks.items()},
            measured_s=self.measured_s[keep_row],
        )

    def work(self, rule: TileRule) -> FusedWork:
        """Return what the price needs of each draw."""
        numbers, precision = self.numbers, FORMATS[self.dtype]
        block_m = np.array(
            [
                rule.block_m(*loads)
                for loads in zip(
                    numbers["rows"], numbers["active"], numbers["expected"], strict=True
                )
            ]
        )
        blocks = np.select([block_m == size for size in _BLOCKS], list(self.blocks.values()))
        return FusedWork(
            **{f"{name}_R": numbers[name] for name in numbers if name != "expected"},
            blocks_R=blocks,
            block_m_R=block_m,
            fmt=precision.activations,
            weight_bytes=precision.weight_bytes,
            input_bytes=precision.token_bytes("activations", 4096) / 4096,
        )

    def predicted_s(
        self, rule: TileRule, parameters: dict[str, float], work: FusedWork | None = None
    ) -> Array:
        """Return the seconds of each row, the mean over its draws: shape (rows,)."""
        seconds = fused_seconds_R(work or self.work(rule), self.profile, rule, parameters)
        total = np.bincount(self.row_of_draw, weights=seconds, minlength=self.num_rows)
        return total / np.bincount(self.row_of_draw, minlength=self.num_rows)

    def roofline_s(self, rule: TileRule) -> Array:
        """Return a plain roofline of each row without efficiencies: the larger of FLOPs over peak
        and bytes over bandwidth.
        """
        work = self.work(rule)
        per_row = (work.num_up_R + 1) * work.hidden_R * work.width_R
        flops = 2.0 * work.rows_R * per_row / self.profile.peak(work.fmt)
        moved = work.active_R * per_row * work.weight_bytes + work.rows_R * (
            2 * work.hidden_R * work.input_bytes + (work.num_up_R + 1) * work.width_R * 2.0
        )
        solo = np.maximum(flops, moved / self.profile.hbm_bandwidth_bytes_per_s)
        total = np.bincount(self.row_of_draw, weights=solo, minlength=self.num_rows)
        return total / np.bincount(self.row_of_draw, minlength=self.num_rows)
