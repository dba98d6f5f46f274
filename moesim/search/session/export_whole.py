"""Export a winner of a study of whole models or of training runs as commands.

A served model becomes the commands of its engine's servers, of both pools where prompts are
computed by one and answers by another. A training run becomes its plan as TOML, whose keys are the
options of ``moesim train``, and the command that simulates it.
"""

import json
import shlex
from typing import Any

from moesim.errors import ConfigError
from moesim.search.serving_problem import ServingProblem
from moesim.search.session.export import front_trial
from moesim.search.study import Study
from moesim.search.training_problem import TrainingProblem
from moesim.search.training_space import ARCHITECTURE
from moesim.serving.launch_model import (
    Server,
    options_file,
    options_text,
    router_lines,
    server_lines,
)


def servers_of(study: Study, rank: int = 0) -> list[Server]:
    """Return the servers of a winner, those that compute prompts first.

    Raises:
        ConfigError: Something else was searched, or there is no winner of that rank.
    """
    problem = study.problem
    if not isinstance(problem, ServingProblem):
        raise ConfigError("study: expected a search over whole models that are served")
    trial = front_trial(study, rank)
    point, row = problem.space.decode(trial.params), trial.evaluation.row
    decode = Server(
        served=point.served,
        cluster=problem.cluster,
        copies=row["copies"],
        knobs=point.knobs,
        role=None if point.prefill is None else "decode",
    )
    if point.prefill is None:
        return [decode]
    prefill = Server(
        served=point.prefill,
        cluster=problem.cluster,
        copies=row["prefill_copies"],
        knobs=point.knobs,
        role="prefill",
    )
    return [prefill, decode]


def serving_text(study: Study, rank: int = 0, model: str = "$MODEL") -> str:
    """Return a shell script of the commands that serve as a winner was simulated; files of options
    are written by it.

    Args:
        study: The study.
        rank: Row of pareto.csv.
        model: Checkpoint to serve.

    Raises:
        ConfigError: Something else was searched, or there is no winner of that rank.
    """
    servers, row = servers_of(study, rank), front_trial(study, rank).evaluation.row
    lines = [
        "#!/bin/sh",
        f"# {row['model']} on {row['cluster']}, {row['concurrency']} clients of {row['isl']} + "
        f"{row['osl']} tokens",
        f"# simulated: TTFT {row['ttft_ms']:,.0f} ms, TPOT {row['tpot_ms']:,.2f} ms, "
        f"{row['tokens_per_s_per_device']:,.0f} tokens/s per device; moesim {row['version']}",
        "# nothing here was run: measure before you rely on it",
    ]
    for server in servers:
        lines.append("")
        if server.served.engine == "trtllm":
            lines += [f"cat > {options_file(server)} <<'END'", options_text(server), "END"]
        lines += server_lines(server, model)
    if len(servers) > 1:
        lines += ["", *router_lines(servers[-1].served.engine)]
    return "\n".join(lines)


def training_options(study: Study, rank: int = 0) -> dict[str, Any]:
    """Return the options of ``moesim train`` that simulate a winner.

    Raises:
        ConfigError: Something else was searched, there is no winner of that rank, or its
            architecture is no published one.
    """
    problem = study.problem
    if not isinstance(problem, TrainingProblem):
        raise ConfigError("study: expected a search over training runs")
    params = front_trial(study, rank).params
    changed = [name for name in ARCHITECTURE if name in params]
    if changed:
        raise ConfigError(
            f"study: expected a winner of the published architecture, which moesim train reads "
            f"from a file, got other {', '.join(changed)}"
        )
    trained = problem.space.decode(params, problem.cluster.num_devices, problem.workload)
    plan = trained.plan
    found: dict[str, Any] = {
        "model": problem.space.model,
        "cluster": problem.cluster.name,
        "gpus": problem.cluster.num_devices,
        "global_batch": plan.global_batch,
        "sequence": plan.sequence,
        "layout": _degrees(str(trained.layout)),
        "micro_batch": plan.micro_batch,
        "pipeline": plan.pipeline,
        "overlap_exchange": plan.overlap_exchange,
        "zero": plan.zero,
        "optimizer": plan.optimizer,
        "state_format": plan.state_format,
        "recompute": plan.recompute,
        "kept_format": plan.kept_format,
        "formats": problem.space.completed(params)["formats"],
        "capacity_factor": trained.capacity_factor,
        "uneven_stages": trained.uneven_stages,
        "lenient": problem.space.lenient,
        "routing": problem.workload.routing,
        "seed": problem.workload.seed,
        "tokens": problem.workload.train_tokens,
    }
    # zero is a stage of ZeRO and a seed; what is off or not given has no option
    unset = (None, False)
    return {n: value for n, value in found.items() if not any(value is one for one in unset)}


def training_text(options: dict[str, Any]) -> str:
    """Return options of ``moesim train`` as TOML."""
    # strings, numbers and booleans are written alike in JSON
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in options.items())


def _degrees(layout: str) -> str:
    """Return a layout without its data parallelism, which is the rest."""
    return " ".join(word for word in layout.split() if not word.startswith("dp"))


def training_command(options: dict[str, Any]) -> str:
    """Return the command line of ``moesim train`` with some options."""
    words = ["moesim train"]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        words.append(flag if value is True else f"{flag} {shlex.quote(str(value))}")
    return " ".join(words)


__all__ = ["servers_of", "serving_text", "training_command", "training_options", "training_text"]
