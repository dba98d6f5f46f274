"""Read a study from a TOML file, for ``moesim study``: of MoE layers, or, where ``[space]`` names a
``model``, of whole models that are served.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from moesim.design.candidate import Workload
from moesim.errors import ConfigError
from moesim.files import toml
from moesim.files.toml import Strict
from moesim.hardware import Cluster, load_cluster
from moesim.search.serving_space import ServingSpace
from moesim.search.serving_workload import ServingWorkload
from moesim.search.space import Space


class _Workload(Strict):
    num_tokens_per_device: int = Field(ge=1)
    phase: str = "prefill"
    routing: str = "uniform"
    kv_tokens_per_device: int | None = Field(default=None, ge=0)


class _Requests(Strict):
    isl: int | str = 1024
    osl: int | str = 1024
    routing: str = "power_law:1.2"


class _StudyFile(Strict):
    cluster: str
    objectives: list[str] = Field(default=["loss", "layer_tokens_per_s_per_device"], min_length=1)
    constraints: list[str] = []
    economics: str = "default"
    workload: _Workload
    space: dict[str, Any]


class _ServingFile(Strict):
    cluster: str
    objectives: list[str] = Field(
        default=["tokens_per_s_per_device", "tokens_per_s_per_user"], min_length=1
    )
    constraints: list[str] = []
    economics: str = "default"
    workload: _Requests = _Requests()
    space: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyDescription:
    """The content of a study file."""

    cluster: Cluster
    objectives: list[str]
    constraints: list[str]
    economics: str
    workload: Workload | ServingWorkload
    space: Space | ServingSpace


def load_study_file(path: Path, seed: int, *, lenient: bool = False) -> StudyDescription:
    """Load a study file.

    Args:
        path: The file.
        seed: Seed of the workload.
        lenient: Whether the file of a model is read although keys contradict or are not
            understood; the study file may say so, too.

    Raises:
        ConfigError: The file is missing, is not TOML, or breaks a rule; the text names file, key,
            rule and value.
    """
    text = toml.read_text(path)
    written: _StudyFile | _ServingFile
    space: Space | ServingSpace
    workload: Workload | ServingWorkload
    more = {"lenient": True} if lenient else {}
    try:
        if _serves(text):
            written = toml.parse(text, _ServingFile, path.name)
            space = ServingSpace(**written.space | more)
            workload = ServingWorkload(**written.workload.model_dump(), seed=seed)
        else:
            written = toml.parse(text, _StudyFile, path.name)
            space = Space(**written.space | more)
            workload = Workload(**written.workload.model_dump(), seed=seed)
    except ConfigError as error:
        named = str(error).startswith(f"{path.name}:")
        raise error if named else ConfigError(f"{path.name}: {error}") from None
    return StudyDescription(
        cluster=load_cluster(written.cluster),
        objectives=written.objectives,
        constraints=written.constraints,
        economics=written.economics,
        workload=workload,
        space=space,
    )


def _serves(text: str) -> bool:
    """Return whether the space of a file is one of whole models."""
    try:
        space = tomllib.loads(text).get("space")
    except tomllib.TOMLDecodeError:  # said by who reads it next
        return False
    return isinstance(space, dict) and "model" in space
