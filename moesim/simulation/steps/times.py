"""Tabulate the time of steps, for a request loop that asks for thousands of them.

A step's time depends on prompt tokens, on sequences, and on how far back they look. The first two
make a grid: steps at its nodes are simulated when they are first needed, with usual contexts, and
what lies between is linear. Looking back costs attention, which is priced by itself for the context
asked and for the usual one; the difference is added. Where micro-batches overlap, attention hides
behind exchanges in part: a second simulation with twice the context says which part shows.

Attention ranks meet at their experts. Nodes are steps in which all have as many prompt tokens;
where a rank has more than the mean, what it computes of its own beyond that is added
(`moesim.simulation.steps.own`).
"""

import bisect
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import floor, log2

from moesim.costs.steps.mixers import core
from moesim.design.served import ServedModel
from moesim.design.step import ExpertLoad, Step
from moesim.hardware import Cluster
from moesim.hardware.serving_engines import ServingEngine, serving_engine
from moesim.simulation.steps.own import own_s
from moesim.simulation.steps.simulate import (
    UNEVEN,
    StepResult,
    pricing_of,
    simulate_step,
    stage_of,
)

#: nodes of an octave by default; every number up to twice as many is a node
PER_OCTAVE = 4
#: context of decoding sequences at the nodes
_CONTEXT = 2048.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGrid:
    """Which steps of a design are simulated, and how.

    Attributes:
        steps_by: Name of the engine that runs the steps' programs.
        per_octave: Nodes between a number of tokens or sequences and its double.
        joined: Whether sequences that decode beside prompts are priced as that many more tokens of
            prompts in all but their attention, which needs no nodes of its own.
    """

    steps_by: str = "flow"
    per_octave: int = PER_OCTAVE
    joined: bool = False


FINE = StepGrid()


