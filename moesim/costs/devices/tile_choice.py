"""Choose tiles as this project's kernels do: the pair that the tile model prices lowest.

Every tile that the kernels are compiled and checked with is a candidate: the table
``hw_profiles/tiles/moesim-triton.csv``, by architecture, width of the operands, GEMM, and how the
kernel reads weights. Both GEMMs of a layer run on one plan and share their rows, so a pair is
chosen. The histogram is on the device and stays there: `expected_counts` stands for it. Choosing by
the number of tokens alone gives up much of what a histogram tells (RaMP, arXiv 2604.26039).
"""

import csv
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np

from moesim.costs.devices.tile_model import TileModel
from moesim.costs.devices.tile_work import FORMS, TileForm, TileWork
from moesim.costs.tiles import TILE_FIELDS, Tile
from moesim.costs.work import ExpertSizes
from moesim.hardware import Profile
from moesim.units import US

Array = np.ndarray
Gemm = Literal["up", "down"]
_TABLE = "moesim-triton.csv"


def architecture(profile: Profile) -> str:
    """Return the architecture whose tiles a GPU runs, such as "sm_90"; "gfx942" without a compute
    capability.
    """
    capability = profile.compute_capability
    return "gfx942" if capability is None else f"sm_{round(10 * capability)}"


@cache
def _table() -> dict[tuple[str, int, str], tuple[Tile, ...]]:
    path = files("moesim_hw_profiles") / "tiles" / _TABLE
    found: dict[tuple[str, int, str], list[Tile]] = {}
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key = (row["target"], int(row["bits"]), row["gemm"])
            found.setdefault(key, []).append(
                Tile.of(
                    {name: int(row[name]) for name in TILE_FIELDS},
                    descriptors=row["path"] == "descriptors",
                )
            )
    return {key: tuple(tiles) for key, tiles in found.items()}


def compiled_tiles(target: str, bits: int, gemm: Gemm) -> tuple[Tile, ...]:
    """Return the tiles of a GEMM that are compiled and checked for an architecture.

    Args:
        target: Architecture, such as "sm_90" or "gfx942"; newer ones of a generation run the tiles
            of its first, and unknown ones those of sm_80.
        bits: Bits of an operand element: 8, 16 or 32.
        gemm: Which GEMM. An up tile's block_n counts gate columns.
    """
    table = _table()
    for known in (target, f"{target[:-1]}0", "sm_80"):
        if (known, bits, gemm) in table:
            return table[known, bits, gemm]
    return table["sm_80", 16, gemm]


def expected_counts(num_rows: int, num_experts: int) -> Array:
    """Return the rows of each expert that random routing would give: quantiles of a Poisson
    distribution of the mean load.

    Returns:
        ndarray of int64, shape (E,), ascending; their sum is near ``num_rows``.

    Raises:
        ValueError: The number of rows is negative, or there are no experts.
    """
    if num_rows < 0 or num_experts < 1:
        raise ValueError(
            f"expected num_rows >= 0 and num_experts >= 1, got {num_rows}, {num_experts}"
        )
    mean = num_rows / num_experts
    if mean == 0:
        return np.zeros(num_experts, dtype=np.int64)
    # Beyond eight standard deviations the probability is negligible, and logarithms keep small
    # terms from vanishing.
    first = max(int(mean - 8 * mean**0.5), 0)
    values = np.arange(first, int(mean + 8 * mean**0.5) + 10)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, values[-1] + 1)))])[values]
    cumulative = np.cumsum(np.exp(values * np.log(mean) - mean - log_factorial))
    quantile_E = (np.arange(num_experts) + 0.5) / num_experts * cumulative[-1]
    return values[np.minimum(np.searchsorted(cumulative, quantile_E), len(values) - 1)]


