"""Search the tiles of the grouped GEMMs by timing them on this GPU; ``moesim kernels tune`` runs
this.

First, static resources rule tiles out: tiles that need more shared memory than a program gets, or
more accumulators than its warps hold without spilling (`moesim_kernels.tiles`). The rest is timed
as part of the expert phase at a fixed routing: first the tile of the up projection, then the tile
of the down projection with the number of rows that the first one fixed. Tiles that the compiler
still refuses are skipped. The pair to beat is the best by the simulator's model, priced on the
histogram itself (`moesim_kernels.tiles.modeled`); layers find the tables written here through
`moesim_kernels.tiles.choice`. A skewed routing wants other tiles than an even one, so the table
records the skew.
"""

from collections.abc import Callable, Iterator
from itertools import product

import torch
from moesim_kernels.ops.runtime import device as kernel_device
from moesim_kernels.ops.runtime import device_name, triton, triton_mode
from moesim_kernels.ops.runtime import limits as gpu_limits
from moesim_kernels.tiles.modeled import best_tiles, profile_of
from moesim_kernels.tiles.tiles import Limits, Tile, tile_config
from moesim_kernels.timing.bench import prepare_expert_phase, random_ids, time_calls

from moesim.model import MoELayer

#: function that returns the seconds of one expert phase with these two tiles
Timer = Callable[[Tile, Tile], float]


