"""Time the grouped GEMMs of a layer with many tiles; ``moesim kernels sweep`` runs this.

Rows have the columns that `moesim.measured.tiles` reads: the tile model is scored with them
(``moesim validate tiles``) and fitted to them (``moesim calibrate tiles``). Tiles come in the
order of their price, for each number of tokens, and each is timed as it is launched by default.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from moesim_kernels.ops.runtime import device as kernel_device
from moesim_kernels.ops.runtime import device_name, triton_mode
from moesim_kernels.ops.weights import LayerWeights
from moesim_kernels.timing.gemms import (
    Gemm,
    GroupedGemms,
    Timer,
    by_price,
    needs_gpu,
    own_tiles,
    refused,
    replay_seconds,
)

from moesim.costs.devices.tile_choice import form_of
from moesim.costs.tiles import TILE_FIELDS, Tile
from moesim.hardware.drivers import profile_of_driver
from moesim.model import MoELayer
from moesim.units import US

_BITS = 16
_GEMMS: tuple[Gemm, Gemm] = ("up", "down")


def sweep(
    layer: MoELayer,
    tokens: Sequence[int],
    *,
    seconds: float,
    skew: float = 0.0,
    seed: int = 0,
    timer: Timer | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Iterator[dict[str, Any]]:
    """Time tiles of a layer's grouped GEMMs in bfloat16.

    Args:
        layer: Layer that gives the sizes.
        tokens: Numbers of tokens; each gets an equal share of the time that is left.
        seconds: When to stop; the tile that is being timed is finished.
        skew: Skew of the experts' popularity, see `moesim_kernels.timing.bench.random_ids`.
        seed: Seed of the routing, tokens, and weights.
        timer: Function that times a call; by default `replay_seconds`, on a GPU.
        now: Clock in seconds.

    Yields:
        A row for each tile that the compiler accepts, as soon as it was timed.

    Raises:
        RuntimeError: There is no GPU with an active Triton driver, and no timer is given.
        ConfigError: The kernels do not compute this layer.
    """
    if timer is None:
        needs_gpu()
        timer = replay_seconds
    started = now()
    weights = LayerWeights.random(layer, seed, torch.bfloat16, kernel_device())
    profile = profile_of_driver(device_name()) if triton_mode() == "gpu" else None
    for index, num_tokens in enumerate(tokens):
        gemms = GroupedGemms(layer, num_tokens, weights, skew=skew, seed=seed)
        tiles = {
            gemm: by_price(gemms, gemm, own, profile, _BITS, own[0])
            for gemm in _GEMMS
            for own in (own_tiles(gemm, _BITS),)
        }
        left = seconds - (now() - started)
        until = now() + left / (len(tokens) - index)
        # The cheapest of both first, then the next of both.
        queue = [
            (gemm, tile)
            for place in range(max(map(len, tiles.values())))
            for gemm in _GEMMS
            for tile in tiles[gemm][place : place + 1]
        ]
        for gemm, tile in queue:
            if now() >= until:
                break
            try:
                taken_s = timer(gemm, tile, gemms.call(gemm, tile))
            except Exception as error:
                if not refused(error):
                    raise
                continue
            yield _row(gemms, gemm, tile, skew) | {"median_us": taken_s / US}


def _row(gemms: GroupedGemms, gemm: Gemm, tile: Tile, skew: float) -> dict[str, Any]:
    layer, counts_E = gemms.layer, gemms.counts_E
    form = form_of(gemm == "up", _BITS / 8, tile)
    return {
        "device": device_name() or "none",
        "hidden_size": layer.hidden_size,
        "expert_intermediate_size": layer.shared_width,
        "num_experts": layer.num_experts,
        "top_k": layer.top_k,
        "num_tokens": gemms.num_tokens,
        "skew": skew,
        "active_experts": int((counts_E > 0).sum()),
        "max_rows": int(counts_E.max()),
        "gemm": gemm,
        # The table tells the kernel by how it reads weights, where there are several.
        "path": form.removeprefix("paired_").removeprefix("linear_"),
        **{name: getattr(tile, name) for name in TILE_FIELDS},
        "row_tiles": int((-(-counts_E // tile.block_m)).sum()),
    }
