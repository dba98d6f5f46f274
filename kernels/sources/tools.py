"""What `moesim kernels` runs, found through the entry points ``moesim.kernel_tools``.

Importing this module loads neither torch nor triton; what cannot run here says why in one line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moesim_kernels.profile.profilers import GpuProfiler

from moesim.model import MoELayer


def _missing() -> str | None:
    missing = [name for name in ("torch", "triton") if find_spec(name) is None]
    return f"{' and '.join(missing)} not installed" if missing else None


class KernelCompiler:
    """Compiles every kernel for GPUs that need not be here."""

    name = "compile"

    def unavailable_because(self) -> str | None:
        """It needs torch and Triton, but no GPU."""
        return _missing()

    def targets(self) -> tuple[str, ...]:
        """Architectures it knows."""
        from moesim_kernels.tiles.tiles import LIMITS

        return tuple(LIMITS)

    def rows(self, targets: Sequence[str], only: str) -> Iterator[dict[str, Any]]:
        """Compile; see `moesim_kernels.compile.check.compile_all`.

        Raises:
            ValueError: An unknown target, or no kernel whose name contains ``only``.
            RuntimeError: The compiler's process failed before the first kernel.
        """
        from moesim_kernels.compile.check import compile_all

        return (asdict(row) for row in compile_all(targets, only))


class KernelTuner:
    """Searches tiles by timing them on this machine's GPU."""

    name = "tune"

    def unavailable_because(self) -> str | None:
        """It needs torch, Triton and a GPU."""
        return GpuProfiler().unavailable_because()

    def rows(
        self, layer: MoELayer, tokens: Sequence[int], *, dtype: str, skew: float, seed: int
    ) -> Iterator[dict[str, Any]]:
        """Tune; see `moesim_kernels.timing.tune.tune`.

        Raises:
            RuntimeError: No GPU with an active Triton driver.
            ConfigError: A layer or a format the kernels do not compute.
        """
        from moesim_kernels.ops.weights import torch_dtype
        from moesim_kernels.timing.tune import tune

        return tune(layer, list(tokens), dtype=torch_dtype(dtype), skew=skew, seed=seed)

    def table(self) -> Path:
        """Where this GPU's table lives by default, and where layers find it.

        Raises:
            RuntimeError: No GPU with an active Triton driver.
        """
        from moesim_kernels.ops.runtime import device_name
        from moesim_kernels.tiles.choice import table_file

        if not (name := device_name()):
            raise RuntimeError("tuning kernels needs a GPU with an active Triton driver")
        return table_file(name)

    def merged(self, table: Path, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of a table with these in place of those for the same layer; see
        `moesim_kernels.tiles.choice`.

        Raises:
            ConfigError: A file that is no tuned table.
        """
        from moesim_kernels.tiles.choice import merged_rows

        return merged_rows(table, rows)
