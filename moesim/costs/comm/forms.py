"""What the closed forms of all communication kernels share.

Every form is: a start, a smooth maximum (p-norm) of stages that run side by side, and the fill of a
pipeline. They are elementwise: every argument may be a number or an ndarray, shapes broadcast,
seconds and bytes throughout.
"""

import numpy as np

from moesim.costs.comm.work import Array, Price, Work

#: of the p-norms over stages; 8 where NCCL has two protocols of which the slower decides
STAGE_NORM, PROTOCOL_NORM = 4.0, 8.0


def soft_maximum(*stages: Array | float, norm: float = STAGE_NORM) -> Array:
    """``(sum of stage**norm)**(1/norm)``: the largest stage, up to ``n**(1/norm)`` more where n are
    equal.

    Args:
        stages: Seconds >= 0, shapes that broadcast.
        norm: The p of the p-norm.
    """
    largest = np.maximum.reduce(np.broadcast_arrays(*stages))
    unit = np.where(largest > 0.0, largest, 1.0)
    return unit * sum((np.asarray(s) / unit) ** norm for s in stages) ** (1.0 / norm)


def fill(steady_s: Array, depth_s: Array | float) -> Array:
    """What filling and draining a pipeline adds to a steady state: all of a short one, ``depth_s``
    of a long one.
    """
    total = np.asarray(steady_s + depth_s)
    return depth_s * steady_s / np.where(total > 0.0, total, 1.0)


def per_unit(total: Array, count: Array) -> Array:
    """``total / count``, 0 where there is none."""
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
    """A closed form as demands: its stages, and as latency what it takes beyond the largest of
    them.

    Args:
        time_s: The closed form, ndarray of shape (D,), no less than any stage.
        work: What it was asked.
        sm_s: Stage of the SMs; ``near_s`` and ``far_s`` those of port and NIC, all in seconds,
            shape (D,).
        near_factor: Seconds of the port per byte, times its rate; ``far_factor`` the same of the
            NIC.
        num_sms: SMs it takes while it runs.
    """
    shape = np.shape(work.tokens_D)
    stages = np.stack(
        [np.broadcast_to(np.asarray(s, dtype=np.float64), shape) for s in (sm_s, near_s, far_s)]
    )
    latency = np.maximum(time_s - stages.max(axis=0), 0.0)
    names = np.array(["sm", "near", "far"])[stages.argmax(axis=0)]
    return Price(
        latency_s_D=latency,
        sm_s_D=stages[0],
        near_factor_D=np.broadcast_to(near_factor, shape),
        far_factor_D=np.broadcast_to(far_factor, shape),
        limiting_D=np.where(latency > stages.max(axis=0), "start", names),
        num_sms=num_sms,
    )
