"""Put the pieces of a forward pass on the streams of every device.

A batch is a list of pieces: work of each device, collectives, and exchanges that are begun at one
place and awaited at another. What stands between travels beside the exchange (shared experts). With
one batch, a device does its pieces in order. With several micro-batches each device runs its
compute in one stream and its exchanges in another, and the micro-batches take turns wherever one
would wait: one computes while the copies of another travel. Nothing else is needed for two-batch
overlap of whole layers; what it gains and loses falls out. A batch may also fork for a while, into
parts that take turns in the same way.

Shape legend: D devices, M ops that a device waits for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from moesim.costs.phase import PhaseCost
from moesim.lowering.barriers import Barriers
from moesim.lowering.devices import Devices
from moesim.lowering.exchange import LoweredExchange
from moesim.lowering.host_links import HostLinks

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Local:
    """Work of each device alone.

    Attributes:
        name: Name of the phase.
        cost: What it demands.
    """

    name: str
    cost: PhaseCost


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Collective:
    """An exchange that blocks the compute stream, such as the all-reduce after tensor-parallel
    attention; a group begins when its last device is there.

    Attributes:
        name: Name of the phase.
        cost: What it demands of each device once its group is there.
        size: Number of consecutive devices of a group.
    """

    name: str
    cost: PhaseCost
    size: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BeginDispatch:
    """The begin of a dispatch."""

    exchange: LoweredExchange


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BeginCombine:
    """The begin of a combine."""

    exchange: LoweredExchange


@dataclass(frozen=True, slots=True)
class Arrive:
    """The end of the exchange that was begun last."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fetch:
    """Copies of weights from the host that begin here, beside whatever follows.

    Attributes:
        now_bytes_D: Bytes to each device that are waited for where it says `AwaitFetch`.
        ahead_bytes_D: Bytes to each device that follow and that nothing here waits for; None for
            none.
    """

    now_bytes_D: Array
    ahead_bytes_D: Array | None


