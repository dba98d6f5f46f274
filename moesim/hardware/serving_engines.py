"""Each serving engine, whose scheduler and host a whole model waits for, is one record: a file of
``hw_profiles/engines``.

A record says how the engine schedules (prompts beside decoding sequences or apart, tokens of a
chunk, tokens of a KV block) and what its host takes. A step waits for its devices or, where kernels
are launched one by one instead of from a graph (prompts), for the launches of its layers; then the
host takes a time of its own for the step and for every sequence of it.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from pydantic import Field

from moesim.files import toml
from moesim.files.texts import read_text
from moesim.files.toml import Source, Strict
from moesim.units import US


class _Host(Strict):
    step_us: float = Field(ge=0)
    request_us: float = Field(ge=0)
    eager_layer_us: float = Field(ge=0)
    receive_us: float = Field(default=0.0, ge=0)
    intake_us: float = Field(default=0.0, ge=0)
    rows: str


class Interval(Strict):
    """P10 and P90 of measured over predicted."""

    low: float = Field(gt=0)
    high: float = Field(gt=0)


class EngineFile(Strict):
    """A record as written in ``hw_profiles/engines/NAME.toml``; see `ServingEngine`."""

    title: str = Field(min_length=1)
    mixed: bool
    chunk: int = Field(ge=1)
    block_size: int = Field(ge=1)
    max_seqs: int = Field(ge=1)
    shared_beside: int = Field(default=0, ge=0)
    host: _Host
    intervals: dict[Literal["tpot", "ttft"], Interval] = {}
    sources: list[Source] = Field(min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingEngine:
    """A serving engine.

    Attributes:
        name: The name that designs use, which is that of its file.
        title: What it is.
        mixed: Whether prompt tokens go beside decoding sequences in one step.
        chunk: The most prompt tokens of a step.
        block_size: Tokens of a KV block.
        max_seqs: The most sequences of an attention rank.
        shared_beside: The most tokens of a step from a graph in which shared experts run on a
            stream of their own beside the routed ones; 0 if they never do.
        step_s: Seconds of the host for a step.
        request_s: Seconds of the host for each sequence of a step.
        eager_layer_s: Seconds in which the host launches the kernels of a layer.
        receive_s: Seconds that a request spends in the front end beside others: HTTP, the queue.
        intake_s: Seconds in which the front end is busy with one request alone: turning text into
            tokens, and what else one Python process does for all.
        rows: The rows that these were fitted to; empty if none.
        intervals: ``tpot`` and ``ttft`` -> P10 and P90 of measured / predicted, from rows that were
            not fitted.
        digest: Hash of the record.
    """

    name: str
    title: str
    mixed: bool
    chunk: int
    block_size: int
    max_seqs: int
    shared_beside: int
    step_s: float
    request_s: float
    eager_layer_s: float
    receive_s: float
    intake_s: float
    rows: str
    intervals: tuple[tuple[str, float, float], ...]
    digest: str

    def interval(self, what: str) -> tuple[float, float] | None:
        """Return the P10 and P90 of measured / predicted; None if nothing was scored."""
        return next(((low, high) for name, low, high in self.intervals if name == what), None)

    def time_s(self, devices_s: float, sequences: float, eager_layers: int) -> float:
        """Return the seconds of a step, the host's included.

        Args:
            devices_s: Seconds of the devices.
            sequences: Sequences of the step.
            eager_layers: Layers whose kernels are launched one by one; 0 for a step from a graph.
        """
        busy_s = max(devices_s, eager_layers * self.eager_layer_s)
        return busy_s + self.step_s + sequences * self.request_s


@lru_cache(maxsize=16)
def _load(path: str, modified_ns: int) -> ServingEngine:
    where = toml.Path(path)
    text = read_text(where)
    file = toml.parse(text, EngineFile, where.name)
    return ServingEngine(
        name=where.stem,
        title=file.title,
        mixed=file.mixed,
        chunk=file.chunk,
        block_size=file.block_size,
        max_seqs=file.max_seqs,
        shared_beside=file.shared_beside,
        step_s=file.host.step_us * US,
        request_s=file.host.request_us * US,
        eager_layer_s=file.host.eager_layer_us * US,
        receive_s=file.host.receive_us * US,
        intake_s=file.host.intake_us * US,
        rows=file.host.rows,
        intervals=tuple((name, one.low, one.high) for name, one in file.intervals.items()),
        digest=hashlib.sha256(text.encode()).hexdigest()[:12],
    )


def serving_engine(name: str) -> ServingEngine:
    """Return the serving engine with a given name.

    Raises:
        UnknownNameError: No engine has that name; the text lists the near matches.
        ConfigError: Its file is malformed.
    """
    path = toml.find("engines", name)
    return _load(str(path), toml.modified_ns(path))
