"""Ask for a recommendation: the question, and the batches that are tried for it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from moesim.advice.designs import candidates
from moesim.advice.recommendation import Objective, Recommendation
from moesim.design.candidate import Candidate, Workload
from moesim.errors import CapacityError, ConfigError, MoesimError
from moesim.hardware import Cluster
from moesim.hardware.economics import Economics
from moesim.model.hf_config import Model
from moesim.simulation.screening import bounds_of

#: factor on the latency that the bound of a batch may reach
_ROOM = 2.0
#: batches that are tried for a latency, largest first: powers of two, then eighths between the
#: largest that keeps it and its double
_BATCHES = tuple(2**n for n in range(13, -1, -1))
_BETWEEN = (15, 14, 13, 12, 11, 10, 9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The question: what to recommend for which model on which hardware."""

    model: Model
    cluster: Cluster
    workload: Workload
    names: list[str]
    objective: Objective
    economics: Economics
    latency_s: float | None
    kernels: str

    def per_second(self, mean_utilisation: dict[str, float]) -> float:
        """Return what a second of the layer costs in the objective's unit."""
        if self.objective == "energy":
            return float(self.economics.watts(self.cluster, mean_utilisation))
        return self.economics.usd_per_hour(self.cluster) / 3600 if self.objective == "cost" else 1.0

    def designs(self) -> list[Candidate]:
        """Return every design of the question, see `moesim.advice.designs.candidates`."""
        work = self.workload
        return candidates(
            self.model,
            self.cluster,
            phase=work.phase,
            names=self.names,
            tokens=work.num_tokens_per_device,
            kernels=self.kernels,
        )

    def with_tokens(self, tokens: int) -> "Task":
        """Return the question for another batch."""
        return replace(self, workload=replace(self.workload, num_tokens_per_device=tokens))


#: what answers a question about one batch
Answer = Callable[[Task], Recommendation]


def fitting_batch(task: Task, answer: Answer) -> Recommendation:
    """Return the recommendation for the usual batch, halved until its KV cache fits."""
    first: CapacityError | None = None
    tokens = task.workload.num_tokens_per_device
    while tokens:
        try:
            return answer(task.with_tokens(tokens))
        except CapacityError as error:
            first = first or error
            tokens //= 2
    assert first is not None, "the usual batch has tokens"
    raise first


def largest_batch(task: Task, answer: Answer) -> Recommendation:
    """Return the recommendation for the largest batch that stays within the latency."""
    assert task.latency_s is not None
    last: MoesimError | None = None
    for tokens in _BATCHES:
        found, error = _keeping(task.with_tokens(tokens), answer, must_try=tokens == 1)
        if found is None:
            last = error or last
            continue
        for eighths in _BETWEEN if tokens >= len(_BETWEEN) + 1 else ():
            larger, _ = _keeping(task.with_tokens(tokens * eighths // 8), answer, must_try=False)
            if larger is not None:
                return larger
        return found
    assert last is not None, "one token is always tried"
    raise last


def _keeping(
    task: Task, answer: Answer, must_try: bool
) -> tuple[Recommendation | None, MoesimError | None]:
    """Return the recommendation for a batch that stays within the latency, or the reason against
    it, where it was tried.

    Args:
        task: The question, with the batch.
        must_try: Whether to try it even if its bound is far above the latency.
    """
    assert task.latency_s is not None
    # bound one format and exchange only, and leave room for better ones, since the others are not
    # bounded
    designs = task.designs()
    usual = designs[0].layer.precision, designs[0].schedule
    few = [c for c in designs if (c.layer.precision, c.schedule) == usual]
    bounds = bounds_of(few, task.cluster, task.workload)
    layers = task.model.dense_part.num_moe_layers
    if not must_try and not (layers * bounds.layer_time_s_N <= _ROOM * task.latency_s).any():
        return None, None
    try:
        return answer(task), None
    except (CapacityError, ConfigError) as error:
        return None, error
