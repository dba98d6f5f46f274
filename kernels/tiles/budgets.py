"""Budgets of the compiled kernels, in ``budgets.csv`` beside this module: no torch, no Triton.

Two things are checked. What is physical holds with every version of Triton: no spills, no more
shared memory than the target gives a program, and a multiprocessor that holds one. What is recorded
holds with the version the file's first line names: a kernel needs no more registers and no more
shared memory than its row says, and has a row. That finds regressions of the kernels; another
version allocates otherwise, which is no regression of theirs. Write the file anew when kernels or
tiles change (`moesim_kernels.compile.check`).
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from moesim_kernels.tiles.tiles import LIMITS

FILE = Path(__file__).with_name("budgets.csv")
_KEYS = ("target", "kernel", "dtype", "tile")
_RECORDED = ("registers", "shared_bytes")
_COLUMNS = (*_KEYS, *_RECORDED, "spills")


class Compiled(Protocol):
    """What is compared with a budget; see `moesim_kernels.compile.check.CompileResult`."""

    @property
    def target(self) -> str:
        """Architecture."""

    @property
    def registers(self) -> int:
        """Per thread."""

    @property
    def shared_bytes(self) -> int:
        """Of a program."""

    @property
    def spills(self) -> int:
        """Accesses or registers."""

    @property
    def ctas_per_sm(self) -> int:
        """Programs a multiprocessor holds at once."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """What a compiled kernel is held to.

    Attributes:
        rows: Recorded numbers by (target, kernel, dtype, tile).
        triton_version: The Triton they were recorded with.
        recorded: Whether a kernel is held to them, or, compiled with another Triton, to what is
            physical alone.
    """

    rows: Mapping[tuple[str, ...], Mapping[str, int]]
    triton_version: str
    recorded: bool

    @property
    def held_to(self) -> str:
        """ "budget" or "physical", as a row of the compile check says."""
        return "budget" if self.recorded else "physical"

    @classmethod
    def load(cls, triton_version: str, path: Path = FILE) -> "Budgets":
        """Read the file for a kernel compiled with this Triton.

        Raises:
            OSError: The file cannot be read.
        """
        with path.open(encoding="utf-8", newline="") as file:
            written_with = file.readline().removeprefix("# triton").strip()
            rows = {
                tuple(row[key] for key in _KEYS): {
                    name: int(row[name]) for name in _COLUMNS[len(_KEYS) :]
                }
                for row in csv.DictReader(file)
            }
        return cls(rows, written_with, triton_version == written_with)

    def broken_by(self, row: Compiled) -> str:
        """What this kernel exceeds, in a line; "" if nothing."""
        if row.shared_bytes > (most := LIMITS[row.target].shared_bytes):
            return f"{row.shared_bytes} bytes of shared memory, the target has {most}"
        if row.spills:
            return f"{row.spills} spills"
        if row.ctas_per_sm < 1:
            return (
                f"{row.registers} registers, {row.shared_bytes} bytes: too much for a "
                "multiprocessor"
            )
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
    """Make these compiled kernels' numbers the budgets; rows of kernels whose name lacks ``only``
    stay.

    Raises:
        OSError: The file cannot be read or written.
    """
    kept = Budgets.load(triton_version, path).rows if only else {}
    rows = [
        dict(zip(_KEYS, key, strict=True)) | dict(row)
        for key, row in kept.items()
        if only not in key[1]
    ] + [dict(row) for row in rows]
    rows.sort(key=lambda row: list(LIMITS).index(row["target"]))
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# triton {triton_version}\n")
        writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path
