"""Time the expert phase of designs through moesim's kernels and through those of installed peers,
on the same inputs.

Each call is captured in a CUDA graph and replayed with L2 overwritten before each replay, like the
phases of `moesim_kernels.sources.triton`. A peer that fails, or whose result is another one, is
left out of the comparison, and says why in one line.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from moesim_kernels.ops.layer import expert_phase
from moesim_kernels.ops.operands import values
from moesim_kernels.ops.weights import LayerWeights
from moesim_kernels.sources.triton import Timer
from moesim_kernels.timing.bench import random_ids
from moesim_kernels.timing.peers import PEERS, Operands, Peer, agrees, missing_because

from moesim.design.candidate import Candidate, Workload
from moesim.errors import MoesimError
from moesim.units import US

OURS = "moesim"
#: columns of the rows
COLUMNS = ("candidate", "library", "version", "measured_us", "low_us", "high_us", "ratio")
_ZIPF = "zipf:"


def operands_of(
    candidate: Candidate, workload: Workload, device: torch.device
) -> tuple[Operands, LayerWeights]:
    """Draw the inputs of a design's expert phase: tokens, distinct experts of each (as skewed as
    the workload where its routing is Zipf's law, otherwise uniform), and weights.

    Raises:
        MoesimError: The kernels do not compute this layer, or not in bfloat16.
    """
    layer = candidate.layer
    skew = float(workload.routing.removeprefix(_ZIPF)) if workload.routing.startswith(_ZIPF) else 0
    weights = LayerWeights.random(layer, workload.seed, None, device)
    if values(weights.w_down).dtype != torch.bfloat16:
        raise MoesimError(f"peers are timed in bfloat16, not {layer.precision}")
    ids_TK = random_ids(
        workload.num_tokens_per_device,
        layer.num_experts,
        layer.top_k,
        skew=skew,
        seed=workload.seed,
        device=device,
    )
    generator = torch.Generator(device).manual_seed(workload.seed + 1)
    x_TH = torch.empty(len(ids_TK), layer.hidden_size, dtype=torch.bfloat16, device=device)
    return (
        Operands(
            x_TH=x_TH.normal_(generator=generator),
            ids_TK=ids_TK,
            weights_TK=torch.full(ids_TK.shape, 1.0 / layer.top_k, device=device),
            w_gate_up=values(weights.w_gate_up),
            w_down=values(weights.w_down),
        ),
        weights,
    )


def time_beside(
    candidates: Sequence[Candidate],
    workload: Workload,
    timer: Timer,
    device: torch.device,
    *,
    until: float,
    tell: Callable[[str], None],
    peers: Sequence[Peer] = PEERS,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Time the expert phase of each design through moesim's kernels and through the peers' here.

    Args:
        candidates: Designs on one device.
        workload: Tokens and their routing.
        timer: Function that times a call.
        device: Device that holds the tensors.
        until: `time.monotonic` after which no further design is begun.
        tell: Function that is told what is being timed.
        peers: Libraries to look for.

    Returns:
        Rows of `COLUMNS`, moesim's first for each design, ``ratio`` being moesim's time over the
        library's; and a line for each library that is missing, fails or computes something else.
    """
    reasons = {peer.name: missing_because(peer) for peer in peers}
    here = [peer for peer in peers if reasons[peer.name] is None]
    notes = dict.fromkeys(f"{name}: {why}" for name, why in reasons.items() if why is not None)
    rows: list[dict[str, Any]] = []
    for number, candidate in enumerate(candidates, 1):
        if not here or time.monotonic() > until:
            break
        names = ", ".join(peer.name for peer in here)
        tell(f"beside {names}: {number} of {len(candidates)}: {candidate.label}")
        try:
            operands, weights = operands_of(candidate, workload, device)
            o = operands
            row, out_TH = _timed(
                lambda o=o, w=weights: expert_phase(o.x_TH, o.ids_TK, o.weights_TK, w), timer
            )
        except (MoesimError, ValueError) as error:
            notes[f"{candidate.label}: {error}"] = None
            continue
        ours = row["measured_us"]
        rows.append({"candidate": candidate.label, "library": OURS, "ratio": 1.0, **row})
        for peer in here:
            # Whatever it raises is the peer's, and no reason to lose the others' times.
            try:
                row, found_TH = _timed(peer.prepare(operands), timer)
            except Exception as error:
                first = str(error).strip().partition("\n")[0]
                notes[f"{peer.name} {peer.version}: {type(error).__name__}: {first}"] = None
                continue
            if peer.exact and not agrees(found_TH.reshape(out_TH.shape), out_TH):
                notes[f"{peer.name} {peer.version}: computes something else"] = None
                continue
            found = {
                "library": peer.name,
                "version": peer.version,
                "ratio": ours / row["measured_us"],
            }
            rows.append({"candidate": candidate.label, **found, **row})
    return rows, list(notes)


def _timed(call: Callable[[], torch.Tensor], timer: Timer) -> tuple[dict[str, float], torch.Tensor]:
    """Return the quantiles of a call's times with a cold L2, in microseconds, and its result."""
    # The result first: libraries may reuse its memory while they are timed.
    result = call().clone()
    low, median, high = np.percentile(timer(call, True), (10, 50, 90)) / US
    return {"measured_us": float(median), "low_us": float(low), "high_us": float(high)}, result