def candidates(
    num_columns: int,
    *,
    operand_bits: int,
    num_accumulators: int,
    limits: Limits,
    block_m: int | None = None,
) -> list[Tile]:
    """Return the tiles worth timing: those a program has shared memory and registers for.

    Args:
        num_columns: Number of output columns of the GEMM, per accumulator.
        operand_bits: Bits of one operand element.
        num_accumulators: Number of accumulators a program keeps.
        limits: Resources the GPU gives a program.
        block_m: Number of rows in a tile where a plan has fixed them.

    Returns:
        Tiles without repetition, small ones first.
    """
    # float32 products need registers for their operands too.
    most = min(limits.elements_per_warp, 1024 if operand_bits >= 32 else 4096)
    found = []
    for rows, block_n, bits_k, num_warps, num_stages in product(
        (block_m,) if block_m else (16, 32, 64, 128),
        (16, 32, 64, 128, 256),
        (512, 1024, 2048),
        (4, 8),
        (2, 3, 4, 5),
    ):
        block_k = max(bits_k // operand_bits, 16)
        stage_bytes = (rows + num_accumulators * block_n) * block_k * operand_bits // 8
        # Shared memory for all stages, registers for the accumulators, enough work for every warp,
        # and no more columns than the matrix has.
        fits = (
            stage_bytes * num_stages <= limits.shared_bytes
            and rows * block_n * num_accumulators <= most * num_warps
            and rows * block_n * num_accumulators >= 256 * num_warps
            and block_n < 2 * max(num_columns, 16)
        )
        if fits:
            found.append(
                Tile(
                    block_m=rows,
                    block_n=block_n,
                    block_k=block_k,
                    num_warps=num_warps,
                    num_stages=num_stages,
                    group_m=8,
                )
            )
    return list(dict.fromkeys(found))


def search(
    up: list[Tile], down: Callable[[int], list[Tile]], default: tuple[Tile, Tile], seconds: Timer
) -> tuple[Tile, Tile, float, float]:
    """Find the fastest pair of tiles, one projection after the other.

    Args:
        up: Candidates of the up projection.
        down: Function that returns the candidates of the down projection for a number of rows.
        default: The pair to beat.
        seconds: Function that times a pair.

    Returns:
        Tiles of the up and of the down projection, their seconds, and the seconds of the default,
        which wins ties.
    """
    # The default starts as the best, so that it wins ties.
    best = default_s = seconds(*default)
    best_up, best_down = default
    # Two separate searches time the sum of both lists, not their product.
    for tile in up:
        if (taken := _seconds(seconds, tile, default[1])) < best:
            best, best_up = taken, tile
    for tile in down(best_up.block_m):
        if (taken := _seconds(seconds, best_up, tile)) < best:
            best, best_down = taken, tile
    return best_up, best_down, best, default_s


def _seconds(seconds: Timer, up: Tile, down: Tile) -> float:
    """Time a pair of tiles; infinite where the compiler or the driver refuses a tile.

    Raises:
        RuntimeError: The call fails for any other reason.
    """
    try:
        return seconds(up, down)
    except (
        triton.compiler.errors.CompilationError,
        triton.runtime.errors.OutOfResources,
        triton.runtime.errors.PTXASError,
    ):
        return float("inf")
    except RuntimeError as error:
        # An error of MLIR's passes has no class of its own.
        if "PassManager::run failed" not in str(error):
            raise
        return float("inf")


def tune(
    layer: MoELayer,
    tokens: list[int],
    *,
    dtype: torch.dtype = torch.bfloat16,
    skew: float = 0.0,
    seed: int = 0,
) -> Iterator[dict]:
    """Search the tiles of a layer on this GPU.

    Args:
        layer: Layer that gives the sizes.
        tokens: Numbers of tokens; each one is tuned separately.
        dtype: Number format of the experts.
        skew: Skew of the experts' popularity, see `moesim_kernels.timing.bench.random_ids`.
        seed: Seed of the routing, tokens, and weights.

    Yields:
        For each number of tokens, a row for each of the two GEMMs: what was tuned, the tile, and
        the microseconds of the expert phase with both tuned tiles and with the default ones.

    Raises:
        RuntimeError: There is no GPU with an active Triton driver, or kernels are interpreted.
        ConfigError: The kernels do not compute this layer.
    """
    if triton_mode() != "gpu":
        raise RuntimeError(
            f"timing kernels needs a GPU with an active Triton driver, got mode {triton_mode()!r}"
        )
    limits, bits = gpu_limits(), dtype.itemsize * 8
    device = device_name()
    for num_tokens in tokens:
        ids_TK = random_ids(
            num_tokens, layer.num_experts, layer.top_k, skew=skew, seed=seed, device=kernel_device()
        )
        load, width = ids_TK.numel() / layer.num_experts, layer.shared_width

        # The ids are bound as a default, since the loop's variable changes.
        def seconds(up: Tile, down: Tile, ids_TK: torch.Tensor = ids_TK) -> float:
            call = prepare_expert_phase(
                layer, ids_TK, seed=seed, dtype=dtype, swiglu_tile=up, down_tile=down
            )
            return time_calls(call).median_s

        profile, name = profile_of(device), str(dtype).removeprefix("torch.")
        # Without a profile of this GPU, the default is the tile of the mean load.
        if profile is not None and name in profile.peak_flops_per_s:
            counts_E = torch.bincount(ids_TK.flatten(), minlength=layer.num_experts).cpu().numpy()
            default = best_tiles(
                counts_E,
                layer.hidden_size,
                width,
                profile=profile,
                limits=limits,
                operand_bits=bits,
            )
        else:
            first = tile_config(load, width, operand_bits=bits, num_accumulators=2, limits=limits)
            default = (
                first,
                tile_config(
                    load, layer.hidden_size, operand_bits=bits, block_m=first.block_m, limits=limits
                ),
            )
        up, down, tuned_s, default_s = search(
            candidates(width, operand_bits=bits, num_accumulators=2, limits=limits),
            lambda rows: candidates(
                layer.hidden_size,
                operand_bits=bits,
                num_accumulators=1,
                limits=limits,
                block_m=rows,
            ),
            default,
            seconds,
        )
        # Both rows carry the times of the pair.
        for gemm, tile in (("swiglu", up), ("down", down)):
            yield {
                "device": device,
                "num_experts": layer.num_experts,
                "top_k": layer.top_k,
                "hidden_size": layer.hidden_size,
                "expert_intermediate_size": width,
                "dtype": name,
                "skew": skew,
                "num_tokens": num_tokens,
                "gemm": gemm,
                # Both rows carry the plan's number of rows, whatever the down tile asked for.
                "block_m": up.block_m,
                "block_n": tile.block_n,
                "block_k": tile.block_k,
                "group_m": tile.group_m,
                "num_warps": tile.num_warps,
                "num_stages": tile.num_stages,
                "tuned_us": tuned_s * 1e6,
                "default_us": default_s * 1e6,
            }
