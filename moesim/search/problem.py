"""What a search asks of the thing it searches: choices, and a row for each point.

MoE layers (`moesim.search.evaluate`) and whole models (`moesim.search.serving_problem`) are two
such things. Samplers, storages, workers, fronts and files know no more of them than this.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from moesim.hardware import Cluster
from moesim.hardware.economics import Economics
from moesim.search.objectives import Constraint, Direction

#: name of the constraint that every study has
MEMORY = "memory_over_gib"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The result of one trial.

    Attributes:
        row: Flat row for trials.csv; without a candidate, only where the row came from.
        violations: Constraint -> amount by which it is violated, <= 0 where it holds: GiB over the
            device's memory, and for the others a share of the bound.
        reason: Why the point is no candidate, or why its evaluation failed; empty where there is a
            result.
        bound_us: The bound engine's layer time, with which a screening is compared; None without
            one.
        failed: Whether the evaluation itself broke (a defect or a lost worker), which is not a
            finding.
    """

    row: dict[str, Any]
    violations: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    failed: bool = False
    bound_us: float | None = None

    def values(self, objectives: list[str]) -> list[float]:
        """Return the values of the objectives, in order."""
        return [float(self.row[name]) for name in objectives]


class SearchSpace(Protocol):
    """The choices of a search.

    Attributes:
        slow_first: Parameters by how slowly they change where all points are listed, so that
            neighbors share work; others change more slowly still.
        ruling: Parameters whose choices decide which others apply.
    """

    slow_first: ClassVar[tuple[str, ...]]
    ruling: ClassVar[tuple[str, ...]]

    @property
    def size(self) -> int:
        """The number of points; those that differ only in what does not apply count separately."""
        ...

    def choices(self) -> dict[str, list]:
        """Return name -> choices of every parameter that may vary, in a fixed order."""
        ...

    def applicable(self, params: dict[str, Any]) -> dict[str, Any]:
        """Drop parameters that do not apply given the point's other choices."""
        ...

    def check_point(self, params: dict[str, Any]) -> None:
        """Refuse a point, or a part of one, that is not in the space."""
        ...

    def notes(self) -> tuple[str, ...]:
        """Return what was assumed when a model was read, in words."""
        ...


class SearchProblem(Protocol):
    """Everything that the evaluation of a point depends on.

    Attributes:
        known_objectives: Objectives that its rows have, with their directions.
        bounded: Columns that a constraint may bound beside them.
        shown: Columns of winners that are printed: key -> heading.
        confirmed: The column in which the search's engine is compared with a finer one, the column
            of their ratio, and the finer one's name.
    """

    known_objectives: ClassVar[Mapping[str, Direction]]
    bounded: ClassVar[tuple[str, ...]]
    shown: ClassVar[Mapping[str, str]]
    confirmed: ClassVar[tuple[str, str, str]]

    @property
    def space(self) -> SearchSpace:
        """The choices of the search."""
        ...

    @property
    def cluster(self) -> Cluster:
        """The hardware."""
        ...

    @property
    def objectives(self) -> list[str]:
        """The names of the objectives, in order."""
        ...

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """The constraints in addition to memory."""
        ...

    @property
    def economics(self) -> Economics:
        """The cost and power model."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of trials.csv."""
        ...

    @property
    def intervals(self) -> tuple[tuple[str, str], ...]:
        """The columns (low, high) of intervals; trials of which all overlap are ties."""
        ...

    def cannot_depend(self, objective: str) -> frozenset[str]:
        """Return the parameters that an objective cannot depend on."""
        ...

    def assumptions(self) -> tuple[str, ...]:
        """Return what the search takes as given, a phrase each."""
        ...

    def check(self, screen: int) -> None:
        """Refuse a problem without any candidate, or without a figure that it needs."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return what trials depend on beside cluster, objectives and constraints, as tables."""
        ...

    def evaluate(self, params: dict[str, Any]) -> Evaluation:
        """Return the result at a point."""
        ...

    def doubt(self, params: dict[str, Any]) -> str:
        """Return why an engine may not run the design at a point, which no figure of it shows; ""
        where nothing of the kind is known.
        """
        ...

    def blank_row(self, cluster: Cluster) -> dict[str, Any]:
        """Return the row of a point without a result."""
        ...

    def confirm(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the row of a point by the finer engine."""
        ...


__all__ = ["MEMORY", "Evaluation", "SearchProblem", "SearchSpace"]
