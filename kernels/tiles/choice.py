"""Choose the tiles that a layer's two grouped GEMMs run with: tuned on this GPU, or best by the
simulator's model.

Tiles that the caller gives always win; `choose_tiles` decides for everybody else.
`moesim_kernels.tiles.modeled` prices tiles by the simulator's model.

Tuned tables are written by ``moesim kernels tune``: CSV files in the folder ``kernel_tiles`` of the
user's data, or those that $MOESIM_TILES names (several, separated by the path separator).
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from moesim_kernels.tiles.modeled import FORMATS, best_tiles, expert_sizes
from moesim_kernels.tiles.tiles import Limits, Tile, tile_config

from moesim.costs.devices.tile_choice import expected_counts, nearby_tokens
from moesim.costs.tiles import TILE_FIELDS
from moesim.errors import ConfigError, MoesimError, shown
from moesim.files.texts import read_csv
from moesim.files.toml import user_folder
from moesim.hardware.drivers import profile_of_driver

# Columns that a tuned tile is found by.
_KEY = (
    "device",
    "num_experts",
    "top_k",
    "hidden_size",
    "expert_intermediate_size",
    "dtype",
    "gemm",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes that decide on tiles, in addition to the histogram.

    Attributes:
        num_experts: Number of experts E.
        top_k: Number of experts each token uses.
        hidden_size: Hidden size H.
        expert_intermediate_size: Expert width I.
        dtype: Number format of the experts, as torch names it.
        operand_bits: Number of bits of one operand element.
    """

    num_experts: int
    top_k: int
    hidden_size: int
    expert_intermediate_size: int
    dtype: str
    operand_bits: int


def tables_folder() -> Path:
    """Return the folder where tuned tables live by default."""
    return user_folder() / "kernel_tiles"


def table_file(device_name: str) -> Path:
    """Return the path of a device's tuned table."""
    words = "".join(c if c.isalnum() else " " for c in device_name.lower()).split()
    return tables_folder() / f"{'-'.join(words)}.csv"


