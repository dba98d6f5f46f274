"""Say how to make a study again: the study file that its settings amount to, and the command."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: fields of a workload that a study file does not have: the command gives the seed
_NOT_WRITTEN = ("seed",)


def study_file(settings: Mapping[str, Any]) -> str:
    """Return the TOML that `moesim study run` reads for a study with these settings."""
    lines = [
        f"cluster = {json.dumps(settings['cluster']['name'])}",
        f"objectives = {_value(settings['objectives'])}",
        f"constraints = {_value(settings['constraints'])}",
        f"economics = {json.dumps(settings['economics']['name'])}",
    ]
    for table in ("workload", "space"):
        given = {
            name: value
            for name, value in settings[table].items()
            if value is not None and name not in _NOT_WRITTEN
        }
        lines += ["", f"[{table}]", *(f"{name} = {_value(one)}" for name, one in given.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(
            f"{json.dumps(k, ensure_ascii=False)} = {_value(v)}" for k, v in value.items()
        )
        return f"{{{inner}}}"
    if isinstance(value, list | tuple):
        # TOML has no null: a choice of none is left to the file's own default
        return f"[{', '.join(_value(one) for one in value if one is not None)}]"
    return json.dumps(value, ensure_ascii=False)


def commands(settings: Mapping[str, Any], folder: Path, trials: int) -> list[str]:
    """Return the commands that make the trials and this page again.

    Args:
        settings: Settings of the study.
        folder: Its output folder.
        trials: Number of its trials.
    """
    words = ["moesim", "study", "run", "study.toml", "--trials", str(trials)]
    words += ["--seed", str(settings["seed"]), "--sampler", str(settings["sampler"])]
    if settings["screen"]:
        words += ["--screen", str(settings["screen"])]
    words += ["--out", str(folder)]
    report = ["moesim", "report", str(folder), "--out", "report.html"]
    return [shlex.join(words), shlex.join(report)]
