"""Budgets of the compiled kernels, in ``budgets.csv`` beside this module: no torch, no Triton.

With the Triton the file was written with, a kernel may need no more registers and no more shared memory than its row
says; another version allocates otherwise and has an eighth more. No kernel spills or exceeds what its target gives a
program, whatever the file says. A kernel without a row is over budget: write the file anew when kernels or tiles change
(`moesim_kernels.compile_check`).
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from moesim_kernels.tiles import LIMITS

FILE = Path(__file__).with_name("budgets.csv")
_KEYS = ("target", "kernel", "dtype", "tile")
_COLUMNS = (*_KEYS, "registers", "shared_bytes", "spills")
_SLACK = 1.125


class Compiled(Protocol):
    """What is compared with a budget; see `moesim_kernels.compile_check.CompileResult`."""

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


@dataclass(frozen=True, slots=True)
class Budgets:
    """Limits by (target, kernel, dtype, tile), and how much more than them is allowed."""

    rows: Mapping[tuple[str, ...], Mapping[str, int]]
    slack: float

    @classmethod
    def load(cls, triton_version: str, path: Path = FILE) -> "Budgets":
        """Read the file for a kernel compiled with this Triton.

        Raises:
            OSError: The file cannot be read.
        """
        with path.open(encoding="utf-8", newline="") as file:
            written_with = file.readline().removeprefix("# triton").strip()
            rows = {tuple(row[key] for key in _KEYS): {name: int(row[name]) for name in _COLUMNS[len(_KEYS):]}
                    for row in csv.DictReader(file)}
        return cls(rows, 1.0 if triton_version == written_with else _SLACK)

    def broken_by(self, row: Compiled) -> str:
        """What this kernel exceeds, in a line; "" if nothing."""
        if row.shared_bytes > (most := LIMITS[row.target].shared_bytes):
            return f"{row.shared_bytes} bytes of shared memory, the target has {most}"
        budget = self.rows.get(tuple(getattr(row, key) for key in _KEYS))
        if budget is None:
            return f"no budget in {FILE.name}"
        over = [f"{name} {getattr(row, name)}, budget {budget[name]}" for name in _COLUMNS[len(_KEYS):]
                if getattr(row, name) > budget[name] * (1.0 if name == "spills" else self.slack)]
        return "; ".join(over)


def write_budgets(rows: Iterable[Mapping[str, Any]], triton_version: str, only: str = "", path: Path = FILE) -> Path:
    """Make these compiled kernels' numbers the budgets; rows of kernels whose name lacks ``only`` stay.

    Raises:
        OSError: The file cannot be read or written.
    """
    kept = Budgets.load(triton_version, path).rows if only else {}
    rows = [dict(zip(_KEYS, key, strict=True)) | dict(row) for key, row in kept.items() if only not in key[1]] + [
        dict(row) for row in rows]
    rows.sort(key=lambda row: list(LIMITS).index(row["target"]))
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# triton {triton_version}\n")
        writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path
