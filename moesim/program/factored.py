"""Demands whose amounts are a product of a number per op and a number per resource, kept as these
numbers.

Traffic in which every source spreads its tokens alike (tokens of the source x share of the
destination) would fill N x N entries with 2 N numbers. These blocks answer what a bound asks,
totals and maxima, from the numbers alone.

Shape legend: I ops, J resources of the block.
"""

from dataclasses import dataclass

import numpy as np

from moesim.program.program import ENTRY_BYTES

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factored:
    """Demands ``row_I[i] * column_J[j]`` of ops i on resources j, where both belong together.

    An entry is there if ``outer_I[i] == outer_J[j]`` and ``inner_I[i] != inner_J[j]``: ports of one
    node without the device's own, NICs of all nodes without the own node's. Inner groups lie within
    outer groups.

    Attributes:
        ops_I: Ops.
        resources_J: Resources.
        row_I: Factor of each op.
        column_J: Factor of each resource.
        outer_I: Group an op belongs to; so outer_J for resources.
        inner_I: Group within it whose resources an op does not use; so inner_J for resources.
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
        """Total demand on each of its resources: ndarray of shape (J,)."""
        outer, inner = _group_sums(
            self.outer_I, self.inner_I, self.row_I, self.outer_J, self.inner_J
        )
        return self.column_J * (outer - inner)

    def largest_s_I(self, capacity_R: Array) -> Array:
        """Seconds of the largest entry of each op: ndarray of shape (I,)."""
        rate_J = self.column_J / capacity_R[self.resources_J]
        groups = int(max(self.outer_I.max(), self.outer_J.max())) + 1
        best, second = np.zeros(groups), np.zeros(groups)
        whose = np.full(groups, -1)
        order = np.argsort(rate_J, kind="stable")
        best[self.outer_J[order]] = rate_J[order]  # the last write, the largest, stays
        whose[self.outer_J[order]] = self.inner_J[order]
        others = order[self.inner_J[order] != whose[self.outer_J[order]]]
        second[self.outer_J[others]] = rate_J[others]
        own = whose[self.outer_I] == self.inner_I
        return self.row_I * np.where(own, second[self.outer_I], best[self.outer_I])

    def expanded_bytes(self) -> float:
        """Memory that `entries` takes at most."""
        return ENTRY_BYTES * len(self.ops_I) * len(self.resources_J)

    def entries(self) -> tuple[Array, Array, Array]:
        """(op, resource, amount) of every entry: I x J at most."""
        there = (self.outer_I[:, None] == self.outer_J) & (self.inner_I[:, None] != self.inner_J)
        i, j = np.nonzero(there)
        return self.ops_I[i], self.resources_J[j], self.row_I[i] * self.column_J[j]


def _group_sums(
    outer_I: Array, inner_I: Array, amount_I: Array, outer_J: Array, inner_J: Array
) -> tuple[Array, Array]:
    """Sums of amounts over each j's outer group, and over its inner group: two ndarrays of shape
    (J,).
    """
    outers = int(max(outer_I.max(), outer_J.max())) + 1
    inners = int(max(inner_I.max(), inner_J.max())) + 1
    by_outer = np.bincount(outer_I, amount_I, outers)
    by_inner = np.bincount(inner_I, amount_I, inners)
    return by_outer[outer_J], by_inner[inner_J]