def tile_us_R(
    model: TileModel, counts_L: Array, sizes: ExpertSizes, gemm: Gemm, tiles: Sequence[Tile]
) -> Array:
    """Return what a GEMM of this histogram takes with each tile, in microseconds.

    Args:
        model: Tile model of the GPU.
        counts_L: Rows of each expert, shape (L,).
        sizes: Sizes of the experts.
        gemm: Which GEMM.
        tiles: Tiles to price; an up tile's block_n counts gate columns.

    Returns:
        ndarray of shape (R,), one value per tile.

    Raises:
        ConfigError: The profile has no rate for the format.
    """
    up = gemm == "up"
    table = stacked(tiles, sizes.num_up if up else 1)
    counts = np.asarray(counts_L)[None, :]
    block_m = np.asarray(table.block_m)[:, None]
    gated = up and sizes.num_up > 1
    work = TileWork(
        form_R=np.array([FORMS.index(form_of(gated, sizes.element_bytes, tile)) for tile in tiles]),
        tile=table,
        rows_R=np.full(len(tiles), counts.sum()),
        active_R=np.full(len(tiles), (counts > 0).sum()),
        blocks_R=(-(-counts // block_m)).sum(axis=1),
        groups_R=(-(-counts // (block_m * np.asarray(table.group_m)[:, None]))).sum(axis=1),
        columns_R=np.full(len(tiles), sizes.num_up * sizes.width if up else sizes.hidden),
        depth_R=np.full(len(tiles), sizes.hidden if up else sizes.width),
        element_bytes=sizes.element_bytes,
        top_k_R=np.full(len(tiles), sizes.top_k if up else 1),
    )
    return model.price(work, sizes.fmt).solo_s_D() / US


def form_of(gated: bool, element_bytes: float, tile: Tile) -> TileForm:
    """Return which kernel runs: operands of up to 16 bits multiply gate and up columns as one wide
    product, and those of 16 bits have a down projection of one program for each tile.

    Args:
        gated: Whether gate and up columns are multiplied together.
        element_bytes: Bytes of an operand element.
        tile: The tile, which says whether descriptors are used.
    """
    if gated:
        return (
            ("wide_descriptors" if tile.descriptors else "wide_pointers")
            if element_bytes <= 2
            else ("paired_descriptors" if tile.descriptors else "paired_pointers")
        )
    if not tile.descriptors:
        return "linear_pointers"
    return "single_descriptors" if element_bytes == 2 else "linear_descriptors"


def stacked(tiles: Sequence[Tile], accumulators: int) -> Tile:
    """Return several tiles as one whose fields are arrays, its block_n counted over all
    accumulators.
    """
    fields = {name: np.array([getattr(tile, name) for tile in tiles]) for name in TILE_FIELDS}
    fields["block_n"] = fields["block_n"] * accumulators
    return Tile.of(fields)


def best_pairs(
    model: TileModel, counts_L: Array, sizes: ExpertSizes, target: str, most: int = 1
) -> list[tuple[Tile, Tile]]:
    """Return the pairs of tiles with the least total time, the fastest first.

    Args:
        model: Tile model of the GPU.
        counts_L: Rows of each expert, shape (L,).
        sizes: Sizes of the experts.
        target: Architecture whose compiled tiles are the candidates.
        most: How many pairs to return.

    Returns:
        Pairs of an up and a down tile, which share their rows; at least one.

    Raises:
        ConfigError: The profile has no rate for the format.
    """
    bits = round(8 * sizes.element_bytes)
    ups, downs = (compiled_tiles(target, bits, gemm) for gemm in ("up", "down"))
    up_us = tile_us_R(model, counts_L, sizes, "up", ups)
    down_us = tile_us_R(model, counts_L, sizes, "down", downs)
    pairs = [
        (float(up_us[i] + down_us[j]), i, j)
        for i, up in enumerate(ups)
        for j, down in enumerate(downs)
        if up.block_m == down.block_m
    ]
    return [(ups[i], downs[j]) for _, i, j in sorted(pairs)[:most]]


def nearby_tokens(num_tokens: int) -> int:
    """Return the number of tokens for which tiles are chosen: above 64, the nearest of eight steps
    between powers of two, so that a server's batches do not each pay for a choice.
    """
    if num_tokens <= 64:
        return num_tokens
    step = 1 << (num_tokens.bit_length() - 4)
    return round(num_tokens / step) * step
