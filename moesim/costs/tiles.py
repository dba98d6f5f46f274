"""Choose the tiles of Triton grouped GEMMs, and derive what follows from them: tile counts and CTAs
per SM.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from moesim.errors import ConfigError
from moesim.units import KIB

_REGISTERS_PER_SM = 65536
_WARPS_PER_SM = 64


#: numbers that make up a tile, as tables of tiles name their columns
TILE_FIELDS = ("block_m", "block_n", "block_k", "group_m", "num_warps", "num_stages")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One configuration of a tiled GEMM.

    Fields may be arrays, with one value per row of a table of measurements; only plain integers are
    checked.

    Attributes:
        block_m: Rows (tokens) of a tile.
        block_n: Columns of a tile.
        block_k: Depth of one iteration.
        group_m: Number of row tiles that share a sweep over columns, for L2.
        num_warps: Warps of a CTA.
        num_stages: Stages of the software pipeline.
        descriptors: Whether the accelerator copies blocks by tensor descriptors; None where nobody
            chose. Only this project's kernels ask.

    Raises:
        ConfigError: A block or a number of warps is not a power of two, or a number is below 1.
    """

    block_m: int
    block_n: int
    block_k: int
    group_m: int = 8
    num_warps: int = 4
    num_stages: int = 3
    descriptors: bool | None = None

    def __post_init__(self) -> None:
        for name in TILE_FIELDS:
            value = getattr(self, name)
            if not isinstance(value, int):
                continue
            power = name in ("block_m", "block_n", "block_k", "num_warps")
            if value < 1 or (power and value & (value - 1)):
                raise ConfigError(
                    f"tile.{name}: expected {'a power of two' if power else 'an integer >= 1'}, "
                    f"got {value}"
                )

    @classmethod
    def of(cls, numbers: Mapping[str, Any], *, descriptors: bool | None = None) -> "Tile":
        """Return the tile of a table's row, or of its columns: `TILE_FIELDS` by name."""
        return cls(**{name: numbers[name] for name in TILE_FIELDS}, descriptors=descriptors)

    def __str__(self) -> str:
        return f"{self.block_m}x{self.block_n}x{self.block_k}w{self.num_warps}s{self.num_stages}"

    def ctas_per_sm(
        self, element_bytes: float | np.ndarray, shared_memory_per_sm_bytes: float
    ) -> np.ndarray:
        """Return the CTAs that fit on one SM at once.

        The number is the least of what registers (an accumulator of block_m x block_n floats over
        the CTA's threads, about 64 more for addresses and operands, 255 at most), shared memory
        (num_stages - 1 buffered pairs of operand blocks plus 1 KiB that the driver keeps) and warps
        allow: CUDA C++ Programming Guide, compute capabilities.
        """
        threads = 32 * self.num_warps
        registers = np.minimum(255.0, self.block_m * self.block_n / threads + 64)
        buffers = np.maximum(self.num_stages - 1, 1)
        shared = buffers * (self.block_m + self.block_n) * self.block_k * element_bytes + KIB
        fit = np.minimum(
            np.minimum(
                _REGISTERS_PER_SM / (registers * threads), shared_memory_per_sm_bytes / shared
            ),
            _WARPS_PER_SM / self.num_warps,
        )
        return np.maximum(1, np.floor(fit))


