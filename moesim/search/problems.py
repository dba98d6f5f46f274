"""Make the problem of a search from its space: of MoE layers, of whole models that are served, or
of training runs.
"""

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
from moesim.search.training_problem import TrainingProblem
from moesim.search.training_space import TrainingSpace
from moesim.search.training_workload import TrainingWorkload

#: what may be searched, and under what
AnySpace = Space | ServingSpace | TrainingSpace
AnyWorkload = Workload | ServingWorkload | TrainingWorkload


def problem_of(
    space: AnySpace,
    cluster: Cluster,
    workload: AnyWorkload,
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
        workload: Tokens of layers, requests to whole models, or a training run.
        objectives: Names of the objectives.
        constraints: Constraints, as text.
        economics: Name of the cost and power model.
        engine: Engine that simulates layers.

    Raises:
        ConfigError: The space does not go with the workload, or a name is unknown.
    """
    kind: type[Problem | ServingProblem | TrainingProblem] = ServingProblem
    if not isinstance(space, ServingSpace):
        kind = Problem if isinstance(space, Space) else TrainingProblem
    names = list(objectives)
    check_objectives(names, kind.known_objectives)
    known = (*kind.known_objectives, *kind.bounded)
    common: dict[str, Any] = {
        "objectives": names,
        "constraints": tuple(Constraint.parse(text, known) for text in constraints),
        "economics": load_economics(economics),
        "cluster": cluster,
    }
    if isinstance(space, Space) and isinstance(workload, Workload):
        return Problem(space=space, workload=workload, engine=engine, law=space.law(), **common)
    if isinstance(space, ServingSpace) and isinstance(workload, ServingWorkload):
        return ServingProblem(space=space.on(cluster), workload=workload, **common)
    if isinstance(space, TrainingSpace) and isinstance(workload, TrainingWorkload):
        return TrainingProblem(
            space=space, workload=workload, engine=engine, law=space.law(), **common
        )
    wanted = type(space).__name__.replace("Space", "Workload")
    raise ConfigError(
        f"study: expected a {wanted} with a {type(space).__name__}, got a {type(workload).__name__}"
    )


def stored_search(settings: dict[str, Any]) -> tuple[AnySpace, AnyWorkload]:
    """Return the space and the workload that a storage holds."""
    if "train_flops" in settings["workload"]:
        return TrainingSpace(**settings["space"]), TrainingWorkload(**settings["workload"])
    if "model" in settings["space"]:
        return ServingSpace(**settings["space"]), ServingWorkload(**settings["workload"])
    return Space(**settings["space"]), Workload.from_dict(settings["workload"])


__all__ = ["AnySpace", "AnyWorkload", "problem_of", "stored_search"]
