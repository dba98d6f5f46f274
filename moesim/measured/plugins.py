"""What `moesim kernels` runs: tools of installed packages, found through the entry point group
``moesim.kernel_tools``.

They need torch and Triton, which `moesim` does not import.
"""

from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from moesim.errors import MeasurementError
from moesim.model import MoELayer

GROUP = "moesim.kernel_tools"


class KernelCompiler(Protocol):
    """Compiles kernels for GPUs that need not be here."""

    def unavailable_because(self) -> str | None:
        """Why it cannot run on this machine, in one line; None if it can."""

    def targets(self) -> tuple[str, ...]:
        """Architectures it knows."""

    def rows(self, targets: Sequence[str], only: str) -> Iterator[dict[str, Any]]:
        """One row per target and kernel whose name contains ``only``; key ``error`` says what is
        wrong with it.
        """


class KernelTuner(Protocol):
    """Searches tiles by timing them on this machine's GPU."""

    def unavailable_because(self) -> str | None:
        """Why it cannot run on this machine, in one line; None if it can."""

    def rows(
        self, layer: MoELayer, tokens: Sequence[int], *, dtype: str, skew: float, seed: int
    ) -> Iterator[dict[str, Any]]:
        """A row for each number of tokens and grouped GEMM of the layer: the tile, and its time
        beside the default's.

        Args:
            layer: Sizes.
            tokens: Numbers of tokens, each tuned for itself.
            dtype: Format of the experts.
            skew: Of the experts' popularity: the e-th most popular is chosen in proportion to (e +
                1)^-skew.
            seed: Of routing, tokens and weights.
        """

    def table(self) -> Path:
        """Where this GPU's table lives by default, and where layers find it."""

    def merged(self, table: Path, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of a table with these in place of those for the same layer."""


def kernel_tool(name: str) -> Any:
    """The installed tool of this name.

    Args:
        name: ``compile`` or ``tune``.

    Raises:
        MeasurementError: No installed package has it, or it cannot run on this machine.
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
