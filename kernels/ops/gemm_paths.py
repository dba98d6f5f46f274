"""Choose how a grouped GEMM reads its operands: through pointers, or through tensor descriptors
where a GPU has them and the matrices allow it.

Shared by the grouped GEMMs, whose two paths compute the same results.
"""

from typing import Literal

from moesim_kernels.ops.operands import Operand, values
from moesim_kernels.ops.runtime import target

Path = Literal["pointers", "descriptors"]
#: alignment in bytes that the accelerator requires of the first element of every row
_ALIGNED = 16
#: number of rows of a tile from which descriptors pay for 16-bit operands; below, pointers were up
#: to 3 % faster on an H100
DESCRIBED_ROWS = 128


def gemm_path(target: str, *, element_bytes: int, depth: int, address: int = 0) -> Path:
    """Return the path that a grouped GEMM takes on a GPU.

    Args:
        target: Architecture, such as "sm_90" or "gfx942"; "" where kernels are interpreted.
        element_bytes: Bytes of one operand element.
        depth: Number of elements in a row.
        address: Alignment of the matrices' first bytes, given as any common multiple of their
            addresses.

    Returns:
        "descriptors" on compute capability 9.0 and later for operands of 8 or 16 bits whose rows
        are aligned to 16 bytes; otherwise "pointers": float32 products run on the vector units,
        which do not wait for the copies.
    """
    has_accelerator = target.startswith("sm_") and int(target.removeprefix("sm_")) >= 90
    aligned = depth * element_bytes % _ALIGNED == 0 and address % _ALIGNED == 0
    return "descriptors" if has_accelerator and aligned and element_bytes <= 2 else "pointers"


def gathers_by_descriptor(target: str) -> bool:
    """Return whether the accelerator can gather rows: only data-center Blackwell can (PTX ISA,
    tile::gather4).
    """
    return target in ("sm_100", "sm_103")


def gathers_rows() -> bool:
    """Whether the active GPU's accelerator gathers rows, which the persistent up projection then
    makes use of.
    """
    return gathers_by_descriptor(target())


def chosen_path(
    path: Path | None,
    rows: Operand,
    weights: Operand,
    block_m: int = DESCRIBED_ROWS,
    descriptors: bool | None = None,
) -> Path:
    """Return the path that was asked for, or the default path on this GPU.

    Args:
        path: The path that was asked for; None: what the tile wants, where the operands allow it.
        rows: Rows of the product.
        weights: Weights of the product.
        block_m: Number of rows of the tile.
        descriptors: Whether the tile was chosen for descriptors; None leaves it to its rows.

    Raises:
        ValueError: The path is unknown, or descriptors cannot describe the matrices.
    """
    a, w = values(rows), values(weights)
    # The bitwise or of both addresses is aligned only if both are.
    about: dict[str, int] = {
        "element_bytes": a.element_size(),
        "depth": a.shape[1],
        "address": a.data_ptr() | w.data_ptr(),
    }
    if path is None:
        if descriptors is None:
            descriptors = block_m >= DESCRIBED_ROWS or a.element_size() != 2
        if not descriptors:
            return "pointers"
        return gemm_path(target(), **about)
    if path not in ("pointers", "descriptors"):
        raise ValueError(f"path: expected 'pointers' or 'descriptors', got {path!r}")
    if path == "descriptors" and gemm_path("sm_90", **about) != path:
        raise ValueError(
            "path: expected 'pointers' for operands of more than 16 bits or rows that do not "
            f"begin on multiples of {_ALIGNED} bytes, got {a.dtype} of shape {tuple(a.shape)}"
        )
    return path
