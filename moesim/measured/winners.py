"""Winners read back from the tables that studies write: what to simulate and check again.

A row of `Result.row` names everything that its time depends on but the parameters of a custom profile; those come
from the cluster it names.
"""

from dataclasses import dataclass
from pathlib import Path

from moesim.candidate import Candidate, Parallelism, Workload
from moesim.errors import ConfigError
from moesim.gate import Gate
from moesim.model import MoELayer
from moesim.precision import Precision
from moesim.schedule import Schedule
from moesim.topology import Cluster, load_cluster
from moesim.widths import parse_widths

_INTEGERS = ("hidden_size", "num_experts", "top_k", "num_shared_experts", "ep", "tp", "num_replicas",
             "num_micro_batches", "num_tokens_per_device", "seed")
_TEXTS = ("cluster", "gate", "precision", "placement", "routing", "expert_intermediate_size")
NEEDED = (*_INTEGERS, *_TEXTS, "gated", "capacity_factor", "dispatch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Winner:
    """A candidate, where it ran, and what it was given."""

    candidate: Candidate
    cluster: Cluster
    workload: Workload


def read_winners(path: Path) -> list[Winner]:
    """Read a CSV file of simulated candidates, such as a study's winners.csv or pareto.csv.

    Raises:
        ConfigError: Unreadable, a column missing, no rows, or a row that is no candidate: column and first bad row.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, keep_default_na=False, dtype=str)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise ConfigError(f"{path}: cannot read these winners: {reason}") from None
    missing = [name for name in NEEDED if name not in table]
    if missing:
        raise ConfigError(f"{path.name}: {missing[0]}: expected this column, got {', '.join(map(str, table.columns))}")
    if table.empty:
        raise ConfigError(f"{path.name}: expected at least one row, got none")
    return [_winner(path.name, number, row) for number, row in enumerate(table.to_dict("records"))]


def _winner(where: str, number: int, row: dict[str, str]) -> Winner:
    def whole(name: str) -> int:
        try:
            return int(float(row[name]))
        except (ValueError, OverflowError):
            raise ConfigError(f"{where}: {name}, row {number}: expected an integer, got {row[name]!r}") from None

    try:
        width = row["expert_intermediate_size"]
        factor = row["capacity_factor"]
        layer = MoELayer(
            hidden_size=whole("hidden_size"), num_experts=whole("num_experts"), top_k=whole("top_k"),
            expert_intermediate_size=parse_widths(width) if "x" in width else whole("expert_intermediate_size"),
            num_shared_experts=whole("num_shared_experts"), gated=row["gated"] == "True",
            capacity_factor=float(factor) if factor else None, gate=Gate.parse(row["gate"]),
            precision=Precision.named(row["precision"]))
        schedule = Schedule(dispatch=row["dispatch"] or None, num_micro_batches=whole("num_micro_batches"))
        candidate = Candidate(layer=layer, parallelism=Parallelism(ep=whole("ep"), tp=whole("tp")),
                              placement=row["placement"], num_replicas=whole("num_replicas"), schedule=schedule)
        workload = Workload(num_tokens_per_device=whole("num_tokens_per_device"), routing=row["routing"],
                            seed=whole("seed"))
        return Winner(candidate=candidate, cluster=load_cluster(row["cluster"]), workload=workload)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(where) else f"{where}: row {number}: {text}") from None
