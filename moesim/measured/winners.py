"""Read winners back from the tables that studies write, to simulate and check them again.

A row of `Result.row` holds every field of its design and workload, and the design's key, which the
fields must match. It does not hold the hardware, only the name of the cluster.
"""

from dataclasses import dataclass
from pathlib import Path

from moesim.design.candidate import DESIGN_COLUMNS, WORKLOAD_COLUMNS, Candidate, Workload
from moesim.errors import ConfigError, shown
from moesim.files.texts import read_csv
from moesim.hardware import Cluster, load_cluster
from moesim.report.tables import unescaped

NEEDED = (*DESIGN_COLUMNS, *WORKLOAD_COLUMNS, "cluster", "design")
#: columns that an error lists
_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A design, the cluster it ran on, and the workload it was given, which a check simulates again
    and measures.
    """

    candidate: Candidate
    cluster: Cluster
    workload: Workload

    @property
    def key(self) -> str:
        """The identity of the case: hashes of its design, workload and hardware."""
        return f"{self.candidate.key} {self.workload.key} {self.cluster.digest}"


def read_winners(path: Path) -> list[Case]:
    """Read a CSV file of simulated candidates, such as a study's winners.csv or pareto.csv.

    Raises:
        ConfigError: The file is unreadable, a column is missing, there are no rows, or a row is not
            a valid candidate; the message names the column or the first bad row.
    """
    table = read_csv(path)
    missing = [name for name in NEEDED if name not in table.header]
    if missing:
        there = [shown(name)[1:-1] for name in table.header[:_SHOWN]]
        if len(table.header) > _SHOWN:
            there[-1] += f" and {len(table.header) - _SHOWN} more"
        raise ConfigError(
            f"{path.name}: {missing[0]}: expected this column, got {', '.join(there)}"
            " (a table of an earlier version lacks fields of its designs: run its study again)"
        )
    if not table.rows:
        raise ConfigError(f"{path.name}: expected at least one row, got none")
    rows = [{name: unescaped(text or "") for name, text in row.items()} for _, row in table.rows]
    return [_case(path.name, number, row) for number, row in enumerate(rows)]


def _case(where: str, number: int, row: dict[str, str]) -> Case:
    try:
        row = _as_designed(row)
        candidate, workload = Candidate.from_dict(row), Workload.from_dict(row)
        if row["design"] not in ("", candidate.key):
            raise ConfigError(
                f"design: expected {candidate.key}, the key of this row's values (or nothing, for "
                f"a row written by hand), got {shown(row['design'])}"
            )
        return Case(candidate=candidate, cluster=load_cluster(row["cluster"]), workload=workload)
    except ConfigError as error:
        raise ConfigError(f"{where}: row {number}: {error}") from None


def _as_designed(row: dict[str, str]) -> dict[str, str]:
    """Translate the requested point, which a row of trials.csv or pareto.csv holds, to the fields
    of a design.
    """
    found = dict(row)
    if row["exchange"] == "cluster":
        found["exchange"] = ""
    if row["capacity_factor"] in ("0", "0.0"):
        found["capacity_factor"] = ""
    kind, *options = row["gate"].split("+")
    if row.get("num_expert_groups") and ":" not in kind:
        found["gate"] = "+".join(
            [f"{kind}:{row['num_expert_groups']}:{row['num_limited_groups']}", *options]
        )
    return found
