"""Ask for trials in rounds, evaluate them and record them: with one writer, or with several."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from heapq import merge
from typing import Any

from moesim.errors import ConfigError
from moesim.search.executors import Evaluator, Found
from moesim.search.samplers import Proposer
from moesim.search.storage import Store
from moesim.search.trial import Trial, from_record, to_record


def _recorded(
    store: Store,
    proposer: Proposer,
    points: Mapping[int, dict[str, Any]],
    findings: Iterator[list[Found]],
) -> Iterator[Trial]:
    """Store the trials of points, by number, chunk by chunk, and yield them."""
    numbers = list(points)
    done = 0
    for chunk in findings:
        made = [
            Trial(
                number=numbers[done + i],
                params=points[numbers[done + i]],
                evaluation=found,
                wall_s=wall_s,
                ended=when,
            )
            for i, (found, wall_s, when) in enumerate(chunk)
        ]
        store.add_trials([to_record(t, proposer.space, proposer.objectives) for t in made])
        done += len(made)
        yield from made


def trials_alone(
    store: Store, evaluates: Evaluator, proposer: Proposer, num_trials: int
) -> Iterator[Trial]:
    """Yield the trials of a storage with one writer, recorded ones first.

    Two batches are in progress at a time, so that workers need not wait for the next proposal.
    """
    records = store.study.get_trials(deepcopy=False)
    recorded = {t.number: t for t in (from_record(record, alone=True) for record in records)}
    under_way: deque[
        tuple[dict[int, dict[str, Any]], list[Trial], Callable[[], Iterator[list[Found]]]]
    ] = deque()
    number = asked = 0
    while True:
        while len(under_way) < 2 and asked < num_trials:
            points = proposer.batch(number)[: num_trials - asked]
            if not points:
                break
            # numbers in between are missing where lines of the journal were damaged
            known = [recorded[i] for i in range(asked, asked + len(points)) if i in recorded]
            if any(t.params != points[t.number - asked] for t in known):
                raise ConfigError(
                    f"storage: trial {asked} and on are of another study: use --fresh"
                )
            new = {i: p for i, p in enumerate(points, start=asked) if i not in recorded}
            under_way.append((new, known, evaluates.submit(list(new.values()))))
            number, asked = number + 1, asked + len(points)
        if not under_way:
            return
        new, known, findings = under_way.popleft()
        batch = []
        made = _recorded(store, proposer, new, findings())
        for trial in merge(known, made, key=lambda t: t.number):
            batch.append(trial)
            yield trial
        proposer.learn(batch)


def trials_shared(
    store: Store, evaluates: Evaluator, proposer: Proposer, num_trials: int, member: int
) -> Iterator[Trial]:
    """Yield the trials of a storage with several writers: after each batch, all that came
    meanwhile.
    """
    seen: set[int] = set()
    number = 0
    while True:
        new = [
            from_record(t)
            for t in store.study.get_trials(deepcopy=False)
            if t.state.is_finished() and t.number not in seen
        ]
        seen |= {t.number for t in new}
        proposer.learn(new)
        yield from new
        if len(seen) >= num_trials:
            return
        # each batch has a number of this member's own; after a restart, the count of trials seen
        # keeps it new
        points = proposer.batch(member * 1_000_003 + len(seen) * 101 + number)[
            : num_trials - len(seen)
        ]
        if not points:
            return
        for _ in _recorded(store, proposer, dict(enumerate(points)), evaluates.submit(points)()):
            pass  # they come back from the storage, among those of others
        number += 1


__all__ = ["trials_alone", "trials_shared"]