@dataclass(frozen=True, slots=True)
class AwaitFetch:
    """The end of the copies that were begun last."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place whose time is asked for, such as the end of a layer."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fork:
    """Parts of a batch that take turns from here on until all are done.

    Attributes:
        parts: The pieces of each.
    """

    parts: "Sequence[Sequence[Piece]]"


Piece = (
    Local | Collective | BeginDispatch | BeginCombine | Arrive | Fetch | AwaitFetch | Mark | Fork
)


@dataclass(slots=True, kw_only=True, eq=False)
class _Batch:
    """How far a micro-batch is.

    Attributes:
        pieces: What is left of it.
        tag: Suffix of its ops' names.
        after: ndarray of shape (D, M): the ops that its next piece waits for; None at the begin.
        ready_s: Roughly when each device is ready since all last met: ndarray of shape (D,), or 0.
        coming: The ops that bring what an exchange sends, and whether work was done meanwhile.
        marks: The ops that each `Mark` waits for.
        fetched: The copies from the host that were begun, ndarray of shape (D, 1).
    """

    pieces: Iterator[Piece]
    tag: str
    after: Array | None = None
    ready_s: Array | float = 0.0
    coming: tuple[Array, bool] | None = None
    marks: list[Array] = field(default_factory=list)
    fetched: Array | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Streams:
    """The streams of D devices while a program is built.

    Attributes:
        devices: The devices, and the program.
        barriers: Barriers between them.
        overlapped: Whether micro-batches share the devices.
        host: Links to the host; None if nothing is fetched.
    """

    devices: Devices
    barriers: Barriers
    overlapped: bool
    host: HostLinks | None = None
    _copies: Array | None = None
    _compute: Array | None = None
    _exchanges: Array | None = None

    def run(self, batches: Sequence[Sequence[Piece]]) -> list[list[Array]]:
        """Add the pieces of all micro-batches.

        Returns:
            For each micro-batch the ops that each of its marks waits for, ndarrays of shape (D, M).
        """
        tags = [f"@{m}" if self.overlapped else "" for m in range(len(batches))]
        running = [
            _Batch(pieces=iter(pieces), tag=tag) for pieces, tag in zip(batches, tags, strict=True)
        ]
        self._in_turn(running)
        return [batch.marks for batch in running]

    def _in_turn(self, running: "Sequence[_Batch]") -> None:
        """Add the pieces of batches that take turns wherever one would wait."""
        left = list(running)
        while left:
            left = [batch for batch in left if self._until_it_waits(batch)]

    def _until_it_waits(self, batch: _Batch) -> bool:
        """Add pieces up to the next that waits for an exchange; return whether there is one."""
        if batch.coming is not None:
            arrived, worked = batch.coming
            assert batch.after is not None, "an exchange was begun"
            batch.after = np.concatenate([arrived, batch.after], axis=1) if worked else arrived
            batch.coming, batch.ready_s = None, 0.0
        for piece in batch.pieces:
            if isinstance(piece, Arrive):
                return True
            self._add(piece, batch)
        return False

    def _add(self, piece: Piece, batch: _Batch) -> None:
        if isinstance(piece, Local):
            self._work(piece.name, piece.cost, batch)
        elif isinstance(piece, Collective):
            assert batch.after is not None, "a collective follows work"
            batch.after = self.barriers.of_groups(
                f"{piece.name} met{batch.tag}", batch.after, piece.name, piece.size
            )
            batch.ready_s = 0.0
            self._work(piece.name, piece.cost, batch)
        elif isinstance(piece, BeginDispatch):
            assert batch.after is not None, "what is sent was computed"
            sent = piece.exchange.dispatch(
                batch.after[:, 0],
                np.broadcast_to(batch.ready_s, len(batch.after)),
                self._exchanges,
                batch.tag,
            )
            self._begun(sent, batch)
        elif isinstance(piece, BeginCombine):
            assert batch.after is not None, "what is sent was computed"
            self._begun(
                piece.exchange.combine(batch.after[:, 0], self._exchanges, batch.tag), batch
            )
        elif isinstance(piece, Fetch):
            self._fetch(piece, batch)
        elif isinstance(piece, AwaitFetch):
            assert batch.after is not None, "a fetch was begun"
            assert batch.fetched is not None, "likewise"
            batch.after = np.concatenate([batch.after, batch.fetched], axis=1)
        elif isinstance(piece, Mark):
            assert batch.after is not None, "a mark follows work"
            batch.marks.append(batch.after)
        elif isinstance(piece, Fork):
            self._fork(piece, batch)

    def _fork(self, piece: Fork, batch: _Batch) -> None:
        parts = [
            _Batch(
                pieces=iter(pieces),
                tag=f"{batch.tag}.{m}",
                after=batch.after,
                ready_s=batch.ready_s,
            )
            for m, pieces in enumerate(piece.parts)
        ]
        self._in_turn(parts)
        ends = [part.after for part in parts if part.after is not None]
        batch.after, batch.ready_s = _without_repeats(np.concatenate(ends, axis=1)), 0.0

    def _fetch(self, piece: Fetch, batch: _Batch) -> None:
        assert batch.after is not None, "what is missing was computed"
        assert self.host is not None, "a program with copies has links"
        waits = batch.after
        if self._copies is not None:
            waits = np.concatenate([waits, self._copies], axis=1)
        batch.fetched = self.host.copy("fetch", piece.now_bytes_D, waits, batch.tag)[:, None]
        self._copies = batch.fetched
        if piece.ahead_bytes_D is not None:
            ahead = self.host.copy("prefetch", piece.ahead_bytes_D, batch.fetched, batch.tag)
            self._copies = ahead[:, None]

    def _begun(self, ops: tuple[Array, Array], batch: _Batch) -> None:
        arrived, ended = ops
        batch.coming = arrived, False
        self._exchanges = ended

    def _work(self, name: str, cost: PhaseCost, batch: _Batch) -> None:
        """Add one op per device, after the last op of its compute stream."""
        waits = [a for a in (batch.after, self._compute) if a is not None]
        # a barrier that all devices share would otherwise be waited for twice
        joined = _without_repeats(np.concatenate(waits, axis=1)) if waits else None
        batch.after = self.devices.phase(name, cost, joined, batch.tag)[:, None]
        batch.ready_s = batch.ready_s + cost.solo_s_D()
        self._compute = batch.after if self.overlapped else None
        if batch.coming is not None:
            batch.coming = batch.coming[0], True


def _without_repeats(ops_DM: Array) -> Array:
    """Drop columns that repeat another column for every device."""
    columns = ops_DM.T
    first = ops_DM[0].tolist()
    # two columns are rarely equal in their first row, and then mostly in all
    keep = [
        m
        for m, op in enumerate(first)
        if not any(op == first[n] and np.array_equal(columns[m], columns[n]) for n in range(m))
    ]
    return ops_DM if len(keep) == len(first) else ops_DM[:, keep]
