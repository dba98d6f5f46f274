"""Which tiles a layer's two grouped GEMMs run with: asked for, tuned on this GPU, or the best by the simulator's model.

`best_tiles` prices every shipped tile with the model the simulator charges (`moesim.costs.gpu`: tiles of the expert
histogram, waves over the multiprocessors, iterations of a tile) and takes the pair that is done first; choosing by the
number of tokens alone leaves much of that (RaMP, arXiv 2604.26039). Where the histogram is on the device and stays
there, `expected_counts` stands for it. Shipped are the tiles of `tile_config`, one for each number of rows: those that
`moesim_kernels.compile_check` compiles.

Tuned tables are what `moesim kernels tune` writes: CSV files in the folder ``kernel_tiles`` of the user's data, or
those that $MOESIM_TILES names (several with a path separator between them).
"""

import csv
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from moesim_kernels.hopper_tiles import hopper_tiles
from moesim_kernels.tiles import Limits, Tile, tile_config

from moesim.configfile import index_names, user_folder
from moesim.costs.load import Load
from moesim.costs.primitives import kernels_for
from moesim.errors import ConfigError
from moesim.hardware import Profile, load_profile

_FORMATS = {8: "float8_e4m3", 16: "bfloat16", 32: "float32"}
_ROWS = (16, 32, 64, 128)
_TILE = ("block_m", "block_n", "block_k", "group_m", "num_warps", "num_stages")
_KEY = ("device", "num_experts", "top_k", "hidden_size", "expert_intermediate_size", "dtype", "gemm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What decides on tiles beside the histogram.

    Attributes:
        num_experts: Experts E.
        top_k: Experts a token uses.
        hidden_size: H.
        expert_intermediate_size: I.
        dtype: Format of the experts, as torch names it.
        operand_bits: Bits of one operand element.
    """

    num_experts: int
    top_k: int
    hidden_size: int
    expert_intermediate_size: int
    dtype: str
    operand_bits: int


def expected_counts(num_rows: int, num_experts: int) -> np.ndarray:
    """Rows of each expert as random routing would have it: quantiles of a Poisson distribution of the mean load.

    Returns:
        ndarray of int64, shape (E,), ascending; their sum is near ``num_rows``.

    Raises:
        ValueError: A negative number of rows, or no experts.
    """
    if num_rows < 0 or num_experts < 1:
        raise ValueError(f"expected num_rows >= 0 and num_experts >= 1, got {num_rows}, {num_experts}")
    mean = num_rows / num_experts
    if mean == 0:
        return np.zeros(num_experts, dtype=np.int64)
    # Beyond eight deviations there is nothing to find, and the logarithms keep small terms from vanishing.
    first = max(int(mean - 8 * mean**0.5), 0)
    values = np.arange(first, int(mean + 8 * mean**0.5) + 10)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, values[-1] + 1)))])[values]
    cumulative = np.cumsum(np.exp(values * np.log(mean) - mean - log_factorial))
    quantile_E = (np.arange(num_experts) + 0.5) / num_experts * cumulative[-1]
    return values[np.minimum(np.searchsorted(cumulative, quantile_E), len(values) - 1)]


def tile_seconds(counts_E: np.ndarray, num_columns: int, depth: int, tile: Tile, *, profile: Profile,
                 operand_bits: int = 16, num_accumulators: int = 1) -> float:
    """Seconds the simulator charges for one grouped GEMM of this histogram.

    Args:
        counts_E: Rows of each expert, shape (E,).
        num_columns: Output columns, per accumulator.
        depth: Inner dimension.
        tile: Tile; block_n is that of one accumulator.
        profile: The GPU.
        operand_bits: Bits of one operand element: 8 (block-scaled), 16 or 32.
        num_accumulators: 2 for the fused gate and up projection.

    Raises:
        ConfigError: A profile that lacks the format, or is no GPU's.
    """
    if profile.execution != "waves":
        raise ConfigError(f"profile: expected a GPU that runs tiles in waves, got {profile.name!r}")
    counts_E = np.asarray(counts_E)
    load = Load.of(counts_E[None], counts_E.sum(keepdims=True), tile.block_m)
    operand_bytes = operand_bits / 8
    cost = kernels_for(profile).grouped_gemm(
        load, num_columns * num_accumulators, depth, tile=replace(tile, block_n=tile.block_n * num_accumulators),
        fmt=_FORMATS[operand_bits], weight_bytes=operand_bytes, input_bytes=operand_bytes,
        output_bytes=max(operand_bytes, 2.0), block_scaled=operand_bits == 8)
    return float(cost.solo_s_D()[0])


def shipped_tiles(num_columns: int, *, operand_bits: int = 16, num_accumulators: int = 1, limits: Limits,
                  block_m: int | None = None) -> list[Tile]:
    """The tiles of `tile_config` for every number of rows, or for the one a plan has fixed."""
    return [tile_config(rows, num_columns, operand_bits=operand_bits, result_bits=max(operand_bits, 16),
                        num_accumulators=num_accumulators, block_m=rows, limits=limits)
            for rows in ((block_m,) if block_m else _ROWS)]


def best_tile(counts_E: np.ndarray, num_columns: int, depth: int, *, profile: Profile, limits: Limits,
              operand_bits: int = 16, num_accumulators: int = 1, block_m: int | None = None) -> Tile:
    """The shipped tile that `tile_seconds` likes best; of equals the one with fewest rows.

    Raises:
        ConfigError: A profile that lacks the format, or is no GPU's.
    """
    tiles = shipped_tiles(num_columns, operand_bits=operand_bits, num_accumulators=num_accumulators, limits=limits,
                          block_m=block_m)
    return min(tiles, key=lambda tile: tile_seconds(counts_E, num_columns, depth, tile, profile=profile,
                                                    operand_bits=operand_bits, num_accumulators=num_accumulators))


def best_tiles(counts_E: np.ndarray, hidden_size: int, width: int, *, profile: Profile, limits: Limits,
               operand_bits: int = 16) -> tuple[Tile, Tile]:
    """Tiles of the up and of the down projection, which share their rows: the pair that is done first.

    Raises:
        ConfigError: A profile that lacks the format, or is no GPU's.
    """
    def pair_seconds(pair: tuple[Tile, Tile]) -> float:
        up, down = pair
        return tile_seconds(counts_E, width, hidden_size, up, profile=profile, operand_bits=operand_bits,
                            num_accumulators=2) + tile_seconds(counts_E, hidden_size, width, down, profile=profile,
                                                               operand_bits=operand_bits)

    ups = shipped_tiles(width, operand_bits=operand_bits, num_accumulators=2, limits=limits)
    downs = shipped_tiles(hidden_size, operand_bits=operand_bits, limits=limits)
    return min(zip(ups, downs, strict=True), key=pair_seconds)


def profile_of(device_name: str) -> Profile | None:
    """The profile of the GPU a driver calls this; None without one.

    That is the profile of this name or alias, else the longest whose every word the driver's name has. A profile of an
    SXM module is not that of a PCIe or NVL card: drivers name these (an SXM H100 is an "H100 80GB HBM3"). Nor is any
    profile that of a slice of its GPU.

    Raises:
        ConfigError: The profile's file is not valid.
    """
    names = index_names("devices")
    lower = device_name.lower()
    words = set(lower.replace("-", " ").split())
    like = [name for name in names if words.issuperset(name.split("-"))]
    found = lower if lower in names else max(like, key=len) if like else None
    profile = load_profile(found) if found else None
    if profile is None or profile.execution != "waves":
        return None
    card = "mig" in words or (profile.name.endswith("-sxm") and words & {"pcie", "nvl"})
    unsaid = profile.name == "h100-sxm" and not words & {"sxm", "sxm5", "hbm3"}
    return None if found != lower and (card or unsaid) else profile


def tables_folder() -> Path:
    """Where tuned tables live by default."""
    return user_folder() / "kernel_tiles"


def table_file(device_name: str) -> Path:
    """The tuned table of a device."""
    words = "".join(c if c.isalnum() else " " for c in device_name.lower()).split()
    return tables_folder() / f"{'-'.join(words)}.csv"


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows of a tuned table, numbers as numbers.

    Raises:
        ConfigError: A file that cannot be read, or lacks a column, or has a tile that is none.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows: list[dict[str, Any]] = [dict(row) for row in csv.DictReader(file)]
        for row in rows:
            for name in (*_TILE, "num_tokens", *_KEY[1:5]):
                row[name] = int(row[name])
            for name in ("device", "dtype", "gemm"):
                row[name] = str(row[name])
            Tile(**{name: row[name] for name in _TILE})
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: expected a table of `moesim kernels tune`, got {error}") from None
    return rows


def merged_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table with these in place of those for the same device, layer, tokens, skew and GEMM.

    Raises:
        ConfigError: A file that is no tuned table.
    """
    def key(row: Mapping[str, Any]) -> tuple[str, ...]:
        return (*(str(row[name]) for name in (*_KEY, "num_tokens")), str(float(row["skew"])))

    old = read_table(path) if path.exists() else []
    return list(({key(row): dict(row) for row in old} | {key(row): dict(row) for row in rows}).values())


def tuned_tile(device_name: str, shape: Shape, gemm: str, num_tokens: int) -> Tile | None:
    """The tile tuned for this GPU and layer at the nearest number of tokens; None without a table that has it.

    Args:
        device_name: As the driver names it.
        shape: The layer.
        gemm: "swiglu" or "down".
        num_tokens: Tokens T.

    Raises:
        ConfigError: A table that is none.
    """
    found = _tables(os.environ.get("MOESIM_TILES", ""), str(tables_folder())).get(
        (device_name, str(shape.num_experts), str(shape.top_k), str(shape.hidden_size),
         str(shape.expert_intermediate_size), shape.dtype, gemm))
    return found[min(found, key=lambda tokens: (abs(tokens - num_tokens), tokens))] if found else None


@lru_cache(maxsize=8)
def _tables(setting: str, folder: str) -> dict[tuple[str, ...], dict[int, Tile]]:
    paths = [Path(path) for path in setting.split(os.pathsep) if path] or sorted(Path(folder).glob("*.csv"))
    tables: dict[tuple[str, ...], dict[int, Tile]] = {}
    for path in paths:
        for row in read_table(path):
            tile = Tile(**{name: row[name] for name in _TILE})
            tables.setdefault(tuple(str(row[name]) for name in _KEY), {})[row["num_tokens"]] = tile
    return tables


def forget_tables() -> None:
    """Read the tuned tables and the environment anew at the next choice; without this a process does so once."""
    _tables.cache_clear()
    choose_tiles.cache_clear()


@lru_cache(maxsize=4096)
def choose_tiles(device_name: str, shape: Shape, num_tokens: int, limits: Limits) -> tuple[Tile, Tile]:
    """Tiles of both GEMMs where nobody asked for others, without a look at the routing.

    The same question is answered from memory the second time (see `forget_tables`).

    Args:
        device_name: Of the GPU; "" without one.
        shape: The layer.
        num_tokens: Tokens T.
        limits: What the GPU gives a program.

    Returns:
        The tuned pair; else that of `moesim_kernels.hopper_tiles` where it holds; else the best for an expected
        histogram, where the GPU has a profile; else that of `tile_config`. Both with the same rows.

    Raises:
        ConfigError: A tuned table or a profile that is not valid.
    """
    up = tuned_tile(device_name, shape, "swiglu", num_tokens) if device_name else None
    down = tuned_tile(device_name, shape, "down", num_tokens) if device_name else None
    if up is not None and down is not None:
        return up, replace(down, block_m=up.block_m)
    ruled = _ruled(device_name, shape, num_tokens) if device_name else None
    if ruled is not None:
        return ruled
    # By powers of two of the number of tokens, so that a server's batches do not each pay for a search.
    padded = num_tokens if num_tokens <= 64 else 1 << (num_tokens - 1).bit_length()
    modelled = _modelled(device_name, shape, padded, limits) if device_name else None
    if modelled is not None:
        return modelled
    load, bits = num_tokens * shape.top_k / shape.num_experts, shape.operand_bits
    up = tile_config(load, shape.expert_intermediate_size, operand_bits=bits, num_accumulators=2, limits=limits)
    return up, tile_config(load, shape.hidden_size, operand_bits=bits, result_bits=max(bits, 16), block_m=up.block_m,
                           limits=limits)


def _ruled(device_name: str, shape: Shape, num_tokens: int) -> tuple[Tile, Tile] | None:
    """The tiles of the rule for Hopper where the GPU is one and the format has 16 bits; else None."""
    if shape.operand_bits != 16 or not _is_hopper(device_name):
        return None
    load = num_tokens * shape.top_k / shape.num_experts
    return hopper_tiles(load, shape.hidden_size, shape.expert_intermediate_size)


@lru_cache(maxsize=8)
def _is_hopper(device_name: str) -> bool:
    profile = profile_of(device_name)
    return profile is not None and profile.compute_capability == 9.0


@lru_cache(maxsize=1024)
def _modelled(device_name: str, shape: Shape, num_tokens: int, limits: Limits) -> tuple[Tile, Tile] | None:
    profile = profile_of(device_name)
    if profile is None or _FORMATS[shape.operand_bits] not in profile.peak_flops_per_s:
        return None
    counts_E = expected_counts(num_tokens * shape.top_k, shape.num_experts)
    return best_tiles(counts_E, shape.hidden_size, shape.expert_intermediate_size, profile=profile, limits=limits,
                      operand_bits=shape.operand_bits)
