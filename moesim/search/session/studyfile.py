"""Read a study from a TOML file, for ``moesim study``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from moesim.design.candidate import Workload
from moesim.errors import ConfigError
from moesim.files import toml
from moesim.files.toml import Strict
from moesim.hardware import Cluster, load_cluster
from moesim.search.space import Space


class _Workload(Strict):
    num_tokens_per_device: int = Field(ge=1)
    phase: str = "prefill"
    routing: str = "uniform"
    kv_tokens_per_device: int | None = Field(default=None, ge=0)


class _StudyFile(Strict):
    cluster: str
    objectives: list[str] = Field(default=["loss", "layer_tokens_per_s_per_device"], min_length=1)
    constraints: list[str] = []
    economics: str = "default"
    workload: _Workload
    space: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyDescription:
    """The content of a study file."""

    cluster: Cluster
    objectives: list[str]
    constraints: list[str]
    economics: str
    workload: Workload
    space: Space


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
    written = toml.parse(text, _StudyFile, path.name)
    try:
        space = Space(**written.space | ({"lenient": True} if lenient else {}))
        workload = Workload(**written.workload.model_dump(), seed=seed)
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from None
    return StudyDescription(
        cluster=load_cluster(written.cluster),
        objectives=written.objectives,
        constraints=written.constraints,
        economics=written.economics,
        workload=workload,
        space=space,
    )
