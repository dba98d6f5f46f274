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
    ways = [
        _ways(tuple(d - size + 1), axes, ring, closing) for d in product(*(range(n) for n in span))
    ]
    most = max(map(len, ways))
    steps = np.zeros((len(ways), most, len(axes)), dtype=np.int64)
    for v, found in enumerate(ways):
        steps[v, : len(found)] = found
    orders = list(permutations(range(len(axes)))) if multi_path else [tuple(range(len(axes)))]
    return Grid(
        coord_LA=coord.astype(np.int64),
        next_LX=following.astype(np.int64),
        key_A=key.astype(np.int64),
        shift_A=(size - 1).astype(np.int64),
        steps_VCA=steps,
        ways_V=np.array([len(w) for w in ways]),
        orders_OA=np.array(orders, dtype=np.int64),
    )


def _ways(
    displacement: tuple[int, ...], axes: list[int], ring: list[bool], closing: Array
) -> list[tuple[int, ...]]:
    """Return the shortest signed hops that lead from a node to the node ``displacement`` away."""
    if not (closing - np.diag(np.diag(closing))).any():
        each = []
        for d, n, closed in zip(displacement, axes, ring, strict=True):
            around = d % n
            if not closed:
                each.append([d])
            elif 2 * around == n:
                each.append([around, -around])
            else:
                each.append([around if 2 * around < n else around - n])
        return list(product(*each))
    turns = np.array(list(product((-2, -1, 0, 1, 2), repeat=len(axes))))
    same = np.array(displacement) + turns @ closing
    hops = np.abs(same).sum(axis=1)
    return sorted({tuple(int(x) for x in way) for way in same[hops == hops.min()]})
