"""Read a study from a TOML file, for ``moesim study``: of MoE layers; where ``[space]`` names a
``model``, of whole models that are served; and where ``[workload]`` also has ``train_tokens`` or
``train_flops``, of training runs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from moesim.design.candidate import Workload
from moesim.errors import ConfigError
from moesim.files import toml
from moesim.files.texts import parse_toml, read_text
from moesim.files.toml import Strict
from moesim.hardware import Cluster, load_cluster
from moesim.search.problems import AnySpace, AnyWorkload
from moesim.search.serving_space import ServingSpace
from moesim.search.serving_workload import ServingWorkload
from moesim.search.space import Space
from moesim.search.training_space import TrainingSpace
from moesim.search.training_workload import TrainingWorkload


class _Workload(Strict):
    num_tokens_per_device: int = Field(ge=1)
    phase: str = "prefill"
    routing: str = "uniform"
    kv_tokens_per_device: int | None = Field(default=None, ge=0)


class _Requests(Strict):
    isl: int | str = 1024
    osl: int | str = 1024
    routing: str = "power_law:1.2"


class _Run(Strict):
    train_tokens: float | None = None
    train_flops: float | None = None
    sequence: int = 4096
    global_batch: int = 1024
    routing: str = "uniform"


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


class _TrainingFile(Strict):
    cluster: str
    objectives: list[str] = Field(default=["train_days", "peak_memory_gib"], min_length=1)
    constraints: list[str] = []
    economics: str = "default"
    workload: _Run
    space: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyDescription:
    """The content of a study file."""

    cluster: Cluster
    objectives: list[str]
    constraints: list[str]
    economics: str
    workload: AnyWorkload
    space: AnySpace


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
    text = read_text(path)
    written: _StudyFile | _ServingFile | _TrainingFile
    space: AnySpace
    workload: AnyWorkload
    more = {"lenient": True} if lenient else {}
    kind = _kind(text)
    try:
        if kind == "training":
            written = toml.parse(text, _TrainingFile, path.name)
            space = TrainingSpace(**written.space | more)
            workload = TrainingWorkload(**written.workload.model_dump(), seed=seed)
        elif kind == "serving":
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


def _kind(text: str) -> str:
    """Return what a file searches: ``training``, ``serving`` or ``layers``."""
    try:
        found = parse_toml(text, "")
    except ConfigError:  # said by who reads it next
        return "layers"
    space, workload = found.get("space"), found.get("workload")
    if not isinstance(space, dict) or "model" not in space:
        return "layers"
    budget = isinstance(workload, dict) and {"train_tokens", "train_flops"} & set(workload)
    return "training" if budget else "serving"