def read_table(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a tuned table, with numbers as numbers.

    Raises:
        ConfigError: The file cannot be read, lacks a column, or has an invalid tile.
    """
    try:
        rows: list[dict[str, Any]] = [dict(row) for _, row in read_csv(path).rows]
        for row in rows:
            for name in (*TILE_FIELDS, "num_tokens", *_KEY[1:5]):
                row[name] = int(row[name])
            for name in ("device", "dtype", "gemm"):
                row[name] = str(row[name])
            # Made only for its own checks of the numbers.
            _tile(row)
    except MoesimError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: expected a table of `moesim kernels tune`, got {shown(error)}"
        ) from None
    return rows


def merged_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a table, replaced by these for the same device, layer, tokens, skew, and
    GEMM.

    Raises:
        ConfigError: The file is not a tuned table.
    """

    def key(row: Mapping[str, Any]) -> tuple[str, ...]:
        return (*(str(row[name]) for name in (*_KEY, "num_tokens")), str(float(row["skew"])))

    old = read_table(path) if path.exists() else []
    # Later entries of a dictionary replace earlier ones but keep their position.
    return list(
        ({key(row): dict(row) for row in old} | {key(row): dict(row) for row in rows}).values()
    )


def tuned_tile(device_name: str, shape: Shape, gemm: str, num_tokens: int) -> Tile | None:
    """Return the tile tuned for this GPU and layer at the nearest number of tokens; None without a
    table that has it.

    Args:
        device_name: Name of the GPU in its driver's words.
        shape: Sizes of the layer.
        gemm: Which GEMM, "swiglu" or "down".
        num_tokens: Number of tokens T.

    Raises:
        ConfigError: A table is not valid.
    """
    # The setting and the folder are part of the cache's key, so that a change of either is seen.
    found = _tables(os.environ.get("MOESIM_TILES", ""), str(tables_folder())).get(
        (
            device_name,
            str(shape.num_experts),
            str(shape.top_k),
            str(shape.hidden_size),
            str(shape.expert_intermediate_size),
            shape.dtype,
            gemm,
        )
    )
    return (
        found[min(found, key=lambda tokens: (abs(tokens - num_tokens), tokens))] if found else None
    )


def _tile(row: Mapping[str, Any]) -> Tile:
    # Tables of older versions do not say how weights are read.
    path = row.get("path") or None
    return Tile.of(row, descriptors=None if path is None else path == "descriptors")


@lru_cache(maxsize=8)
def _tables(setting: str, folder: str) -> dict[tuple[str, ...], dict[int, Tile]]:
    paths = [Path(path) for path in setting.split(os.pathsep) if path] or sorted(
        Path(folder).glob("*.csv")
    )
    tables: dict[tuple[str, ...], dict[int, Tile]] = {}
    # Later files win where two have the same layer and number of tokens.
    for path in paths:
        for row in read_table(path):
            tile = _tile(row)
            tables.setdefault(tuple(str(row[name]) for name in _KEY), {})[row["num_tokens"]] = tile
    return tables


def forget_tables() -> None:
    """Read the tuned tables and the environment anew at the next choice; without this a process
    does so once.
    """
    _tables.cache_clear()
    choose_tiles.cache_clear()


@lru_cache(maxsize=4096)
def choose_tiles(
    device_name: str, shape: Shape, num_tokens: int, limits: Limits
) -> tuple[Tile, Tile]:
    """Choose the tiles of both GEMMs if the caller gave none, without a look at the routing.

    The same question is answered from memory the second time (see `forget_tables`).

    Args:
        device_name: Driver's name of the GPU; "" without one.
        shape: Sizes of the layer.
        num_tokens: Number of tokens T.
        limits: Resources the GPU gives a program.

    Returns:
        The tuned pair if there is one; otherwise the best pair for an expected histogram, if the
        GPU has a profile; otherwise the pair of `tile_config`. Both tiles have the same number of
        rows.

    Raises:
        ConfigError: A tuned table or a profile is not valid.
    """
    up = tuned_tile(device_name, shape, "swiglu", num_tokens) if device_name else None
    down = tuned_tile(device_name, shape, "down", num_tokens) if device_name else None
    if up is not None and down is not None:
        # Both GEMMs run on one plan, which has one number of rows.
        return up, replace(down, block_m=up.block_m)
    return default_tiles(device_name, shape, num_tokens, limits)


def default_tiles(
    device_name: str, shape: Shape, num_tokens: int, limits: Limits
) -> tuple[Tile, Tile]:
    """Return what `choose_tiles` chooses without a tuned table; arguments and errors are its."""
    modelled = _modelled(device_name, shape, nearby_tokens(num_tokens)) if device_name else None
    if modelled is not None:
        return modelled
    load, bits = num_tokens * shape.top_k / shape.num_experts, shape.operand_bits
    up = tile_config(
        load, shape.expert_intermediate_size, operand_bits=bits, num_accumulators=2, limits=limits
    )
    return up, tile_config(
        load,
        shape.hidden_size,
        operand_bits=bits,
        result_bits=max(bits, 16),
        block_m=up.block_m,
        limits=limits,
    )


def _modelled(device_name: str, shape: Shape, num_tokens: int) -> tuple[Tile, Tile] | None:
    profile = profile_of_driver(device_name)
    if profile is None or FORMATS[shape.operand_bits] not in profile.peak_flops_per_s:
        return None
    # Random routing stands for the histogram, which is on the device.
    counts_E = expected_counts(num_tokens * shape.top_k, shape.num_experts)
    sizes = expert_sizes(
        shape.hidden_size, shape.expert_intermediate_size, shape.top_k, shape.operand_bits
    )
    return best_tiles(counts_E, sizes, profile)[0]
