"""Sparse and factored demands for the fluid engine, and sums of what ops put on resources.

A block of factored demands (`moesim.program.factored`) puts ``row_i column_j`` of op i on every
resource j of its outer group, except those of its own inner group. The load of resource j is
therefore

    own_j + k_j (A[outer of j] - E[inner of j])

where ``own_j`` are its sparse entries, ``k_j`` is the column over the capacity, and A and E are
sums of rows times speeds over the ops of a group.

Shape legend: B memberships of ops in blocks, C memberships of resources, O outer groups of all
blocks, I inner groups of all blocks.
"""

from typing import NamedTuple

import numpy as np

from moesim.compiled import compiled
from moesim.program.factored import Factored
from moesim.program.program import Program, pointers

Array = np.ndarray


class Entries(NamedTuple):
    """Sparse shares by op, and by resource."""

    ptr: Array
    res: Array
    share: Array
    col_ptr: Array
    col_op: Array


class Members(NamedTuple):
    """Memberships in the groups of blocks: of ops with their rows over their solo times, of
    resources with their columns over their capacities; and of every outer group its ops, its
    largest column, and its resources.
    """

    op_ptr: Array
    op_outer: Array
    op_inner: Array
    op_row: Array
    res_ptr: Array
    res_outer: Array
    res_inner: Array
    res_column: Array
    outer_ptr: Array
    outer_member: Array
    member_op: Array
    largest_O: Array
    port_ptr: Array
    ports: Array


class GroupSums(NamedTuple):
    """Sums over some ops: of sparse shares by resource, of rows by outer and by inner group."""

    own_R: Array
    outer_O: Array
    inner_I: Array


def entries_of(program: Program, solo: Array) -> Entries:
    """Return the sparse shares of a program, given the solo time of every op."""
    op, res = program.op_of_entry(), program.demand_resource
    order = np.argsort(res, kind="stable")
    return Entries(
        program.demand_ptr,
        res,
        program.demand_s() / solo[op],
        pointers(np.bincount(res, minlength=len(program.capacity_R))),
        op[order],
    )


def members_of(program: Program, solo: Array) -> Members:
    """Return the memberships in the blocks of a program, all of which are `Factored`."""
    # per block: op, row, outer and inner group; then resource, column, outer and inner group
    of_ops: list[tuple[Array, ...]] = []
    of_resources: list[tuple[Array, ...]] = []
    outers = inners = 0
    for block in program.factored:
        assert isinstance(block, Factored), "the caller expands any other"
        op_I, resource_J = block.ops_I, block.resources_J
        # an op without a solo time has no resource in its group
        row_I = np.divide(block.row_I, solo[op_I], out=np.zeros(len(op_I)), where=solo[op_I] > 0)
        column_J = block.column_J / program.capacity_R[resource_J]
        # groups are numbered through over all blocks
        rows = op_I, row_I, block.outer_I + outers, block.inner_I + inners
        columns = resource_J, column_J, block.outer_J + outers, block.inner_J + inners
        of_ops.append(tuple(a[row_I > 0] for a in rows))
        of_resources.append(tuple(a[column_J > 0] for a in columns))
        outers += 1 + int(max(block.outer_I.max(), block.outer_J.max()))
        inners += 1 + int(max(block.inner_I.max(), block.inner_J.max()))
    op_B, row_B, outer_B, inner_B = (np.concatenate(a) for a in zip(*of_ops, strict=True))
    res_C, column_C, outer_C, inner_C = (np.concatenate(a) for a in zip(*of_resources, strict=True))
    by_op, by_res = np.argsort(op_B, kind="stable"), np.argsort(res_C, kind="stable")
    outer_B, inner_B, row_B, op_B = outer_B[by_op], inner_B[by_op], row_B[by_op], op_B[by_op]
    by_outer = np.argsort(outer_B, kind="stable")
    largest_O = np.zeros(outers)
    np.maximum.at(largest_O, outer_C, column_C)
    return Members(
        pointers(np.bincount(op_B, minlength=program.num_ops)),
        outer_B,
        inner_B,
        row_B,
        pointers(np.bincount(res_C, minlength=len(program.capacity_R))),
        outer_C[by_res],
        inner_C[by_res],
        column_C[by_res],
        pointers(np.bincount(outer_B, minlength=outers)),
        by_outer,
        op_B,
        largest_O,
        pointers(np.bincount(outer_C, minlength=outers)),
        res_C[np.argsort(outer_C, kind="stable")],
    )


@compiled()
def add(i, amount, entries, members, sums):
    """Add ``amount`` times the shares of op i to sums."""
    for e in range(entries.ptr[i], entries.ptr[i + 1]):
        sums.own_R[entries.res[e]] += amount * entries.share[e]
    for m in range(members.op_ptr[i], members.op_ptr[i + 1]):
        sums.outer_O[members.op_outer[m]] += amount * members.op_row[m]
        sums.inner_I[members.op_inner[m]] += amount * members.op_row[m]


@compiled()
def load(r, members, sums):
    """Return what sums say of resource r."""
    total = sums.own_R[r]
    for m in range(members.res_ptr[r], members.res_ptr[r + 1]):
        outer = sums.outer_O[members.res_outer[m]]
        total += members.res_column[m] * (outer - sums.inner_I[members.res_inner[m]])
    return total


@compiled()
def clear(sums):
    """Set all sums to 0."""
    sums.own_R[:] = 0.0
    sums.outer_O[:] = 0.0
    sums.inner_I[:] = 0.0
