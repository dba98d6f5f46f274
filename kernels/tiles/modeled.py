"""Choose tiles by the simulator's own model of the grouped GEMMs.

`best_tiles` prices every shipped tile with the model the simulator charges
(`moesim.costs.devices.gpu`: tiles of the expert histogram, waves over the multiprocessors,
iterations of a tile) and takes the pair with the least time; choosing by the number of tokens alone
gives up much of that gain (RaMP, arXiv 2604.26039). If the histogram is on the device and stays
there, `expected_counts` stands for it. The shipped tiles are those of `tile_config`, one for each
number of rows, which `moesim_kernels.compile.check` compiles.
"""

from dataclasses import replace

import numpy as np
from moesim_kernels.tiles.tiles import Limits, Tile, tile_config

from moesim.costs.devices.primitives import kernels_for
from moesim.costs.load import Load
from moesim.costs.work import GemmSpec
from moesim.errors import ConfigError
from moesim.files.toml import index_names
from moesim.hardware import Profile, load_profile

# Profile formats by operand bits, and the numbers of rows that are shipped.
FORMATS = {8: "float8_e4m3", 16: "bfloat16", 32: "float32"}
_ROWS = (16, 32, 64, 128)


def expected_counts(num_rows: int, num_experts: int) -> np.ndarray:
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


def tile_seconds(
    counts_E: np.ndarray,
    num_columns: int,
    depth: int,
    tile: Tile,
    *,
    profile: Profile,
    operand_bits: int = 16,
    num_accumulators: int = 1,
) -> float:
    """Return the seconds the simulator charges for one grouped GEMM of this histogram.

    Args:
        counts_E: Number of rows of each expert, shape (E,).
        num_columns: Number of output columns, per accumulator.
        depth: Inner dimension.
        tile: Tile; its block_n counts the columns of one accumulator.
        profile: Profile of the GPU.
        operand_bits: Bits of one operand element: 8 (block-scaled), 16 or 32.
        num_accumulators: Number of accumulators: 2 for the fused gate and up projection.

    Raises:
        ConfigError: The profile lacks the format or does not describe a GPU.
    """
    if profile.execution != "waves":
        raise ConfigError(f"profile: expected a GPU that runs tiles in waves, got {profile.name!r}")
    counts_E = np.asarray(counts_E)
    load = Load.of(counts_E[None], counts_E.sum(keepdims=True), tile.block_m)
    operand_bytes = operand_bits / 8
    # The model counts both accumulators of a fused projection as one wider tile.
    cost = kernels_for(profile).grouped_gemm(
        load,
        num_columns * num_accumulators,
        depth,
        GemmSpec(
            tile=replace(tile, block_n=tile.block_n * num_accumulators),
            fmt=FORMATS[operand_bits],
            weight_bytes=operand_bytes,
            input_bytes=operand_bytes,
            output_bytes=max(operand_bytes, 2.0),
            block_scaled=operand_bits == 8,
        ),
    )
    return float(cost.solo_s_D()[0])


def shipped_tiles(
    num_columns: int,
    *,
    operand_bits: int = 16,
    num_accumulators: int = 1,
    limits: Limits,
    block_m: int | None = None,
) -> list[Tile]:
    """Return the tiles of `tile_config` for every number of rows, or for the one a plan has
    fixed.
    """
    return [
        tile_config(
            rows,
            num_columns,
            operand_bits=operand_bits,
            result_bits=max(operand_bits, 16),
            num_accumulators=num_accumulators,
            block_m=rows,
            limits=limits,
        )
        for rows in ((block_m,) if block_m else _ROWS)
    ]


def best_tile(
    counts_E: np.ndarray,
    num_columns: int,
    depth: int,
    *,
    profile: Profile,
    limits: Limits,
    operand_bits: int = 16,
    num_accumulators: int = 1,
    block_m: int | None = None,
) -> Tile:
    """Return the shipped tile with the lowest `tile_seconds`; among equals, the one with the fewest
    rows.

    Raises:
        ConfigError: The profile lacks the format or does not describe a GPU.
    """
    tiles = shipped_tiles(
        num_columns,
        operand_bits=operand_bits,
        num_accumulators=num_accumulators,
        limits=limits,
        block_m=block_m,
    )
    return min(
        tiles,
        key=lambda tile: tile_seconds(
            counts_E,
            num_columns,
            depth,
            tile,
            profile=profile,
            operand_bits=operand_bits,
            num_accumulators=num_accumulators,
        ),
    )


def best_tiles(
    counts_E: np.ndarray,
    hidden_size: int,
    width: int,
    *,
    profile: Profile,
    limits: Limits,
    operand_bits: int = 16,
) -> tuple[Tile, Tile]:
    """Return the tiles of the up and of the down projection, which share their rows: the pair with
    the least total time.

    Raises:
        ConfigError: The profile lacks the format or does not describe a GPU.
    """

    def pair_seconds(pair: tuple[Tile, Tile]) -> float:
        up, down = pair
        return tile_seconds(
            counts_E,
            width,
            hidden_size,
            up,
            profile=profile,
            operand_bits=operand_bits,
            num_accumulators=2,
        ) + tile_seconds(
            counts_E, hidden_size, width, down, profile=profile, operand_bits=operand_bits
        )

    # Both lists go through the same numbers of rows, so that a pair shares its plan.
    ups = shipped_tiles(width, operand_bits=operand_bits, num_accumulators=2, limits=limits)
    downs = shipped_tiles(hidden_size, operand_bits=operand_bits, limits=limits)
    return min(zip(ups, downs, strict=True), key=pair_seconds)


def profile_of(device_name: str) -> Profile | None:
    """Return the profile of the GPU a driver calls by this name; None without one.

    This is the profile of this name or alias, otherwise the longest profile name whose every word
    occurs in the driver's name. A profile of an SXM module does not describe a PCIe or NVL card:
    drivers name these (an SXM H100 is an "H100 80GB HBM3"). No profile describes a slice (MIG) of
    its GPU.

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
    # An exact name or alias is trusted; a match by words must not contradict the form factor.
    card = "mig" in words or (profile.name.endswith("-sxm") and words & {"pcie", "nvl"})
    unsaid = profile.name == "h100-sxm" and not words & {"sxm", "sxm5", "hbm3"}
    return None if found != lower and (card or unsaid) else profile
