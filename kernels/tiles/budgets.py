"""Hold budgets of the compiled kernels, in ``budgets.csv`` in this folder: no torch, no Triton.

Two things are checked. Physical limits hold with every version of Triton: no spills, no more shared
memory than the target gives a program, and a multiprocessor that holds at least one program.
Recorded limits hold with the version that the first line of the file names: every kernel has a row,
and needs no more registers and no more shared memory than the row says. The recorded limits find
regressions of the kernels; another version of Triton allocates differently, which is no regression
of the kernels. Rewrite the file when kernels or tiles change (`moesim_kernels.compile.check`).
"""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from moesim_kernels.tiles.tiles import LIMITS

from moesim.files.output import write_file

FILE = Path(__file__).with_name("budgets.csv")
# A row is found by target, kernel, format, and tile; only the recorded columns are compared.
_KEYS = ("target", "kernel", "dtype", "tile")
_RECORDED = ("registers", "shared_bytes")
_COLUMNS = (*_KEYS, *_RECORDED, "spills")


class Compiled(Protocol):
    """A compiled kernel to compare with a budget; see
    `moesim_kernels.compile.check.CompileResult`.
    """

    @property
    def target(self) -> str:
        """The GPU architecture."""

    @property
    def registers(self) -> int:
        """The number of registers per thread."""

    @property
    def shared_bytes(self) -> int:
        """The shared memory of a program."""

    @property
    def spills(self) -> int:
        """The number of local memory accesses (NVIDIA) or spilled registers (AMD)."""

    @property
    def ctas_per_sm(self) -> int:
        """The number of programs a multiprocessor holds at once."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """Limits that a compiled kernel is held to.

    Attributes:
        rows: Recorded numbers by (target, kernel, dtype, tile).
        triton_version: Triton version the numbers were recorded with.
        recorded: Whether a kernel is held to the recorded numbers; if it was compiled with another
            Triton, it is held to the physical limits alone.
    """

    rows: Mapping[tuple[str, ...], Mapping[str, int]]
    triton_version: str
    recorded: bool

    @property
    def held_to(self) -> str:
        """The limits a kernel is held to, "budget" or "physical", in the words of the compile
        check.
        """
        return "budget" if self.recorded else "physical"

    @classmethod
    def load(cls, triton_version: str, path: Path = FILE) -> "Budgets":
        """Read the file for a kernel compiled with this Triton.

        Raises:
            OSError: The file cannot be read.
        """
        with path.open(encoding="utf-8", newline="") as file:
            # The first line is a comment that names the version; the table follows.
            written_with = file.readline().removeprefix("# triton").strip()
            rows = {
                tuple(row[key] for key in _KEYS): {
                    name: int(row[name]) for name in _COLUMNS[len(_KEYS) :]
                }
                for row in csv.DictReader(file)
            }
        return cls(rows, written_with, triton_version == written_with)

    def broken_by(self, row: Compiled) -> str:
        """Return what this kernel exceeds, in one line; "" if nothing."""
        if row.shared_bytes > (most := LIMITS[row.target].shared_bytes):
            return f"{row.shared_bytes} bytes of shared memory, the target has {most}"
        if row.spills:
            return f"{row.spills} spills"
        if row.ctas_per_sm < 1:
            return (
                f"{row.registers} registers, {row.shared_bytes} bytes: too much for a "
                "multiprocessor"
            )
        # Everything above is physical; everything below depends on the compiler's version.
        if not self.recorded:
            return ""
        budget = self.rows.get(tuple(getattr(row, key) for key in _KEYS))
        if budget is None:
            return f"no budget in {FILE.name}"
        return "; ".join(
            f"{name} {getattr(row, name)}, budget {budget[name]}"
            for name in _RECORDED
            if getattr(row, name) > budget[name]
        )


def write_budgets(
    rows: Iterable[Mapping[str, Any]], triton_version: str, only: str = "", path: Path = FILE
) -> Path:
    """Record these compiled kernels' numbers as the budgets; rows of kernels whose name lacks
    ``only`` stay.

    Raises:
        OSError: The file cannot be read.
        ConfigError: The file cannot be written.
    """
    kept = Budgets.load(triton_version, path).rows if only else {}
    rows = [
        dict(zip(_KEYS, key, strict=True)) | dict(row)
        for key, row in kept.items()
        if only not in key[1]
    ] + [dict(row) for row in rows]
    # A stable sort by target keeps the order of the cases within a target.
    rows.sort(key=lambda row: list(LIMITS).index(row["target"]))
    text = io.StringIO(newline="")
    text.write(f"# triton {triton_version}\n")
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_file(path, text.getvalue())
