"""Offer the profilers that `moesim measure` finds through the entry points ``moesim.profilers``.

Importing this module loads neither torch nor triton; a profiler that cannot run here gives the
reason in one line.
"""

import sys
from pathlib import Path

from moesim.measured.environment import lacking


class CpuProfiler:
    """Measures one thread of this machine's CPU, and all-to-alls between two processes on it."""

    name = "cpu"

    def unavailable_because(self) -> str | None:
        """Return why it cannot run: it needs torch, and a system that reports a thread's time."""
        if missing := lacking("torch"):
            return missing
        return "it needs Linux or macOS" if sys.platform == "win32" else None

    def write(self, path: Path, seconds: float, command: str) -> None:
        """Measure for about ``seconds`` and write the profile, which names ``command``.

        Raises:
            OSError: The file cannot be written.
        """
        # Imported on use, since this loads torch.
        from moesim_kernels.profile.cpu_profile import write_profile

        write_profile(path, seconds, fabric=True, command=command)


class GpuProfiler:
    """Measures the first CUDA or ROCm GPU of this machine, and all-to-alls between all of them."""

    name = "gpu"

    def unavailable_because(self) -> str | None:
        """Return why it cannot run: it needs torch, Triton, and an active GPU driver to launch
        on.
        """
        if missing := lacking("torch", "triton"):
            return missing
        # Imported after the check above, since this loads torch and triton.
        from moesim_kernels.ops.runtime import triton_mode

        mode = triton_mode()
        if mode == "interpreter":
            return "TRITON_INTERPRET is set, so that kernels would run on the CPU"
        return None if mode == "gpu" else "no CUDA or ROCm GPU with an active Triton driver"

    def write(self, path: Path, seconds: float, command: str) -> None:
        """Measure for about ``seconds`` and write the profile, which names ``command``.

        Raises:
            MeasurementError: The driver does not report the memory or the units of this GPU.
            OSError: The file cannot be written.
        """
        from moesim_kernels.profile.gpu_profile import write_profile

        write_profile(path, seconds, command=command)
