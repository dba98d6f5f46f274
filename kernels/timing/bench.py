"""Time the expert phase on a GPU: plan, both grouped GEMMs, and combine, as one call.

Device events surround each call, after a warm-up. With a flush, the L2 cache is overwritten before
each call, as `triton.testing.do_bench` does; without one, the previous call leaves it warm. The
truth for a layer inside a model lies in between, since weights rarely survive in L2 from one use of
a layer to the next. Times of small layers contain the gaps between their dozen launches, as in a
model that runs without graphs.
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
    """Statistics of repeated calls, in seconds.

    Attributes:
        median_s: Median time of a call.
        p10_s: Tenth percentile of the times.
        p90_s: Ninetieth percentile of the times.
        num_calls: Number of timed calls.
        flushed: Whether L2 was overwritten before each call.
    """

    median_s: float
    p10_s: float
    p90_s: float
    num_calls: int
    flushed: bool

    @classmethod
    def of(cls, times_s: list[float], flushed: bool) -> "Timing":
        """Return the quantiles (linear between neighbors) of at least one time."""
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
    """Draw distinct experts per token, the e-th most popular in proportion to (e + 1)^-skew (Gumbel
    top-k).

    Args:
        num_tokens: Number of tokens T.
        num_experts: Number of experts E.
        top_k: Number of experts each token uses.
        skew: Exponent of the popularity: 0 is uniform, 1 is Zipf's law.
        seed: Seed of the draw, which is made on the CPU and therefore the same everywhere.
        device: Device that gets the ids.

    Returns:
        Expert ids, int32 of shape (T, K).

    Raises:
        ValueError: top_k is outside 1..num_experts.
    """
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k: expected 1 to {num_experts}, got {top_k}")
    generator = torch.Generator().manual_seed(seed)
    # The top k of log-weights plus Gumbel noise are a draw without replacement.
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
    """Make random tokens and weights on the device of ``ids_TK``, and return the call to time.

    Args:
        layer: Layer that gives the sizes and formats.
        ids_TK: Routing, int32 of shape (T, K), contiguous; router weights are equal.
        seed: Seed of tokens and weights.
        dtype: Number format of the experts; by default the layer's.
        swiglu_tile: Tile of the first GEMM, passed to `moesim_kernels.ops.layer.expert_phase`.
        down_tile: Tile of the second GEMM, passed to `moesim_kernels.ops.layer.expert_phase`.

    Returns:
        A function without arguments; its result has shape (T, H).

    Raises:
        ConfigError: The kernels do not compute this layer.
        ValueError: ids_TK does not have top_k columns.
    """
    if ids_TK.ndim != 2 or ids_TK.shape[1] != layer.top_k:
        raise ValueError(f"ids_TK: expected shape (T, {layer.top_k}), got {tuple(ids_TK.shape)}")
    weights = LayerWeights.random(layer, seed, dtype, ids_TK.device)
    # Another seed than the weights', so that tokens and weights are independent.
    generator = torch.Generator(ids_TK.device).manual_seed(seed + 1)
    x_TH = torch.empty(
        ids_TK.shape[0],
        layer.hidden_size,
        dtype=result_dtype(weights.w_gate_up),
        device=ids_TK.device,
    )
    x_TH.normal_(generator=generator)
    weights_TK = torch.full(ids_TK.shape, 1.0 / layer.top_k, device=ids_TK.device)
    # Tokens and weights are made before the call, so that only the expert phase is timed.
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
        call: Function that launches work on the current stream; called once untimed, to compile.
        flush_l2: Whether L2 is overwritten before each call.
        warmup_s: About how long to make untimed calls first.
        repeat_s: About how long to make timed calls; there are at least 10.

    Raises:
        RuntimeError: There is no GPU with an active Triton driver, or kernels are interpreted.
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
    """Return the times of repeated calls on the GPU, in seconds; arguments and errors are those of
    `time_calls`.
    """
    if triton_mode() != "gpu":
        raise RuntimeError(
            f"timing kernels needs a GPU with an active Triton driver, got mode {triton_mode()!r}"
        )
    driver = triton.runtime.driver.active
    gpu, cache = driver.get_device_interface(), driver.get_empty_cache_for_benchmark()

    def run(num_calls: int) -> list[float]:
        # All events exist before the first call, so that making them is not timed.
        starts, ends = ([gpu.Event(enable_timing=True) for _ in range(num_calls)] for _ in range(2))
        for start, end in zip(starts, ends, strict=True):
            if flush_l2:
                # Before the start event, so that the flush is not timed.
                driver.clear_cache(cache)
            start.record()
            call()
            end.record()
        # One wait after all calls: a wait after each would let the GPU idle in between.
        gpu.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in zip(starts, ends, strict=True)]

    # The first call compiles the kernels, and five calls after it give a first estimate.
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
        layer: Layer that gives the sizes and formats.
        num_tokens: Number of tokens T.
        skew: Skew of the experts' popularity, see `random_ids`.
        seed: Seed of the routing, tokens, and weights.
        dtype: Number format of the experts; by default the layer's.
        flush_l2: Whether L2 is overwritten before each call.
        swiglu_tile: Tile of the first GEMM, passed to `moesim_kernels.ops.layer.expert_phase`.
        down_tile: Tile of the second GEMM, passed to `moesim_kernels.ops.layer.expert_phase`.

    Raises:
        RuntimeError: There is no GPU with an active Triton driver, or kernels are interpreted.
        ConfigError: The kernels do not compute this layer.
    """
    # Checked before weights are made, which may take long.
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
