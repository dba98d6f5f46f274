"""Search the tiles of the grouped GEMMs by timing them on this GPU; ``moesim kernels tune`` runs
this.

The tile model prices every tile a program has resources for; the best ten pairs are timed first,
then the rest in the order of their price, until the time is over. Each GEMM is timed by itself at
a fixed routing, and the pair with the least sum wins: both share the plan, and so their rows. Tiles
that the compiler refuses are skipped. The pair to beat is the one layers would run without a table;
layers find the tables written here through `moesim_kernels.tiles.choice`. A skewed routing wants
other tiles than an even one, so the table records the skew.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from moesim_kernels.ops.gemm_paths import gemm_path
from moesim_kernels.ops.runtime import device as kernel_device
from moesim_kernels.ops.runtime import device_name, target
from moesim_kernels.ops.runtime import limits as gpu_limits
from moesim_kernels.ops.weights import LayerWeights
from moesim_kernels.tiles.choice import Shape, default_tiles
from moesim_kernels.tiles.tiles import Limits, Tile
from moesim_kernels.timing.gemms import (
    Gemm,
    GroupedGemms,
    Timer,
    by_price,
    described,
    needs_gpu,
    own_tiles,
    refused,
    replay_seconds,
)

from moesim.costs.tiles import TILE_FIELDS
from moesim.hardware.drivers import profile_of_driver
from moesim.model import MoELayer
from moesim.units import US

# Tiles of each GEMM that are timed at most, the cheapest first: beyond them prices are far from the
# best.
_MOST = 100
_GEMMS: tuple[Gemm, Gemm] = ("up", "down")


def candidates(
    num_columns: int, *, operand_bits: int, num_accumulators: int, limits: Limits
) -> list[Tile]:
    """Return the tiles worth timing: those a program has shared memory and registers for.

    Args:
        num_columns: Number of output columns of the GEMM, per accumulator.
        operand_bits: Bits of one operand element.
        num_accumulators: Number of accumulators a program keeps.
        limits: Resources the GPU gives a program.

    Returns:
        Tiles without repetition, small ones first.
    """
    # float32 products need registers for their operands too.
    most = min(limits.elements_per_warp, 1024 if operand_bits >= 32 else 4096)
    found = []
    for rows, block_n, bits_k, num_warps, num_stages in product(
        (16, 32, 64, 128),
        (16, 32, 64, 128, 256),
        (1024, 2048, 4096),
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
                    group_m=1,
                )
            )
    return list(dict.fromkeys(found))


@dataclass(slots=True)
class Found:
    """What was timed so far.

    Attributes:
        seconds: GEMM -> tile -> seconds.
    """

    seconds: dict[Gemm, dict[Tile, float]] = field(
        default_factory=lambda: {gemm: {} for gemm in _GEMMS}
    )

    def best(self) -> tuple[Tile, Tile, float] | None:
        """Return the pair with the least sum, and that sum; the earlier timed wins ties. None
        before both GEMMs were timed with the same number of rows.
        """
        fastest: dict[tuple[Gemm, int], tuple[Tile, float]] = {}
        for gemm, tiles in self.seconds.items():
            for tile, seconds in tiles.items():
                key = (gemm, tile.block_m)
                if key not in fastest or seconds < fastest[key][1]:
                    fastest[key] = (tile, seconds)
        pairs = [
            (up, fastest["down", rows][0], seconds + fastest["down", rows][1])
            for (gemm, rows), (up, seconds) in fastest.items()
            if gemm == "up" and ("down", rows) in fastest
        ]
        return min(pairs, key=lambda pair: pair[2]) if pairs else None


def _queue(
    gemms: GroupedGemms, default: tuple[Tile, Tile], bits: int, limits: Limits
) -> list[tuple[Gemm, Tile]]:
    """Return what to time, in order: the default pair, then both GEMMs' tiles by price in turns."""
    layer, profile = gemms.layer, profile_of_driver(device_name()) if device_name() else None
    reads = gemm_path(target(), element_bytes=bits // 8, depth=128)
    both = (False, True) if reads == "descriptors" else (False,)
    queues: list[list[tuple[Gemm, Tile]]] = []
    for gemm, first, columns, accumulators in (
        ("up", default[0], layer.shared_width, 2),
        ("down", default[1], layer.hidden_size, 1),
    ):
        grid = candidates(columns, operand_bits=bits, num_accumulators=accumulators, limits=limits)
        tiles = [*own_tiles(gemm, bits), *(described(t, d) for t in grid for d in both)]
        priced = by_price(gemms, gemm, tiles, profile, bits, first)[:_MOST]
        queues.append([(gemm, tile) for tile in dict.fromkeys([first, *priced])])
    turns = max(map(len, queues))
    return [one for turn in range(turns) for queue in queues for one in queue[turn : turn + 1]]


def tune(
    layer: MoELayer,
    tokens: Sequence[int],
    *,
    seconds: float,
    dtype: torch.dtype = torch.bfloat16,
    skew: float = 0.0,
    seed: int = 0,
    timer: Timer | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Iterator[list[dict[str, Any]]]:
    """Search the tiles of a layer on this GPU.

    Args:
        layer: Layer that gives the sizes.
        tokens: Numbers of tokens; each is tuned separately and gets an equal share of the time that
            is left.
        seconds: When to stop; the tile that is being timed is finished.
        dtype: Number format of the experts.
        skew: Skew of the experts' popularity, see `moesim_kernels.timing.bench.random_ids`.
        seed: Seed of the routing, tokens, and weights.
        timer: Function that times a call; by default
            `moesim_kernels.timing.gemms.replay_seconds`, on a GPU.
        now: Clock in seconds.

    Yields:
        After every timing that both GEMMs have one of, the rows of the best pair so far, one for
        each GEMM: what was tuned, the tile, how many tiles were timed, and the microseconds of both
        GEMMs with the tuned tiles and with the default ones.

    Raises:
        RuntimeError: There is no GPU with an active Triton driver, and no timer is given.
        ConfigError: The kernels do not compute this layer.
    """
    if timer is None:
        needs_gpu()
        timer = replay_seconds
    started = now()
    limits, bits = gpu_limits(), dtype.itemsize * 8
    weights = LayerWeights.random(layer, seed, dtype, kernel_device())
    shape = Shape(
        num_experts=layer.num_experts,
        top_k=layer.top_k,
        hidden_size=layer.hidden_size,
        expert_intermediate_size=layer.shared_width,
        dtype=str(dtype).removeprefix("torch."),
        operand_bits=bits,
    )
    for index, num_tokens in enumerate(tokens):
        gemms = GroupedGemms(layer, num_tokens, weights, skew=skew, seed=seed)
        default = default_tiles(device_name(), shape, num_tokens, limits)
        left = seconds - (now() - started)
        until = now() + left / (len(tokens) - index)
        found, default_s = Found(), 0.0
        for count, (gemm, tile) in enumerate(_queue(gemms, default, bits, limits), 1):
            # The pair to beat is timed in any case.
            if count > len(_GEMMS) and now() >= until:
                break
            try:
                found.seconds[gemm][tile] = timer(gemm, tile, gemms.call(gemm, tile))
            except Exception as error:
                if not refused(error):
                    raise
                continue
            if count <= len(_GEMMS):
                default_s += found.seconds[gemm][tile]
            best = found.best()
            if best is not None:
                up, down, tuned_s = best
                about = _about(shape, num_tokens, skew) | {
                    "timed": count,
                    "tuned_us": tuned_s / US,
                    "default_us": default_s / US,
                }
                yield [
                    about | {"gemm": name} | _columns(tile)
                    for name, tile in (("swiglu", up), ("down", down))
                ]


def _about(shape: Shape, num_tokens: int, skew: float) -> dict[str, Any]:
    return {
        "device": device_name(),
        "num_experts": shape.num_experts,
        "top_k": shape.top_k,
        "hidden_size": shape.hidden_size,
        "expert_intermediate_size": shape.expert_intermediate_size,
        "dtype": shape.dtype,
        "skew": skew,
        "num_tokens": num_tokens,
    }


def _columns(tile: Tile) -> dict[str, Any]:
    path = {None: "", True: "descriptors", False: "pointers"}[tile.descriptors]
    return {"path": path} | {name: getattr(tile, name) for name in TILE_FIELDS}
