"""Make the problem of a search from its space: of MoE layers, or of whole models."""

from collections.abc import Iterable
from typing import Any

from moesim.design.candidate import Workload
from moesim.errors import ConfigError
from moesim.hardware import Cluster
from moesim.hardware.economics import load_economics
from moesim.search.evaluate import Problem
from moesim.search.objectives import Constraint, check_objectives
from moesim.search.problem import SearchProblem
from moesim.search.serving_problem import ServingProblem
from moesim.search.serving_space import ServingSpace
from moesim.search.serving_workload import ServingWorkload
from moesim.search.space import Space


def problem_of(
    space: Space | ServingSpace,
    cluster: Cluster,
    workload: Workload | ServingWorkload,
    *,
    objectives: Iterable[str],
    constraints: Iterable[str],
    economics: str,
    engine: str,
) -> SearchProblem:
    """Return what is searched.

    Args:
        space: The choices of the search.
        cluster: The hardware.
        workload: Tokens of layers, or requests to whole models.
        objectives: Names of the objectives.
        constraints: Constraints, as text.
        economics: Name of the cost and power model.
        engine: Engine that simulates layers.

    Raises:
        ConfigError: The space does not go with the workload, or a name is unknown.
    """
    kind = Problem if isinstance(space, Space) else ServingProblem
    names = list(objectives)
    check_objectives(names, kind.known_objectives)
    known = (*kind.known_objectives, *kind.bounded)
    limits = tuple(Constraint.parse(text, known) for text in constraints)
    money = load_economics(economics)
    if isinstance(space, Space) and isinstance(workload, Workload):
        return Problem(
            space=space,
            cluster=cluster,
            workload=workload,
            objectives=names,
            constraints=limits,
            economics=money,
            engine=engine,
            law=space.law(),
        )
    if isinstance(space, ServingSpace) and isinstance(workload, ServingWorkload):
        return ServingProblem(
            space=space.on(cluster),
            cluster=cluster,
            workload=workload,
            objectives=names,
            constraints=limits,
            economics=money,
        )
    wanted = "Workload" if isinstance(space, Space) else "ServingWorkload"
    raise ConfigError(
        f"study: expected a {wanted} with a {type(space).__name__}, got a {type(workload).__name__}"
    )


def stored_search(
    settings: dict[str, Any],
) -> tuple[Space | ServingSpace, Workload | ServingWorkload]:
    """Return the space and the workload that a storage holds."""
    if "model" in settings["space"]:
        return ServingSpace(**settings["space"]), ServingWorkload(**settings["workload"])
    return Space(**settings["space"]), Workload.from_dict(settings["workload"])


__all__ = ["problem_of", "stored_search"]
