"""Offer the tools that `moesim kernels` runs, found through the entry points
``moesim.kernel_tools``.

Importing this module loads neither torch nor triton; a tool that cannot run here gives the reason
in one line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moesim_kernels.profile.profilers import GpuProfiler

from moesim.measured.environment import lacking
from moesim.model import MoELayer


class KernelCompiler:
    """Compile every kernel for GPUs that need not be in this machine."""

    name = "compile"

    def unavailable_because(self) -> str | None:
        """Return why it cannot run: it needs torch and Triton, but no GPU."""
        return lacking("torch", "triton")

    def targets(self) -> tuple[str, ...]:
        """Return the architectures it knows."""
        # Imported on use, here and below: listing the tools must stay cheap.
        from moesim_kernels.tiles.tiles import LIMITS

        return tuple(LIMITS)

    def rows(self, targets: Sequence[str], only: str) -> Iterator[dict[str, Any]]:
        """Compile kernels, as `moesim_kernels.compile.check.compile_all` describes.

        Raises:
            ValueError: A target is unknown, or no kernel's name contains ``only``.
            RuntimeError: The compiler's process failed before the first kernel.
        """
        from moesim_kernels.compile.check import compile_all

        return (asdict(row) for row in compile_all(targets, only))


class KernelTuner:
    """Search tiles by timing them on this machine's GPU."""

    name = "tune"

    def unavailable_because(self) -> str | None:
        """Return why it cannot run: it needs torch, Triton, and a GPU."""
        return GpuProfiler().unavailable_because()

    def rows(
        self,
        layer: MoELayer,
        tokens: Sequence[int],
        *,
        seconds: float,
        dtype: str,
        skew: float,
        seed: int,
    ) -> Iterator[list[dict[str, Any]]]:
        """Tune a layer, as `moesim_kernels.timing.tune.tune` describes.

        Raises:
            RuntimeError: There is no GPU with an active Triton driver.
            ConfigError: The kernels do not compute this layer or format.
        """
        from moesim_kernels.ops.weights import torch_dtype
        from moesim_kernels.timing.tune import tune

        about: dict[str, Any] = {"dtype": torch_dtype(dtype), "skew": skew, "seed": seed}
        return tune(layer, list(tokens), seconds=seconds, **about)

    def table(self) -> Path:
        """Return the path where this GPU's table lives by default, and where layers find it.

        Raises:
            RuntimeError: There is no GPU with an active Triton driver.
        """
        from moesim_kernels.ops.runtime import device_name
        from moesim_kernels.tiles.choice import table_file

        if not (name := device_name()):
            raise RuntimeError("tuning kernels needs a GPU with an active Triton driver")
        return table_file(name)

    def merged(self, table: Path, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows of a table, replaced by these for the same layer; see
        `moesim_kernels.tiles.choice`.

        Raises:
            ConfigError: The file is not a tuned table.
        """
        from moesim_kernels.tiles.choice import merged_rows

        return merged_rows(table, rows)


class KernelSweeper:
    """Time many tiles of the grouped GEMMs on this machine's GPU."""

    name = "sweep"

    def unavailable_because(self) -> str | None:
        """Return why it cannot run: it needs torch, Triton, and a GPU."""
        return GpuProfiler().unavailable_because()

    def rows(
        self, layer: MoELayer, tokens: Sequence[int], *, seconds: float, skew: float, seed: int
    ) -> Iterator[dict[str, Any]]:
        """Time tiles of a layer, as `moesim_kernels.timing.sweep.sweep` describes.

        Raises:
            RuntimeError: There is no GPU with an active Triton driver.
            ConfigError: The kernels do not compute this layer.
        """
        from moesim_kernels.timing.sweep import sweep

        return sweep(layer, list(tokens), seconds=seconds, skew=skew, seed=seed)
