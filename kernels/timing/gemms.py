"""Prepare the two grouped GEMMs of a layer, each to be called by itself with any tile.

Tokens, weights, routing and plans are made once for a number of tokens; a call launches one kernel.
On a GPU a call is timed as a CUDA graph that holds it alone, replayed with L2 overwritten before
each replay, as one of many layers finds it.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from moesim_kernels.ops.grouped_down import grouped_down
from moesim_kernels.ops.grouped_swiglu import grouped_swiglu
from moesim_kernels.ops.operands import result_dtype
from moesim_kernels.ops.plan import Plan, make_plan
from moesim_kernels.ops.runtime import device as kernel_device
from moesim_kernels.ops.runtime import target, triton, triton_mode
from moesim_kernels.ops.weights import LayerWeights
from moesim_kernels.tiles.modeled import expert_sizes, tile_model
from moesim_kernels.tiles.tiles import Tile
from moesim_kernels.timing.bench import call_seconds, random_ids
from moesim_kernels.timing.graphs import captured

from moesim.costs.devices.tile_choice import compiled_tiles, tile_us_R
from moesim.costs.tiles import TILE_FIELDS
from moesim.hardware import Profile
from moesim.model import MoELayer

Gemm = Literal["up", "down"]
#: which GEMM, its tile, and the call that launches it -> its seconds
Timer = Callable[[Gemm, Tile, Callable[[], object]], float]
# Seconds of warm-up, and of timed replays, of each tile.
_WARMUP_S, _REPEAT_S = 0.005, 0.02


def replay_seconds(gemm: Gemm, tile: Tile, call: Callable[[], object]) -> float:
    """Return the median seconds of replaying a graph of this call, L2 overwritten before each: the
    timer on a GPU. Which GEMM and tile it is makes no difference here.

    Raises:
        RuntimeError: There is no GPU with an active Triton driver, or kernels are interpreted.
    """
    graph = captured([call])
    seconds = call_seconds(graph.replay, warmup_s=_WARMUP_S, repeat_s=_REPEAT_S)
    return float(np.median(seconds))


def refused(error: Exception) -> bool:
    """Return whether the compiler or the driver refused a tile, rather than the GPU failing."""
    # An error of MLIR's passes has no class of its own.
    return isinstance(
        error,
        (
            triton.compiler.errors.CompilationError,
            triton.runtime.errors.OutOfResources,
            triton.runtime.errors.PTXASError,
        ),
    ) or (isinstance(error, RuntimeError) and "PassManager::run failed" in str(error))


def needs_gpu() -> None:
    """Refuse to time where kernels are interpreted or cannot run.

    Raises:
        RuntimeError: There is no GPU with an active Triton driver, or kernels are interpreted.
    """
    if triton_mode() != "gpu":
        raise RuntimeError(
            f"timing kernels needs a GPU with an active Triton driver, got mode {triton_mode()!r}"
        )


class GroupedGemms:
    """The grouped GEMMs of one layer at one routing.

    Args:
        layer: Layer that gives the sizes.
        num_tokens: Number of tokens T.
        weights: Weights of the layer, on the device where kernels run.
        skew: Skew of the experts' popularity, see `moesim_kernels.timing.bench.random_ids`.
        seed: Seed of the routing and of the tokens.

    Attributes:
        counts_E: Rows of each expert, ndarray of int64, shape (E,).
        block_ms: Numbers of rows of the tiles that were prepared so far.
    """

    def __init__(
        self, layer: MoELayer, num_tokens: int, weights: LayerWeights, *, skew: float, seed: int
    ) -> None:
        device = kernel_device()
        self.layer, self.num_tokens, self._weights = layer, num_tokens, weights
        self._ids_TK = random_ids(
            num_tokens, layer.num_experts, layer.top_k, skew=skew, seed=seed, device=device
        )
        self.counts_E = np.bincount(
            self._ids_TK.flatten().cpu().numpy(), minlength=layer.num_experts
        )
        generator = torch.Generator(device).manual_seed(seed + 1)
        dtype = result_dtype(weights.w_gate_up)
        self._x_TH, self._act_PI = (
            torch.empty(rows, columns, dtype=dtype, device=device).normal_(generator=generator)
            for rows, columns in (
                (num_tokens, layer.hidden_size),
                (num_tokens * layer.top_k, layer.shared_width),
            )
        )
        self._plans: dict[int, Plan] = {}

    def call(self, gemm: Gemm, tile: Tile) -> Callable[[], torch.Tensor]:
        """Return the function that launches a GEMM with this tile."""
        if tile.block_m not in self._plans:
            self._plans[tile.block_m] = make_plan(
                self._ids_TK, self.layer.num_experts, tile.block_m
            )
        plan = self._plans[tile.block_m]
        if gemm == "up":
            return lambda: grouped_swiglu(self._x_TH, self._weights.w_gate_up, plan, tile)
        return lambda: grouped_down(self._act_PI, self._weights.w_down, plan, tile)


def by_price(
    gemms: GroupedGemms,
    gemm: Gemm,
    tiles: Iterable[Tile],
    profile: Profile | None,
    bits: int,
    default: Tile,
) -> list[Tile]:
    """Return tiles by what the model prices them at for this histogram, cheapest first; on a GPU
    without a profile by how near their sizes are to those of the default.
    """
    tiles = list(dict.fromkeys(tiles))
    layer = gemms.layer
    sizes = expert_sizes(layer.hidden_size, layer.shared_width, layer.top_k, bits)
    if profile is None or sizes.fmt not in profile.peak_flops_per_s:
        return sorted(tiles, key=lambda tile: _distance(tile, default))
    price_R = tile_us_R(tile_model(profile), gemms.counts_E, sizes, gemm, tiles)
    return [tiles[index] for index in np.argsort(price_R, kind="stable")]


def _distance(tile: Tile, other: Tile) -> float:
    """Return how many doublings lie between two tiles' sizes."""
    return sum(
        abs(float(np.log2(getattr(tile, name) / getattr(other, name)))) for name in TILE_FIELDS
    )


def own_tiles(gemm: Gemm, bits: int) -> tuple[Tile, ...]:
    """Return the tiles that are compiled for this machine's GPU, or for an A100 without one."""
    return compiled_tiles(target() or "sm_80", bits, gemm)


def described(tile: Tile, descriptors: bool) -> Tile:
    """Return the tile with its weights read by descriptors, or by pointers."""
    return replace(tile, descriptors=descriptors)
