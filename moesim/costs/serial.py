"""Kernel prices on a device that runs one group after another: a CPU, priced from primitives measured on it.

Nothing here is fitted to a layer. The profile's ``serial`` tables hold seconds per unit, fitted by non-negative least
squares on log error to stand-alone primitives (`moesim_kernels.cpu_profile`); a coefficient that is absent is 0.

Shape legend: D devices or rows, L local experts.
"""

from dataclasses import dataclass

import numpy as np

from moesim.costs.load import Load, Size
from moesim.costs.phase import PhaseCost
from moesim.costs.tiles import Tile
from moesim.errors import ConfigError
from moesim.hardware import Profile

Array = np.ndarray
#: rows the bf16 and f32 micro-kernels of CPU libraries work on at a time
ROW_BLOCK = 16


def gemm_features(m: Array, n: Size, k: Size, weight_bytes: float, cache_bytes: float, working_set: Array) -> dict[str, Array]:
    """Terms of one GEMM group's time, (m x k) times (k x n); all arrays of one shape.

    A constant; multiply-adds with the rows padded to the micro-kernel; packing the weights, once more if they come
    from memory rather than the cache; reading inputs and writing outputs.

    Args:
        m: Rows of each group, > 0.
        n: Columns.
        k: Depth.
        weight_bytes: Bytes of one weight.
        cache_bytes: Size of the last-level cache.
        working_set: Bytes the whole call touches.
    """
    missing = np.clip(np.log2(np.maximum(working_set, 1.0) / (0.5 * cache_bytes)) / 2.0, 0.0, 1.0)
    ones = np.ones_like(m, dtype=np.float64)
    return {
        "group_s": ones,
        "mkn_s": np.ceil(m / ROW_BLOCK) * ROW_BLOCK * n * k * ones,
        "kn_s": n * k * ones,
        "kn_missing_byte_s": n * k * weight_bytes * missing * ones,
        "mk_s": m * k * ones,
        "mn_s": m * n * ones,
    }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SerialKernels:
    """Primitives of one CPU: grouped GEMM, top-k, stream, gather, align, launch."""

    profile: Profile

    def _table(self, name: str) -> dict[str, float]:
        try:
            return self.profile.serial[name]
        except KeyError:
            raise ConfigError(f"{self.profile.name}: serial.{name}: expected measured coefficients, got nothing") from None

    def _sum(self, name: str, features: dict[str, Array]) -> PhaseCost:
        table = self._table(name)
        seconds = np.asarray(sum(table.get(key, 0.0) * np.asarray(value, dtype=np.float64)
                                 for key, value in features.items()))
        zero = np.zeros_like(seconds)
        return PhaseCost(compute_s_D=seconds, memory_s_D=zero, latency_s_D=zero)

    def launches(self, count: float | Array) -> PhaseCost:
        """Calls of the framework that do nothing else."""
        return self._sum("launch", {"call_s": np.asarray(count)})

    def stream(self, num_bytes_D: Array) -> PhaseCost:
        """Bytes read or written in order by an element-wise kernel."""
        return self._sum("stream", {"byte_s": np.asarray(num_bytes_D)})

    def gather(self, num_bytes_D: Array, access_bytes: float) -> PhaseCost:
        """Rows of ``access_bytes`` read at random places."""
        num_bytes = np.asarray(num_bytes_D)
        return self._sum("gather", {"row_s": num_bytes / access_bytes, "byte_s": num_bytes})

    def align(self, rows_D: Array, num_experts: int) -> PhaseCost:
        """A stable sort of the choices and a histogram."""
        rows = np.asarray(rows_D, dtype=np.float64)
        return self._sum("align", {"call_s": (rows > 0) * 1.0, "element_s": rows})

    def top_k(self, rows_D: Array, columns: int, k: int) -> PhaseCost:
        """Softmax and top-k of float32 rows."""
        rows = np.asarray(rows_D, dtype=np.float64)
        return self._sum("top_k", {"call_s": (rows > 0) * 1.0, "row_s": rows, "element_s": rows * columns})

    def grouped_gemm(self, load: Load, n: Size, k: Size, *, tile: Tile, fmt: str, weight_bytes: float,
                     input_bytes: Size, output_bytes: float = 2.0, warm_bytes_D: Array | None = None) -> PhaseCost:
        """Groups in turn, each by `gemm_features`; tile and warmth mean nothing here: caches follow from sizes."""
        assert load.counts_DL is not None
        counts = load.counts_DL.astype(np.float64)
        busy = counts > 0
        touched = load.active_D * (n * k * weight_bytes) + load.rows_D * (k * input_bytes + n * output_bytes)
        features = gemm_features(counts, n, k, weight_bytes, self.profile.l2_bytes, touched[..., None])
        return self._sum(f"gemm_{fmt}", {name: (value * busy).sum(axis=-1) for name, value in features.items()})
