"""Decide which senders act together, and in what order their messages leave.

At device granularity senders fall into classes: a receiver has one op for each class, which starts
when the last sender of that class is ready. At pair granularity every message is an op of its own,
in send order.

Shape legend: S senders = D receivers = devices.
"""

import numpy as np

from moesim.hardware import Cluster
from moesim.lowering.movement import Movement
from moesim.program.builder import Waits

Array = np.ndarray
#: number of classes of uneven senders, and from which standard deviation of what they send over
#: its mean they are uneven
NUM_CLASSES, _UNEVEN = 8, 0.1
#: number of devices from which there are twice as many classes, so that fewer senders wait for a
#: busy one of their class
_MANY = 256


def sender_classes(ready_s: Array, movement: Movement, cluster: Cluster) -> list[Array]:
    """Group senders by when they are ready: bool masks of shape (D,), one mask if all are alike.

    The transfer of a class runs at the pace of its slowest sender, and ends with its largest. So
    senders with unequally much to send, and with it unequally many tokens to gate, form as many
    classes as pay; others form one for each kind of device. No rate decides, so that a what-if of a
    rate changes no classes, and more of it never costs time. On a torus nearly every transfer
    shares links with every other, so classes make the result worse, not better.

    Args:
        ready_s: ndarray of shape (D,): when each sender is ready, roughly.
        movement: The legs of the exchange.
        cluster: The devices; a torus has one class.
    """
    sent = movement.copies_S
    if cluster.is_torus:
        return [np.ones(len(ready_s), dtype=bool)]
    if sent.std() <= _UNEVEN * sent.mean():
        sizes = [count for _, count in cluster.groups]
        kind = np.repeat(np.arange(len(sizes)), sizes)
        return [kind == k for k in range(len(sizes))]
    classes = NUM_CLASSES * (2 if len(ready_s) >= _MANY else 1)
    # equally many senders in each class, in the order in which they are ready
    rank = np.argsort(np.argsort(ready_s, kind="stable"), kind="stable") * classes // len(ready_s)
    return [rank == k for k in range(classes) if (rank == k).any()]


def send_order(copies_SD: Array, order: str) -> tuple[Array, Array]:
    """Return the senders and receivers of all messages, ordered by turn, then by sender.

    Args:
        copies_SD: ndarray of shape (S, D): copies from each device to each.
        order: ``rotated``: in turn t device s sends to s + t; ``naive``: it sends to t.
    """
    count = len(copies_SD)
    # what a device sends to itself is no message
    s, d = np.nonzero(copies_SD * (1 - np.eye(count)))
    turn = (d - s) % count if order == "rotated" else d
    by_turn = np.lexsort((s, turn))
    return s[by_turn], d[by_turn]


def windowed(after: Array, senders: Array, first: int, window: int) -> Waits:
    """Let each message also wait for the one ``window`` messages before it from the same sender.

    Args:
        after: ndarray of shape (messages, M): ops that each message waits for already.
        senders: ndarray of shape (messages,): sender of each message, in send order.
        first: Number of the first message's op.
        window: Number of messages a sender has in flight.

    Returns:
        The ops to wait for, in rows of different lengths.
    """
    order = np.argsort(senders, kind="stable")
    # nth message of its own sender, in send order
    nth = np.arange(len(senders)) - np.searchsorted(senders[order], senders[order])
    before = np.full(len(senders), -1)
    has = np.flatnonzero(nth >= window)
    before[order[has]] = first + order[has - window]
    full = np.concatenate([after, before[:, None]], axis=1)
    keep = full >= 0
    return Waits(full[keep], np.concatenate([[0], np.cumsum(keep.sum(axis=1))]))
