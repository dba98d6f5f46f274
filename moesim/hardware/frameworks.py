"""Each training framework, whose kernels and host slow a step down beyond what prices say, is one
record: a file of ``hw_profiles/frameworks``.

Its one constant is the efficiency: simulated time over measured time of a step, fitted to the rows
that the record names.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

from pydantic import Field

from moesim.files import toml
from moesim.files.texts import read_text
from moesim.files.toml import Source, Strict
from moesim.hardware.serving_engines import Interval


class FrameworkFile(Strict):
    """A record as written in ``hw_profiles/frameworks/NAME.toml``; see `Framework`."""

    title: str = Field(min_length=1)
    efficiency: float = Field(gt=0, le=2)
    rows: str
    interval: Interval
    sources: list[Source] = Field(min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """A training framework.

    Attributes:
        name: The name that its file has.
        title: What it is.
        efficiency: Simulated time over measured time of a step.
        rows: The rows that it was fitted to.
        low: P10 of measured over predicted time on rows that were not fitted.
        high: P90 of the same.
        digest: Hash of the record.
    """

    name: str
    title: str
    efficiency: float
    rows: str
    low: float
    high: float
    digest: str


@lru_cache(maxsize=16)
def _load(path: str, modified_ns: int) -> Framework:
    where = toml.Path(path)
    text = read_text(where)
    file = toml.parse(text, FrameworkFile, where.name)
    return Framework(
        name=where.stem,
        title=file.title,
        efficiency=file.efficiency,
        rows=file.rows,
        low=file.interval.low,
        high=file.interval.high,
        digest=hashlib.sha256(text.encode()).hexdigest()[:12],
    )


def framework(name: str) -> Framework:
    """Return the training framework with a given name.

    Raises:
        UnknownNameError: No framework has that name; the text lists the near matches.
        ConfigError: Its file is malformed.
    """
    path = toml.find("frameworks", name)
    return _load(str(path), path.stat().st_mtime_ns)