class StepTable:
    """Times of the steps of a design, a `moesim.serving.loop.StepTimes`.

    Args:
        served: The design.
        cluster: The hardware.
        load: How tokens choose experts.
        engine: The serving engine whose host is added; None for the design's.
        grid: Which steps are simulated, and how.

    Attributes:
        served: The design.
        cluster: The hardware.
        engine: The serving engine whose host is added.
        simulated: Number of steps that were simulated.
    """

    def __init__(
        self,
        served: ServedModel,
        cluster: Cluster,
        *,
        load: ExpertLoad = UNEVEN,
        engine: ServingEngine | None = None,
        grid: StepGrid = FINE,
    ) -> None:
        self.served, self.cluster = served, cluster
        self._load, self._grid = load, grid
        #: whose nodes serve here
        self._like = self
        self.engine = engine or serving_engine(served.engine)
        self._pricing = pricing_of(served, stage_of(cluster, served.layout.devices_per_stage))
        self._kinds = [
            (kind.mixer, count) for kind, count in served.spec.kinds.items() if kind.mixer
        ]
        #: prompt tokens of a rank on average; None where all have as many as the one asked for
        self._mean: int | None = None
        self.simulated = 0
        self._node = lru_cache(maxsize=None)(self._simulate)
        self._attention = lru_cache(maxsize=65536)(self._price_attention)
        self._own = lru_cache(maxsize=None)(partial(own_s, served, self._pricing))
        self._shows = lru_cache(maxsize=None)(self._share_that_shows)

    def with_cache(self, kv_format: str) -> "StepTable":
        """Return the times of the same design with another format of its KV cache: only attention
        is priced anew, and the steps that were simulated serve for both.
        """
        served = replace(self.served, kv_format=kv_format)
        found = StepTable(
            served, self.cluster, load=self._load, engine=self.engine, grid=self._grid
        )
        found._like = self._like
        return found

    def among(self, mean_prefill_tokens: float) -> "StepTable":
        """Return the times of a rank among others, see `moesim.serving.loop.StepTimes`."""
        found = copy(self)
        found._mean = round(mean_prefill_tokens)
        return found

    def step_s(
        self,
        *,
        prefill_tokens: int,
        prefill_context: float,
        sequences: int,
        context: float,
        tokens_per_sequence: int = 1,
    ) -> float:
        """Return the seconds of one step of an attention rank among others, see
        `moesim.serving.loop.StepTimes`.
        """
        looking = self._looking(
            prefill_tokens, prefill_context, sequences, context, tokens_per_sequence
        )
        mean = prefill_tokens if self._mean is None else self._mean
        decoding = 0 if self._grid.joined and mean else sequences
        usual = self._usually(mean, decoding, tokens_per_sequence)
        total = self._at_nodes(mean, decoding, tokens_per_sequence)
        if sequences > decoding:
            total += sequences * tokens_per_sequence * self._token_s(mean)
        if mean != prefill_tokens:
            total += self._own_s(prefill_tokens) - self._own_s(mean)
        nearest = self._nearest(sequences)
        shows = self._like._shows(nearest, tokens_per_sequence) if sequences else 1.0
        devices_s = max(total + shows * (looking - usual), 0.0)
        layers = self.served.spec.num_layers if prefill_tokens else 0
        return self.engine.time_s(devices_s, sequences + (prefill_tokens > 0), layers)

    def _own_s(self, prompts: int) -> float:
        """Return the seconds that a rank computes on prompt tokens of its own, linear between
        nodes.
        """
        return sum(
            share * self._own(tokens) for tokens, share in _between(prompts, self._grid.per_octave)
        )

    def _usually(self, prompts: int, sequences: int, tokens_per_sequence: int) -> float:
        """Return the seconds of attention in a step of usual contexts, as nodes hold it."""
        return self._like._looking(
            prompts, _usual(prompts), sequences, _CONTEXT, tokens_per_sequence
        )

    def _token_s(self, prompts: int) -> float:
        """Return the seconds that one more token of prompts adds, its attention left out."""
        fewer = prompts // 2
        if not fewer:
            return 0.0
        added = self._at_nodes(prompts, 0, 1) - self._at_nodes(fewer, 0, 1)
        added -= self._usually(prompts, 0, 1) - self._usually(fewer, 0, 1)
        return max(added, 0.0) / (prompts - fewer)

    def _at_nodes(self, prompts: int, sequences: int, tokens_per_sequence: int) -> float:
        """Return the seconds of a step with usual contexts, linear between nodes."""
        total = 0.0
        for tokens, share in _between(prompts, self._grid.per_octave):
            for decoding, part in _between(sequences, self._grid.per_octave):
                if share * part != 0.0 and tokens + decoding > 0:
                    node = self._like._node(tokens, decoding, tokens_per_sequence)
                    total += share * part * node.time_s
        return total

    def near(
        self, *, prefill_tokens: int = 0, sequences: int = 0, tokens_per_sequence: int = 1
    ) -> StepResult:
        """Return the simulated step that is nearest to another, of usual contexts: what takes its
        time, and what that rests on.
        """
        return self._like._node(
            self._nearest(prefill_tokens), self._nearest(sequences), tokens_per_sequence
        )

    def _nearest(self, number: int) -> int:
        return max(_between(number, self._grid.per_octave), key=lambda node: node[1])[0]

    def _simulate(self, prompts: int, sequences: int, tokens_per_sequence: int) -> StepResult:
        self.simulated += 1
        return self._result(prompts, sequences, _CONTEXT, tokens_per_sequence)

    def _result(
        self, prompts: int, sequences: int, context: float, tokens_per_sequence: int
    ) -> StepResult:
        step = Step(
            prefills=1.0 if prompts else 0.0,
            new_tokens=prompts,
            sequences=sequences,
            context=context,
            tokens_per_sequence=tokens_per_sequence,
        )
        return simulate_step(
            self.served, self.cluster, step, load=self._load, engine=self._grid.steps_by
        )

    def _share_that_shows(self, sequences: int, tokens_per_sequence: int) -> float:
        """Return by how much a step grows for each second of attention."""
        if self.served.schedule.num_micro_batches == 1:
            return 1.0
        more = self._looking(0, 0.0, sequences, 2.0 * _CONTEXT, tokens_per_sequence)
        more -= self._looking(0, 0.0, sequences, _CONTEXT, tokens_per_sequence)
        longer = self._result(0, sequences, 2.0 * _CONTEXT, tokens_per_sequence)
        return (longer.time_s - self._node(0, sequences, tokens_per_sequence).time_s) / more

    def _looking(
        self,
        prompts: int,
        prompt_context: float,
        sequences: int,
        context: float,
        tokens_per_sequence: int,
    ) -> float:
        """Return the seconds of attention in all layers."""
        seconds = 0.0
        if prompts:
            for cached, share in _around(max(prompt_context - _usual(prompts), 0.0)):
                seconds += share * self._attention(prompts, cached, 0, 0.0, 1)
            if prompt_context < _usual(prompts):
                # several prompts, each with as many tokens as its context says
                each = 2.0 * prompt_context + 1.0
                seconds += self._attention(round(each), 0.0, 0, 0.0, 1) * prompts / each
                seconds -= self._attention(prompts, 0.0, 0, 0.0, 1)
        if sequences:
            for length, share in _around(context):
                seconds += share * self._attention(0, 0.0, sequences, length, tokens_per_sequence)
        return seconds

    def _price_attention(
        self, prompts: int, cached: float, sequences: int, context: float, tokens_per_sequence: int
    ) -> float:
        step = Step(
            prefills=1.0 if prompts else 0.0,
            new_tokens=prompts,
            cached_tokens=cached,
            sequences=sequences,
            context=max(context, 1.0),
            tokens_per_sequence=tokens_per_sequence,
        )
        return sum(
            count * float(core(mixer, self._pricing, step).solo_s_D()[0])
            for mixer, count in self._kinds
        )


def _usual(prompt_tokens: int) -> float:
    """Return the mean context of the tokens of one whole prompt."""
    return max((prompt_tokens - 1.0) / 2.0, 0.0)


def _nodes(upto: int, per_octave: int) -> list[int]:
    found = list(range(2 * per_octave + 1))
    while found[-1] < upto:
        octave = floor(log2(found[-1]))
        found.append(found[-1] + max(2**octave // per_octave, 1))
    return found


@lru_cache(maxsize=65536)
def _between(number: int, per_octave: int) -> tuple[tuple[int, float], ...]:
    """Return the nodes around a number with their shares."""
    nodes = _nodes(number, per_octave)
    at = bisect.bisect_left(nodes, number)
    if nodes[at] == number:
        return ((number, 1.0),)
    low, high = nodes[at - 1], nodes[at]
    share = (number - low) / (high - low)
    return ((low, 1.0 - share), (high, share))


def _around(length: float) -> tuple[tuple[float, float], ...]:
    """Return lengths around another, which are eighths of powers of two, with their shares."""
    if length < 1.0:
        return ((0.0, 1.0),) if length <= 0.0 else ((0.0, 1.0 - length), (1.0, length))
    step = max(2.0 ** (floor(log2(length)) - 3), 1.0)
    low = floor(length / step) * step
    share = (length - low) / step
    return ((low, 1.0 - share), (low + step, share)) if share else ((low, 1.0),)
