"""Find the tools that `moesim kernels` runs, in installed packages with the entry point group
``moesim.kernel_tools``.

The tools need torch and Triton, which `moesim` does not import.
"""

from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from moesim.errors import MeasurementError
from moesim.model import MoELayer

GROUP = "moesim.kernel_tools"


class KernelCompiler(Protocol):
    """A tool that compiles kernels for GPUs, which this machine need not have."""

    def unavailable_because(self) -> str | None:
        """Say in one line why it cannot run on this machine; None if it can."""

    def targets(self) -> tuple[str, ...]:
        """Return the architectures it knows."""

    def rows(self, targets: Sequence[str], only: str) -> Iterator[dict[str, Any]]:
        """Yield one row per target and kernel whose name contains ``only``; key ``error`` says what
        is wrong with the kernel.
        """


class KernelTuner(Protocol):
    """A tool that searches tiles by timing them on this machine's GPU."""

    def unavailable_because(self) -> str | None:
        """Say in one line why it cannot run on this machine; None if it can."""

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
        """Yield, after every timing, a row for each grouped GEMM of the layer: the best tile so
        far, its time and the default tile's time.

        Args:
            layer: The layer, for its sizes.
            tokens: Numbers of tokens, each of which is tuned separately.
            seconds: When to stop.
            dtype: Format of the experts.
            skew: Skew of the experts' popularity: the e-th most popular is chosen in proportion to
                (e + 1)^-skew.
            seed: Seed of the routing, tokens and weights.
        """

    def table(self) -> Path:
        """Return the default path of this GPU's table, where layers find it."""

    def merged(self, table: Path, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows of a table, with these rows instead of those for the same layer."""


class KernelSweeper(Protocol):
    """A tool that times many tiles on this machine's GPU."""

    def unavailable_because(self) -> str | None:
        """Say in one line why it cannot run on this machine; None if it can."""

    def rows(
        self, layer: MoELayer, tokens: Sequence[int], *, seconds: float, skew: float, seed: int
    ) -> Iterator[dict[str, Any]]:
        """Yield a row for each timed tile, of the columns of `moesim.measured.tiles.rows`; the
        arguments are those of `KernelTuner.rows`.
        """


def kernel_tool(name: str) -> Any:
    """Return the installed tool of a name.

    Args:
        name: ``compile``, ``tune`` or ``sweep``.

    Raises:
        MeasurementError: No installed package has the tool, or it cannot run on this machine.
    """
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        raise MeasurementError(
            f"kernels {name}: no installed package can; the kernels come with moesim itself: "
            "install it again"
        )
    tool = found[name].load()()
    if reason := tool.unavailable_because():
        raise MeasurementError(f"kernels {name}: {reason}")
    return tool