def num_blocks(counts_DL: np.ndarray, block_m: int) -> np.ndarray:
    """Return the row blocks of each device, the sum over its experts of ceil(count / block_m):
    ndarray of shape (D,).
    """
    return (-(-counts_DL // block_m)).sum(axis=-1)


def heuristic_tile(tokens_per_expert: float, element_bytes: float) -> Tile:
    """Return the tile that a tuned kernel tends to use.

    block_m is the power of two at or above the mean load of an active expert, from 16 to 128;
    block_n grows with it; block_k fills 128 bytes; tiles from 128 x 128 have more warps. This
    follows the pattern of sglang's tuned tables; `tuned_tile` returns their exact entries where
    they exist.
    """
    block_m = int(min(max(1 << int(np.ceil(np.log2(max(tokens_per_expert, 1.0)))), 16), 128))
    block_n = 128 if block_m >= 32 else 64
    return Tile(
        block_m=block_m,
        block_n=block_n,
        block_k=int(128 // element_bytes),
        group_m=16 if block_m < 64 else 8,
        num_warps=8 if block_m * block_n >= 128 * 128 else 4,
        num_stages=4,
    )


@cache
def _tuned() -> dict[tuple[str, str, int, int], dict[int, Tile]]:
    table: dict[tuple[str, str, int, int], dict[int, Tile]] = {}
    path = files("moesim_hw_profiles") / "tiles" / "sglang-0.5.14.csv"
    with path.open(encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            key = (
                row["device"].replace("_", "-"),
                row["moe_dtype"],
                int(row["local_experts"]),
                int(row["local_intermediate_size"]),
            )
            numbers = {name: int(row[name]) for name in TILE_FIELDS}
            table.setdefault(key, {})[int(row["num_tokens"])] = Tile.of(numbers)
    return table


def tuned_tile(
    device: str, moe_dtype: str, local_experts: int, local_width: int, num_tokens: int
) -> Tile | None:
    """Return sglang's tuned tile for the nearest token count, or None where sglang has no table.

    Args:
        device: Profile name, such as ``h100-sxm``.
        moe_dtype: ``bfloat16`` or ``fp8_block``.
        local_experts: Number of experts on the device.
        local_width: Expert width on the device.
        num_tokens: Tokens that enter the kernel.
    """
    table = _tuned().get((device, moe_dtype, local_experts, local_width))
    if table is None:
        return None
    return table[min(table, key=lambda tokens: (abs(tokens - num_tokens), tokens))]


def sglang_tile(
    device: str, moe_dtype: str, local_experts: int, local_width: int, num_tokens: int
) -> Tile:
    """Return the tile that sglang 0.5.14 runs: from its tuned table, otherwise its default.

    The defaults (bf16: 64x64x32, or 16x32x64 when no more tokens than experts; block fp8:
    64x128x128) are those of sglang 0.5.14's fused_moe_triton_config, Apache-2.0.
    """
    tuned = tuned_tile(device, moe_dtype, local_experts, local_width, num_tokens)
    if tuned is not None:
        return tuned
    if moe_dtype == "fp8_block":
        return Tile(block_m=64, block_n=128, block_k=128, group_m=32, num_warps=4, num_stages=3)
    if num_tokens <= local_experts:
        return Tile(block_m=16, block_n=32, block_k=64, group_m=1, num_warps=4, num_stages=3)
    return Tile(block_m=64, block_n=64, block_k=32, group_m=8, num_warps=4, num_stages=3)


def vllm_tile(moe_dtype: str, num_experts: int, num_tokens: int) -> Tile:
    """Return vLLM 0.24's default tile (get_default_config of its fused_moe, Apache-2.0).

    Args:
        moe_dtype: ``bfloat16`` or ``fp8_block``.
        num_experts: Number of experts of the layer.
        num_tokens: Tokens that enter the kernel.
    """
    if moe_dtype == "fp8_block":
        return Tile(
            block_m=16 if num_tokens <= 64 else 64,
            block_n=128,
            block_k=128,
            group_m=1 if num_tokens <= 16 else 32,
            num_warps=4,
            num_stages=3,
        )
    block_m = (
        16 if num_tokens <= 32 else 32 if num_tokens <= 96 else 64 if num_tokens <= 512 else 128
    )
    return Tile(
        block_m=block_m,
        block_n=64 if num_tokens <= 64 else 128,
        block_k=128 if num_tokens <= 64 else 64,
        group_m=16 if num_tokens // num_experts > 128 else 1,
        num_warps=4 if num_tokens <= 128 else 8,
        num_stages=4 if num_tokens <= 32 else 3,
    )
