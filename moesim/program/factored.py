"""Demands that are a product of one number per op and one number per resource, stored as these
numbers.

If every source spreads its tokens in the same proportions, its demands (tokens of the source x
share of the destination) would fill N x N entries with only 2 N numbers. A factored block computes
the totals and maxima that a bound needs from these numbers alone.

Shape legend: I ops, J resources of the block.
"""

from dataclasses import dataclass

import numpy as np

from moesim.program.program import ENTRY_BYTES

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factored:
    """Demands ``row_I[i] * column_J[j]`` of op i on resource j, for the pairs that have an entry.

    A pair has an entry if ``outer_I[i] == outer_J[j]`` and ``inner_I[i] != inner_J[j]``, that is,
    if both are in the same outer group and in different inner groups: the ports of a node except
    the device's own port, or the NICs of all nodes except its own node. Inner groups lie within
    outer groups.

    Attributes:
        ops_I: Index of each op.
        resources_J: Index of each resource.
        row_I: Factor of each op.
        column_J: Factor of each resource.
        outer_I: Outer group of each op; ``outer_J`` is that of each resource.
        inner_I: Inner group of each op, whose resources the op does not use; ``inner_J`` is that of
            each resource.
    """

    ops_I: Array
    resources_J: Array
    row_I: Array
    column_J: Array
    outer_I: Array
    outer_J: Array
    inner_I: Array
    inner_J: Array

    def demand_J(self) -> Array:
        """Return the total demand on each resource of the block: ndarray of shape (J,)."""
        outer, inner = _group_sums(
            self.outer_I, self.inner_I, self.row_I, self.outer_J, self.inner_J
        )
        return self.column_J * (outer - inner)

    def largest_s_I(self, capacity_R: Array) -> Array:
        """Return the seconds of the largest entry of each op: ndarray of shape (I,)."""
        rate_J = self.column_J / capacity_R[self.resources_J]
        groups = int(max(self.outer_I.max(), self.outer_J.max())) + 1
        best, second = np.zeros(groups), np.zeros(groups)
        whose = np.full(groups, -1)
        order = np.argsort(rate_J, kind="stable")
        # rates ascend, so the last write to a group is its largest rate
        best[self.outer_J[order]] = rate_J[order]
        whose[self.outer_J[order]] = self.inner_J[order]
        others = order[self.inner_J[order] != whose[self.outer_J[order]]]
        second[self.outer_J[others]] = rate_J[others]
        # an op in the inner group of that resource does not use it, so that the largest rate of
        # another inner group counts
        own = whose[self.outer_I] == self.inner_I
        return self.row_I * np.where(own, second[self.outer_I], best[self.outer_I])

    def expanded_bytes(self) -> float:
        """Return an upper bound on the memory of `entries`."""
        return ENTRY_BYTES * len(self.ops_I) * len(self.resources_J)

    def entries(self) -> tuple[Array, Array, Array]:
        """Return (op, resource, amount) of every entry > 0; there are at most I x J."""
        there = (self.outer_I[:, None] == self.outer_J) & (self.inner_I[:, None] != self.inner_J)
        # a factor of 0 says that there is no entry
        there &= (self.row_I > 0)[:, None] & (self.column_J > 0)
        i, j = np.nonzero(there)
        return self.ops_I[i], self.resources_J[j], self.row_I[i] * self.column_J[j]


def _group_sums(
    outer_I: Array, inner_I: Array, amount_I: Array, outer_J: Array, inner_J: Array
) -> tuple[Array, Array]:
    """Return the sum of amounts over the outer group of each resource j and over its inner group:
    two ndarrays of shape (J,).
    """
    outers = int(max(outer_I.max(), outer_J.max())) + 1
    inners = int(max(inner_I.max(), inner_J.max())) + 1
    by_outer = np.bincount(outer_I, amount_I, outers)
    by_inner = np.bincount(inner_I, amount_I, inners)
    return by_outer[outer_J], by_inner[inner_J]
