"""Predict measured rows: a price for each, by the row's own semantics, vectorized over the table.

Each row becomes Monte-Carlo draws of its expert histogram. The sums that a price needs are computed
once; then all draws of one system and format are priced in a single call.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from moesim.costs.calibration import load_calibration
from moesim.costs.devices.gpu import WaveKernels
from moesim.costs.load import Load, idle_blocks
from moesim.costs.phases.experts import ExpertShape, price_experts
from moesim.costs.tiles import TILE_FIELDS, Tile, num_blocks, sglang_tile, vllm_tile
from moesim.hardware import Profile
from moesim.measured.kernels import table as silicon
from moesim.model import Precision

PRECISION = {"bfloat16": Precision.named("bf16"), "fp8_block": Precision.named("fp8")}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowDraws:
    """Draws for a table of rows that share one format, ready to be priced.

    Attributes:
        row_of_draw: ndarray of shape (draws,): row that each draw belongs to.
        num_rows: Number of rows.
        shape: Expert sizes, with one value per draw.
        load: Sums of the histograms, with one value per draw.
        tokens: Tokens that enter, with one value per draw.
        tile: Tile whose fields have one value per draw.
    """

    row_of_draw: np.ndarray
    num_rows: int
    shape: ExpertShape
    load: Load
    tokens: np.ndarray
    tile: Tile

    def only(self, keep_N: np.ndarray) -> "RowDraws":
        """Return the draws of some rows.

        Args:
            keep_N: ndarray of shape (num_rows,), bool: which rows to keep.
        """
        keep = keep_N[self.row_of_draw]

        def cut(part: Any) -> Any:
            values = {f.name: getattr(part, f.name) for f in fields(part)}
            return type(part)(
                **{n: v[keep] if isinstance(v, np.ndarray) else v for n, v in values.items()}
            )

        return RowDraws(
            row_of_draw=(np.cumsum(keep_N) - 1)[self.row_of_draw[keep]],
            num_rows=int(keep_N.sum()),
            shape=cut(self.shape),
            load=cut(self.load),
            tokens=self.tokens[keep],
            tile=cut(self.tile),
        )

    def price(self, kernels: WaveKernels) -> np.ndarray:
        """Return the predicted seconds of each row, the mean over its draws: ndarray of shape
        (num_rows,).
        """
        solo = price_experts(
            kernels, self.shape, self.load, self.tokens, tiles=(self.tile, self.tile), warm=True
        ).solo_s_D()
        total = np.bincount(self.row_of_draw, weights=solo, minlength=self.num_rows)
        return total / np.bincount(self.row_of_draw, minlength=self.num_rows)


def row_kernels(dataset: str, profile: Profile, *, few_shot: bool = True) -> WaveKernels:
    """Return the kernel model that is calibrated on the framework of a dataset."""
    name = profile.calibration + ("-vllm" if dataset.startswith("vllm") else "")
    return WaveKernels(
        profile=profile, calibration=load_calibration(name, profile, few_shot=few_shot)
    )


def residual_class(moe_dtype: str, moe_ep_size: int) -> str:
    """Return the class of a row's interval: ``bfloat16-ep1``, ``bfloat16-epn`` and so on."""
    return f"{moe_dtype}-{'epn' if moe_ep_size > 1 else 'ep1'}"


def row_tile(row: dict, device: str) -> Tile:
    """Return the tile that the measured kernel ran: from the row's own columns, otherwise its
    framework's table or default.
    """
    if row.get("block_m", 0) > 0:  # false where the column is empty (NaN)
        return Tile.of({name: int(row[name]) for name in TILE_FIELDS})
    local_experts = row["num_experts"] // row["moe_ep_size"]
    width = row["inter_size"] // row["moe_tp_size"]
    if row["dataset"].startswith("vllm"):
        return vllm_tile(row["moe_dtype"], row["num_experts"], row["num_tokens"])
    return sglang_tile(device, row["moe_dtype"], local_experts, width, row["num_tokens"])


def draw_rows(rows: list[dict], profile: Profile) -> RowDraws:
    """Draw the histograms of rows that share one system and format.

    Args:
        rows: At least one row, with `silicon.COLUMNS`; all rows have one ``moe_dtype``.
        profile: The device they ran on, for its tuned tiles.
    """
    precision = PRECISION[rows[0]["moe_dtype"]]
    of_draw, sums, tiles, sizes = [], [], [], []
    for index, row in enumerate(rows):
        for draw in silicon.draws(row["distribution"]):
            counts, tokens = silicon.local_counts(row, draw)
            tile = row_tile(row, profile.name)
            of_draw.append(index)
            rows_here, blocks = int(counts.sum()), int(num_blocks(counts, tile.block_m))
            masked = max(tokens * row["topk"] - rows_here, 0.0)
            idle = float(idle_blocks(blocks, rows_here + masked, masked, len(counts), tile.block_m))  # type: ignore[arg-type]
            sums.append((rows_here, (counts > 0).sum(), blocks, masked, idle, tokens))
            tiles.append([getattr(tile, name) for name in TILE_FIELDS])
            width = row["inter_size"] // row["moe_tp_size"]
            sizes.append(
                (row["hidden_size"], width, 2 if silicon.is_gated(row) else 1, row["topk"])
            )
    summed, size, tile_fields = np.array(sums, dtype=np.float64), np.array(sizes), np.array(tiles)
    hidden = size[:, 0]
    return RowDraws(
        row_of_draw=np.array(of_draw),
        num_rows=len(rows),
        shape=ExpertShape(
            hidden=hidden,
            width=size[:, 1],
            num_up=size[:, 2],
            top_k=size[:, 3],
            fmt=precision.activations,
            weight_bytes=precision.weight_bytes,
            input_bytes=precision.token_bytes("activations", 4096) / 4096,
            block_scaled=precision.block_scaled,
        ),
        load=Load(
            rows_D=summed[:, 0],
            active_D=summed[:, 1],
            blocks_D=summed[:, 2],
            masked_rows_D=summed[:, 3],
            idle_blocks_D=summed[:, 4],
        ),
        tokens=summed[:, 5],
        # a tile of arrays has one configuration per draw, which the price broadcasts like any other
        # size
        tile=Tile.of({name: tile_fields[:, i] for i, name in enumerate(TILE_FIELDS)}),
    )
