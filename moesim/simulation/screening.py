"""Bound thousands of candidates on one cluster: those that differ only in expert width are lowered
once.

A width changes only what the experts (and shared experts) of a layer demand; the rest of the
program, and the routing, placement and traffic it rests on, are equal for all widths. Candidates
are therefore grouped into *frames* with one program each. The demands of a frame's widths are
priced at once, by the cost model that also lowers, and the bounds of all its members come from one
compiled loop. Results equal those of `moesim.simulation.run.simulate` with engine ``bound``.

Shape legend: N candidates, B candidates of a frame, D devices, M = 2 demands of an op, V ops, E
entries, R resources.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from moesim.costs.libraries import running
from moesim.costs.phases.memory import memory_need
from moesim.design.candidate import Candidate, Workload
from moesim.engines.bound_many import run_bound_many
from moesim.errors import MoesimError
from moesim.hardware import Cluster
from moesim.lowering.widths import demands_of_widths
from moesim.program import Program
from moesim.simulation.cache_keys import for_traffic
from moesim.simulation.kernels import choose_kernels
from moesim.simulation.prepare import Prepared, prepare
from moesim.simulation.run import lower, simulate_prepared

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bounds:
    """The bounds of N candidates.

    Attributes:
        layer_time_s_N: Lower bound of the layer's time; NaN where the candidate is invalid.
        memory_bytes_N: Bytes needed on the device with the least headroom.
        memory_over_bytes_N: Bytes by which these exceed what the device has.
        mean_utilisation: Kind of resource -> its mean utilization, ndarray of shape (N,); NaN where
            a candidate has no such resource.
        reasons: Index of a candidate -> the reason it is invalid.
    """

    layer_time_s_N: Array
    memory_bytes_N: Array
    memory_over_bytes_N: Array
    mean_utilisation: dict[str, Array]
    reasons: dict[int, str]


def bounds_of(
    candidates: Sequence[Candidate], cluster: Cluster, workload: Workload, *, num_threads: int = 1
) -> Bounds:
    """Bound every candidate.

    Args:
        candidates: The N designs, each with a dense part.
        cluster: The hardware they run on.
        workload: The tokens and their routing.
        num_threads: Number of threads that place experts and count traffic ahead. Most of that is
            compiled code, which other threads need not wait for.
    """
    count = len(candidates)
    found = Bounds(
        layer_time_s_N=np.full(count, np.nan),
        memory_bytes_N=np.full(count, np.nan),
        memory_over_bytes_N=np.full(count, np.nan),
        mean_utilisation={},
        reasons={},
    )
    frames = [
        ([candidates[i] for i in places], np.array(places))
        for places in _frames(candidates).values()
    ]
    for frame, prepared in _prepared(frames, cluster, workload, num_threads):
        try:
            if isinstance(prepared, MoesimError):
                raise prepared
            _bound_frame(frame, prepared, cluster, found)
        except MoesimError as error:
            found.reasons.update(dict.fromkeys(frame[1].tolist(), str(error)))
    return found


#: candidates that differ only in width, and their indices
_Frame = tuple[list[Candidate], Array]


def _prepared(
    frames: list[_Frame], cluster: Cluster, workload: Workload, num_threads: int
) -> Iterator[tuple[_Frame, Prepared | MoesimError]]:
    """Yield every frame with its first member prepared, or the reason why it cannot be.

    Designs that share traffic follow one another in one thread, so that none is counted twice.
    """

    def prepared(members: list[Candidate]) -> Prepared | MoesimError:
        try:
            return prepare(members[0], cluster, workload)
        except MoesimError as error:
            return error

    if num_threads == 1:
        yield from ((frame, prepared(frame[0])) for frame in frames)
        return
    groups: dict[Candidate, list[_Frame]] = {}
    for frame in frames:
        groups.setdefault(for_traffic(frame[0][0]), []).append(frame)
    with ThreadPoolExecutor(num_threads) as pool:
        found = pool.map(lambda group: [(f, prepared(f[0])) for f in group], groups.values())
        for group in found:
            yield from group


def _frames(candidates: Sequence[Candidate]) -> dict[Candidate, list[int]]:
    """Group the indices of candidates that differ only in width; designs whose
    experts have several widths or forms, or lie in the host's memory, are alone.
    """
    frames: dict[Candidate, list[int]] = {}
    for i, candidate in enumerate(candidates):
        frames.setdefault(_without_width(candidate), []).append(i)
    return frames


def _without_width(candidate: Candidate) -> Candidate:
    """Return the design with a width that stands for any; designs for which it is equal are one
    frame.
    """
    if candidate.layer.uneven or not candidate.is_plain:
        return candidate
    return replace(candidate, layer=replace(candidate.layer, expert_intermediate_size=1))


def _bound_frame(frame: _Frame, prepared: Prepared, cluster: Cluster, found: Bounds) -> None:
    (members, places), workload = frame, prepared.workload
    first = members[0]
    if first.layer.uneven or not first.is_plain:
        for candidate, place in zip(members, places, strict=True):
            _one(prepare(candidate, cluster, workload), int(place), found)
        return
    # widths may differ in the library that is fastest, and each library has a program of its own
    chosen = [prepared.kernels]
    if len(members) > 1:
        chosen = choose_kernels(members, cluster, prepared.traffic)
    for kernels in dict.fromkeys(chosen):
        own = [i for i, name in enumerate(chosen) if name == kernels]
        _bound_same_kernels(
            [members[i] for i in own],
            places[own],
            replace(prepared, cluster=running(cluster, kernels), kernels=kernels),
            found,
        )


def _bound_same_kernels(
    members: list[Candidate], places: Array, prepared: Prepared, found: Bounds
) -> None:
    """Bound members whose experts run in one library."""
    program = lower(replace(prepared, candidate=members[0]))
    if program.factored:
        for candidate, place in zip(members, places, strict=True):
            _one(replace(prepared, candidate=candidate), int(place), found)
        return
    makespan_B, busy_BR = run_bound_many(program, *_experts(members, prepared, program))
    found.layer_time_s_N[places] = makespan_B
    first_R = 0
    sums: dict[str, tuple[Array, int]] = {}
    for kind, number in program.resources.kinds():
        busy, so_far = sums.get(kind, (np.zeros(len(members)), 0))
        sums[kind] = busy + busy_BR[:, first_R : first_R + number].sum(axis=1), so_far + number
        first_R += number
    for kind, (busy, number) in sums.items():
        if number:
            column = found.mean_utilisation.setdefault(
                kind, np.full(len(found.layer_time_s_N), np.nan)
            )
            column[places] = busy / (number * makespan_B)
    _memory(members, places, prepared, found)


def _one(prepared: Prepared, place: int, found: Bounds) -> None:
    """Bound one candidate alone, with the ``bound`` engine."""
    result = simulate_prepared(prepared, engine="bound", must_fit=False)
    assert result.peak_memory_bytes is not None, "candidates of a screening have a dense part"
    assert result.memory_over_bytes is not None, "likewise"
    found.layer_time_s_N[place] = result.layer_time_s
    found.memory_bytes_N[place] = result.peak_memory_bytes
    found.memory_over_bytes_N[place] = result.memory_over_bytes
    for kind, value in result.mean_utilisation.items():
        found.mean_utilisation.setdefault(kind, np.full(len(found.layer_time_s_N), np.nan))[
            place
        ] = value


def _experts(
    members: list[Candidate], prepared: Prepared, program: Program
) -> tuple[Array, Array, Array]:
    """Return the ops whose price depends on the width, ascending, with their demands and latencies
    at the width of each member.
    """
    batches = prepared.batches
    ops: list[Array] = []
    amounts: list[Array] = []
    latencies: list[Array] = []
    for phase, parts in demands_of_widths(members, prepared.cluster, batches).items():
        of_phase = np.flatnonzero(program.phase_N == program.phase_names.index(phase)).reshape(
            len(batches), -1
        )
        for ops_D, (amounts_BDM, latency_BD) in zip(of_phase, parts, strict=True):
            ops.append(ops_D)
            latencies.append(latency_BD)
            amounts += [_used(amounts_BDM[:, d], program, op) for d, op in enumerate(ops_D)]
    ops_V = np.concatenate(ops)
    order = np.argsort(ops_V)
    amount_BE = np.concatenate([amounts[i] for i in order], axis=1)
    return ops_V[order], amount_BE, np.concatenate(latencies, axis=1)[:, order]


def _used(amount_BM: Array, program: Program, op: int) -> Array:
    """Return the demands of one op without zeros, which programs leave out: ndarray of shape (B,
    entries).
    """
    there = amount_BM[0] > 0
    assert there.sum() == program.demand_ptr[op + 1] - program.demand_ptr[op], (
        "a width does not decide what is used"
    )
    return amount_BM[:, there]


def _memory(members: list[Candidate], places: Array, prepared: Prepared, found: Bounds) -> None:
    traffic, tp, dense = prepared.traffic, members[0].parallelism.tp, members[0].dense_part
    counts_DL = traffic.counts_DL
    assert dense is not None, "a screening needs the memory of the whole model"
    slots_D = np.repeat(prepared.placement.slots_of_rank(), tp)
    rows_D = counts_DL.sum(axis=1)
    usable_D = prepared.cluster.usable_bytes_D()
    # shared experts have the width of the routed ones; members differ in nothing else
    need_BD = np.array(
        [
            np.broadcast_to(
                np.asarray(
                    memory_need(
                        c.layer,
                        dense,
                        held_width=slots_D * width,
                        kv_tokens=prepared.workload.kv_tokens,
                        rows=rows_D,
                        row_widths=rows_D * width,
                        tokens=np.asarray(traffic.tokens_D),
                    ).total_bytes
                ),
                usable_D.shape,
            )
            for c in members
            for width in (-(-c.layer.widest // tp),)
        ]
    )
    fullest = (need_BD - usable_D).argmax(axis=1)
    found.memory_bytes_N[places] = need_BD[np.arange(len(members)), fullest]
    found.memory_over_bytes_N[places] = (need_BD - usable_D)[np.arange(len(members)), fullest]
