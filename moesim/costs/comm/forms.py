"""Build the closed forms of all communication kernels from shared parts.

Every form consists of a start, a smooth maximum (p-norm) of stages that run side by side, and the
fill of a pipeline. The functions are elementwise: every argument may be a number or an ndarray, and
shapes broadcast. Units are seconds and bytes throughout.
"""

import numpy as np

from moesim.costs.comm.work import Array, Price, Work

#: p of the p-norms over stages; 8 where NCCL has several protocols of which one decides
STAGE_NORM, PROTOCOL_NORM = 4.0, 8.0


def soft_maximum(*stages: Array | float, norm: float = STAGE_NORM) -> Array:
    """Return ``(sum of stage**norm)**(1/norm)``: the largest stage, times up to ``n**(1/norm)``
    where n stages are equal.

    Args:
        stages: Seconds >= 0, of shapes that broadcast.
        norm: The p of the p-norm.
    """
    largest = np.maximum.reduce(np.broadcast_arrays(*stages))
    unit = np.where(largest > 0.0, largest, 1.0)
    return unit * sum((np.asarray(s) / unit) ** norm for s in stages) ** (1.0 / norm)


def soft_minimum(*stages: Array | float, norm: float) -> Array:
    """Return ``(sum of stage**-norm)**(-1/norm)``: the smallest stage, times down to
    ``n**(-1/norm)`` where n stages are equal.

    Args:
        stages: Seconds > 0, of shapes that broadcast.
        norm: The p of the p-norm.
    """
    smallest = np.minimum.reduce(np.broadcast_arrays(*stages))
    return smallest * sum((smallest / np.asarray(s)) ** norm for s in stages) ** (-1.0 / norm)


def fill(steady_s: Array, depth_s: Array | float) -> Array:
    """Return what filling and draining a pipeline adds to a steady state: all of a short steady
    state again, ``depth_s`` for a long one.
    """
    total = np.asarray(steady_s + depth_s)
    return depth_s * steady_s / np.where(total > 0.0, total, 1.0)


def per_unit(total: Array, count: Array) -> Array:
    """Return ``total / count``, or 0 where the count is 0."""
    count = np.asarray(count, dtype=np.float64)
    return np.where(count > 0.0, total / np.where(count > 0.0, count, 1.0), 0.0)


def priced(
    time_s: Array,
    work: Work,
    *,
    sm_s: Array | float,
    near_s: Array,
    far_s: Array,
    near_factor: Array | float,
    far_factor: float,
    num_sms: int,
) -> Price:
    """Turn a closed form into demands: its stages, and as latency what it takes beyond the largest
    stage.

    Args:
        time_s: ndarray of shape (D,): the closed form in seconds, no less than any stage.
        work: The work that is priced.
        sm_s: Seconds of the SM stage, of shape (D,).
        near_s: Seconds of the port stage, of shape (D,).
        far_s: Seconds of the NIC stage, of shape (D,).
        near_factor: Seconds of the port per byte, times its rate.
        far_factor: Seconds of the NIC per byte, times its rate.
        num_sms: SMs that the kernel takes while it runs.
    """
    shape = np.shape(work.tokens_D)
    sm, near, far = (
        np.broadcast_to(np.asarray(s, dtype=np.float64), shape) for s in (sm_s, near_s, far_s)
    )
    return Price(
        latency_s_D=np.maximum(time_s - np.maximum(np.maximum(sm, near), far), 0.0),
        sm_s_D=sm,
        near_factor_D=np.broadcast_to(near_factor, shape),
        far_factor_D=np.broadcast_to(far_factor, shape),
        near_s_D=near,
        far_s_D=far,
        num_sms=num_sms,
    )
