"""Times of the expert phase on a GPU: plan, both grouped GEMMs and combine, as one call.

Device events around each call, after a warm-up; with a flush, the L2 cache is overwritten before
each call as `triton.testing.do_bench` does, without one the previous call leaves it warm. The truth
for a layer inside a model lies between: weights rarely survive in L2 from one layer's turn to its
next. Times of small layers contain the gaps between their dozen launches, as in a model that runs
without graphs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from moesim_kernels.ops.layer import LayerWeights, expert_phase
from moesim_kernels.ops.operands import result_dtype
from moesim_kernels.ops.runtime import device as kernel_device
from moesim_kernels.ops.runtime import triton, triton_mode
from moesim_kernels.tiles.tiles import Tile

from moesim.model import MoELayer


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Times of repeated calls, in seconds.

    Attributes:
        median_s: Half of the calls took less.
        p10_s: A tenth took less.
        p90_s: Nine tenths took less.
        num_calls: Calls timed.
        flushed: Whether L2 was overwritten before each call.
    """

    median_s: float
    p10_s: float
    p90_s: float
    num_calls: int
    flushed: bool

    @classmethod
    def of(cls, times_s: list[float], flushed: bool) -> "Timing":
        """Quantiles (linear between neighbours) of at least one time."""
        p10_s, median_s, p90_s = (
            torch.tensor(times_s, dtype=torch.float64)
            .quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
            .tolist()
        )
        return cls(
            median_s=median_s, p10_s=p10_s, p90_s=p90_s, num_calls=len(times_s), flushed=flushed
        )


def random_ids(
    num_tokens: int,
    num_experts: int,
    top_k: int,
    *,
    skew: float = 0.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Distinct experts per token, the e-th most popular drawn in proportion to (e + 1)^-skew
    (Gumbel top-k).

    Args:
        num_tokens: Tokens T.
        num_experts: Experts E.
        top_k: Experts a token uses.
        skew: 0 is uniform, 1 is Zipf's law.
        seed: Drawn on the CPU, so the same everywhere.
        device: Where the ids go.

    Returns:
        int32 of shape (T, K).

    Raises:
        ValueError: top_k outside 1..num_experts.
    """
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k: expected 1 to {num_experts}, got {top_k}")
    generator = torch.Generator().manual_seed(seed)
    noise_TE = -torch.empty(num_tokens, num_experts).exponential_(generator=generator).log()
    scores_TE = noise_TE - skew * torch.arange(1, num_experts + 1).log()
    return scores_TE.topk(top_k, dim=1).indices.int().to(device)


def prepare_expert_phase(
    layer: MoELayer,
    ids_TK: torch.Tensor,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    swiglu_tile: Tile | None = None,
    down_tile: Tile | None = None,
) -> Callable[[], torch.Tensor]:
    """Make random tokens and weights where ``ids_TK`` is, and the call to time.

    Args:
        layer: Sizes and formats.
        ids_TK: Routing, int32 of shape (T, K), contiguous; router weights are equal.
        seed: Of tokens and weights.
        dtype: Format of the experts; by default the layer's.
        swiglu_tile: See `moesim_kernels.ops.layer.expert_phase`.
        down_tile: See `moesim_kernels.ops.layer.expert_phase`.

    Returns:
        A call without arguments; its result has shape (T, H).

    Raises:
        ConfigError: A layer the kernels do not compute.
        ValueError: ids_TK without top_k columns.
    """
    if ids_TK.ndim != 2 or ids_TK.shape[1] != layer.top_k:
        raise ValueError(f"ids_TK: expected shape (T, {layer.top_k}), got {tuple(ids_TK.shape)}")
    weights = LayerWeights.random(layer, seed, dtype, ids_TK.device)
    generator = torch.Generator(ids_TK.device).manual_seed(seed + 1)
    x_TH = torch.empty(
        ids_TK.shape[0],
        layer.hidden_size,
        dtype=result_dtype(weights.w_gate_up),
        device=ids_TK.device,
    )
    x_TH.normal_(generator=generator)
    weights_TK = torch.full(ids_TK.shape, 1.0 / layer.top_k, device=ids_TK.device)
    return lambda: expert_phase(
        x_TH, ids_TK, weights_TK, weights, swiglu_tile=swiglu_tile, down_tile=down_tile
    )


def time_calls(
    call: Callable[[], object],
    *,
    flush_l2: bool = True,
    warmup_s: float = 0.025,
    repeat_s: float = 0.1,
) -> Timing:
    """Time a call on the GPU.

    Args:
        call: Launches work on the current stream; called once untimed, to compile.
        flush_l2: Overwrite L2 before each call.
        warmup_s: Untimed calls first, for about this long.
        repeat_s: Timed calls, for about this long; at least 10.

    Raises:
        RuntimeError: No GPU with an active Triton driver, or an interpreting process.
    """
    return Timing.of(
        call_seconds(call, flush_l2=flush_l2, warmup_s=warmup_s, repeat_s=repeat_s), flush_l2
    )


def call_seconds(
    call: Callable[[], object],
    *,
    flush_l2: bool = True,
    warmup_s: float = 0.025,
    repeat_s: float = 0.1,
) -> list[float]:
    """Times of repeated calls on the GPU, in seconds; arguments and errors are those of
    `time_calls`.
    """
    if triton_mode() != "gpu":
        raise RuntimeError(
            f"timing kernels needs a GPU with an active Triton driver, got mode {triton_mode()!r}"
        )
    driver = triton.runtime.driver.active
    gpu, cache = driver.get_device_interface(), driver.get_empty_cache_for_benchmark()

    def run(num_calls: int) -> list[float]:
        starts, ends = ([gpu.Event(enable_timing=True) for _ in range(num_calls)] for _ in range(2))
        for start, end in zip(starts, ends, strict=True):
            if flush_l2:
                driver.clear_cache(cache)
            start.record()
            call()
            end.record()
        gpu.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in zip(starts, ends, strict=True)]

    call()
    estimate_s = max(min(run(5)), 1e-6)
    run(max(1, int(warmup_s / estimate_s)))
    return run(max(10, int(repeat_s / estimate_s)))


def time_expert_phase(
    layer: MoELayer,
    num_tokens: int,
    *,
    skew: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    flush_l2: bool = True,
    swiglu_tile: Tile | None = None,
    down_tile: Tile | None = None,
) -> Timing:
    """Time the expert phase of a layer on this GPU, for random tokens.

    Args:
        layer: Sizes and formats.
        num_tokens: Tokens T.
        skew: Of the experts' popularity, see `random_ids`.
        seed: Of routing, tokens and weights.
        dtype: Format of the experts; by default the layer's.
        flush_l2: Overwrite L2 before each call.
        swiglu_tile: See `moesim_kernels.ops.layer.expert_phase`.
        down_tile: See `moesim_kernels.ops.layer.expert_phase`.

    Raises:
        RuntimeError: No GPU with an active Triton driver, or an interpreting process.
        ConfigError: A layer the kernels do not compute.
    """
    if triton_mode() != "gpu":
        raise RuntimeError(
            f"timing kernels needs a GPU with an active Triton driver, got mode {triton_mode()!r}"
        )
    ids_TK = random_ids(
        num_tokens, layer.num_experts, layer.top_k, skew=skew, seed=seed, device=kernel_device()
    )
    call = prepare_expert_phase(
        layer, ids_TK, seed=seed, dtype=dtype, swiglu_tile=swiglu_tile, down_tile=down_tile
    )
    return time_calls(call, flush_l2=flush_l2)
