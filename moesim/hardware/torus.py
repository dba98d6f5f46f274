"""Find the routes between the nodes of a mesh, a torus, or a twisted torus.

An axis of n nodes that closes to a ring is walked in the shorter direction; half way around an even
ring both directions are equally short and share the traffic. A k x k x 2k *twisted* torus closes
its short axes with a shift of k along the long one (Camara et al. 2010, Twisted torus topologies
for enhanced interconnection networks; TPU v4, Jouppi et al. 2023, arXiv 2304.01433): its shortest
routes are found among the routes of all equivalent displacements.

Shape legend: L nodes, A axes, V displacements, C routes of one displacement, O orders of axes.
"""

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """The tables from which a route is walked.

    Attributes:
        coord_LA: ndarray of shape (L, A): coordinates of each node.
        next_LX: ndarray of shape (L, 2 A): neighbor along +axis 0, -axis 0, +axis 1, ...; -1 if
            there is none.
        key_A: ndarray of shape (A,): weights that turn a displacement, shifted to >= 0, into its
            index.
        shift_A: ndarray of shape (A,): this shift, n - 1 for each axis.
        steps_VCA: ndarray of shape (V, C, A): signed hops of each route of a displacement.
        ways_V: ndarray of shape (V,): number of routes of each displacement.
        orders_OA: ndarray of shape (O, A): orders in which axes are walked; traffic is split evenly
            among them.
    """

    coord_LA: Array
    next_LX: Array
    key_A: Array
    shift_A: Array
    steps_VCA: Array
    ways_V: Array
    orders_OA: Array


def wraps(axes: list[int], multiple_of: int) -> list[bool]:
    """Return which axes close to rings: those with more than two nodes whose size is a multiple of
    ``multiple_of`` (none for 0).
    """
    return [multiple_of > 0 and n > 2 and n % multiple_of == 0 for n in axes]


def grid(axes: list[int], ring: list[bool], *, twisted: bool, multi_path: bool) -> Grid:
    """Return the tables of a grid with these axes.

    Args:
        axes: Size of each of A axes; the last axis varies fastest in node numbers.
        ring: Whether each axis closes to a ring.
        twisted: Whether the short axes of a k x k x 2k torus close with a shift along the last one.
        multi_path: Whether to use every order of axes in equal parts; otherwise axis 0 is walked
            first (dimension-ordered routing).
    """
    size = np.array(axes)
    coord = np.stack(np.unravel_index(np.arange(size.prod()), axes), axis=1)
    closing = np.diag(size)
    if twisted:
        # short axes of any size close, since the shift gives a node on an axis of two nodes two
        # different neighbors
        closing[0, -1] = closing[1, -1] = axes[0]
        ring = [True] * len(axes)
    following = np.full((len(coord), 2 * len(axes)), -1)
    for axis, way in product(range(len(axes)), (0, 1)):
        moved = coord.copy()
        moved[:, axis] += 1 - 2 * way
        out = (moved[:, axis] < 0) | (moved[:, axis] >= axes[axis])
        moved[out] -= (1 - 2 * way) * closing[axis]
        moved[:, -1] = np.where(out & twisted, moved[:, -1] % axes[-1], moved[:, -1])
        node = np.ravel_multi_index(tuple(moved.T), axes)
        following[:, 2 * axis + way] = np.where(out & (not ring[axis]), -1, node)
    span = 2 * size - 1
    key = np.concatenate([np.cumprod(span[::-1])[::-1][1:], [1]])
    ways, steps = _twisted_ways(axes, span, closing) if twisted else _plain_ways(axes, ring)
    orders = list(permutations(range(len(axes)))) if multi_path else [tuple(range(len(axes)))]
    return Grid(
        coord_LA=coord.astype(np.int64),
        next_LX=following.astype(np.int64),
        key_A=key.astype(np.int64),
        shift_A=(size - 1).astype(np.int64),
        steps_VCA=steps,
        ways_V=ways,
        orders_OA=np.array(orders, dtype=np.int64),
    )


def _plain_ways(axes: list[int], ring: list[bool]) -> tuple[Array, Array]:
    """Return the number of routes of each displacement, and their hops, where each axis is walked
    on its own: as `Grid.ways_V` and `Grid.steps_VCA`.
    """
    # the hops along each axis: one way, or two where both directions are equally short
    along, counts = [], []
    for n, closed in zip(axes, ring, strict=True):
        apart = np.arange(1 - n, n)
        around = apart % n
        half = closed & (2 * around == n)
        shorter = np.where(2 * around <= n, around, around - n) if closed else apart
        along.append(np.stack([shorter, shorter - np.where(half, n, 0)]))
        counts.append(1 + half)
    number = np.stack([c.ravel() for c in np.meshgrid(*counts, indexing="ij")])
    ways = number.prod(axis=0)
    steps = np.zeros((len(ways), int(ways.max()), len(axes)), dtype=np.int64)
    for choice in product((0, 1), repeat=len(axes)):
        chosen = np.array(choice)[:, None]
        there = (chosen < number).all(axis=0)
        # routes are counted like digits, the last axis first
        place = np.zeros(len(ways), dtype=np.int64)
        for digit, base in zip(choice, number, strict=True):
            place = place * base + digit
        hops = np.meshgrid(*(a[c] for a, c in zip(along, choice, strict=True)), indexing="ij")
        every = np.stack([h.ravel() for h in hops], axis=1)
        steps[np.flatnonzero(there), place[there]] = every[there]
    return ways, steps


def _twisted_ways(axes: list[int], span: Array, closing: Array) -> tuple[Array, Array]:
    """Return what `_plain_ways` does, where closing an axis shifts along the last one."""
    turns = np.array(list(product((-2, -1, 0, 1, 2), repeat=len(axes)))) @ closing
    found = []
    for apart in product(*(range(n) for n in span)):
        same = np.array(apart) - np.array(axes) + 1 + turns
        hops = np.abs(same).sum(axis=1)
        found.append(sorted({tuple(int(x) for x in way) for way in same[hops == hops.min()]}))
    steps = np.zeros((len(found), max(map(len, found)), len(axes)), dtype=np.int64)
    for v, ways in enumerate(found):
        steps[v, : len(ways)] = ways
    return np.array(list(map(len, found))), steps
