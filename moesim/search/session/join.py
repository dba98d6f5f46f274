"""Load a study from its storage, to join it from another machine or to inspect it."""

import ast
from typing import Any

from moesim.errors import ConfigError, UnknownNameError
from moesim.files.addresses import without_password
from moesim.hardware import Cluster, load_cluster
from moesim.search.problems import problem_of, stored_search
from moesim.search.session.known import known_points
from moesim.search.session.watch import Front, counts_of
from moesim.search.settings import digest_of
from moesim.search.storage import Stored, is_url, read_study
from moesim.search.study import Study
from moesim.search.trial import from_record

#: what stands between the name of a cluster and the changes made to it in code
_CHANGED = " with "


def joined_options(where: str) -> tuple[tuple, dict[str, Any]]:
    """Return the arguments with which `moesim.search.run_study` joins a study.

    Args:
        where: URL of its storage.

    Returns:
        Positional arguments, and the options except those of a single process.

    Raises:
        ConfigError: The text is no URL, there is no study, or the hardware files here are
            different.
        UnreachableError: The storage does not answer.
    """
    if not is_url(where):
        raise ConfigError(
            f"storage: expected the URL of a shared storage, got "
            f"{without_password(where)!r}; a folder has one writer"
        )
    settings = read_study(where, trials=False).settings
    cluster = load_cluster(settings["cluster"]["name"])
    if cluster.digest != settings["cluster"]["digest"]:
        raise ConfigError(
            f"cluster {cluster.name}: expected the files that the study began with (hash "
            f"{settings['cluster']['digest']}), got others here ({cluster.digest})"
        )
    space, workload = stored_search(settings)
    known = known_points(space, cluster) if settings["enqueued"] else []
    if settings["enqueued"] != digest_of(known):
        raise ConfigError(
            "storage: expected a study that a study file began, got one with points of a "
            "script's own; run that script here instead"
        )
    options = {
        key: settings[key]
        for key in ("objectives", "constraints", "engine", "screen", "seed", "sampler")
    }
    return (
        (space, cluster, workload),
        options | {"enqueue": known, "economics": settings["economics"]["name"]},
    )


def stored_cluster(name: str) -> Cluster:
    """Return the cluster that a study names, with the changes of `Cluster.with_` in its name.

    Raises:
        UnknownNameError: There is no such cluster.
        ConfigError: A change cannot be read or made.
    """
    try:
        return load_cluster(name)
    except UnknownNameError:
        if _CHANGED not in name:
            raise
    base, *changes = name.split(_CHANGED)
    cluster = load_cluster(base)
    for text in changes:
        try:
            call = ast.parse(f"with_({text})", mode="eval").body
            assert isinstance(call, ast.Call)
            values = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
        except (SyntaxError, ValueError):  # a text, which the name holds without quotes
            raise ConfigError(
                f"cluster: expected numbers among the changes of {base}, got {text!r}: run the "
                "script that began the study instead"
            ) from None
        cluster = cluster.with_(**values)
    return cluster


def load_study(where: str) -> Study:
    """Load a study from its folder or storage, finished or not.

    Raises:
        ConfigError: There is no study.
        UnreachableError: The storage does not answer.
    """
    return study_of(read_study(where), alone=not is_url(where))


def study_of(stored: Stored, *, alone: bool) -> Study:
    """Return the study that a storage holds.

    Args:
        stored: What was read of it, with its trials.
        alone: Whether it has one writer, as in a folder.

    Raises:
        ConfigError: The cluster or the space cannot be made any more.
    """
    settings = stored.settings
    space, workload = stored_search(settings)
    problem = problem_of(
        space,
        stored_cluster(settings["cluster"]["name"]),
        workload,
        objectives=settings["objectives"],
        constraints=settings["constraints"],
        economics=settings["economics"]["name"],
        engine=settings["engine"],
    )
    trials = [from_record(t, alone=alone) for t in stored.trials]
    return Study(problem=problem, trials=sorted(trials, key=lambda t: t.number))


def status_rows(study: Study) -> list[dict[str, Any]]:
    """Return rows about what a study has found so far."""
    trials = study.trials
    rows: list[dict[str, Any]] = [{"what": "trials", "value": len(trials)}]
    rows += [
        {"what": f"  {state}", "value": count}
        for state, count in counts_of(trials).items()
        if count
    ]
    ended = [t.ended for t in trials]
    if len(trials) > 1 and max(ended) > min(ended):
        rows.append(
            {"what": "trials per second", "value": (len(trials) - 1) / (max(ended) - min(ended))}
        )
    front = Front(study.objectives)
    front.add(trials)
    pareto = study.pareto_trials()
    rows += [
        {"what": "Pareto front", "value": len(pareto)},
        {"what": "groups that intervals tell apart", "value": len(set(study.groups(pareto)))},
        {"what": "hypervolume", "value": front.hypervolume()},
    ]
    for name in study.objectives:
        values = [t.evaluation.row[name] for t in pareto]
        if values:
            rows.append(
                {
                    "what": f"{name} on the front",
                    "value": f"{min(values):,.5g} to {max(values):,.5g}",
                }
            )
    return rows
