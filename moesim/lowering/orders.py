"""Rewrite the MoE block of a step by a named order.

A block is a list of pieces (`moesim.lowering.streams`). The usual order is
``shared_under_dispatch``: shared experts stand between the begin of the dispatch and its end, so
that they run while tokens travel. The others are made of it:

- ``serial``: work that stands there is done before anything travels.
- ``two_batch``: micro-batches of the whole step, each in the usual order, take turns on every
  device. Attention of one hides exchanges of the other, and every kernel runs on half the tokens
  (DeepSeek-V3, arXiv 2412.19437, 3.4).
- ``chunked``: only the exchange and the experts are divided. The gate and the shared experts see
  the whole batch; then one part computes while the next one travels (FasterMoE, PPoPP 2022; Tutel,
  arXiv 2206.03382).
"""

from collections.abc import Sequence

from moesim.design.schedule import StepOrder
from moesim.lowering.streams import (
    Arrive,
    AwaitFetch,
    BeginCombine,
    BeginDispatch,
    Fork,
    Local,
    Piece,
)


def with_shared(pieces: Sequence[Piece], shared: Piece) -> list[Piece]:
    """Return a block with shared experts while tokens travel or weights are copied, or before the
    experts if neither is.

    Args:
        pieces: The block.
        shared: The shared experts.
    """
    at = next(
        (i for i, piece in enumerate(pieces) if isinstance(piece, Arrive | AwaitFetch)),
        next((i for i, p in enumerate(pieces) if isinstance(p, Local) and p.name == "experts"), 0),
    )
    return [*pieces[:at], shared, *pieces[at:]]


def ordered(
    order: StepOrder, blocks: Sequence[list[Piece]], gate: Piece, shared: Piece | None
) -> list[list[Piece]]:
    """Return the block of every micro-batch of a step whose tokens travel.

    Args:
        order: Name of the order.
        blocks: The exchange and the experts of every part of the batch, without their gates.
        gate: The gate of a micro-batch, or of the whole batch.
        shared: The shared experts, likewise; None if there are none.
    """
    if order == "chunked":
        first, *others = blocks
        return [[gate, Fork(parts=[with_shared(first, shared) if shared else first, *others])]]
    whole = [[gate, *(with_shared(block, shared) if shared else block)] for block in blocks]
    return [_serial(block) for block in whole] if order == "serial" else whole


def _serial(pieces: Sequence[Piece]) -> list[Piece]:
    """Return a block in which nothing is done while tokens travel."""
    found: list[Piece] = []
    begun: int | None = None
    for piece in pieces:
        if begun is not None and isinstance(piece, Local):
            found.insert(begun, piece)
            begun += 1
            continue
        if isinstance(piece, BeginDispatch | BeginCombine):
            begun = len(found)
        elif isinstance(piece, Arrive):
            begun = None
        found.append(piece)
    return found
