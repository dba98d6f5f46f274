"""Find the best possible balance by integer programming (HiGHS through SciPy), as a reference for
small cases.

x[e, r, c] is the number of copies on rank r if expert e has c copies in total, and y[e, c] says
whether it has c copies. The program minimizes M subject to sum of x[e, r, c] * load_e / c <= M *
speed_r for every rank.

Shape legend: E experts, W ranks, C possible numbers of copies, P slots.
"""

from dataclasses import dataclass

import numpy as np

from moesim.errors import CapacityError, ConfigError
from moesim.placement.setting import Setting

Array = np.ndarray
#: largest number of integer variables for which the solver is started
_MOST_VARIABLES = 20_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exact:
    """A placement, and a bound on the best possible one.

    Attributes:
        expert_P: ndarray of shape (P,): expert of each slot, in order of ranks.
        rank_P: ndarray of shape (P,): rank of each slot.
        makespan: Load of the busiest rank over its speed.
        bound: Lower bound on the makespan of any placement.
        optimal: Whether makespan and bound agree within the tolerance of the solver.
    """

    expert_P: Array
    rank_P: Array
    makespan: float
    bound: float
    optimal: bool


def exact_slots(
    load_E: Array, num_ranks: int, num_replicas: int, setting: Setting, *, seconds: float = 60.0
) -> Exact:
    """Find the placement with the least load of the busiest rank.

    Args:
        load_E: ndarray of shape (E,): load of each expert.
        num_ranks: Number of ranks W.
        num_replicas: Number of slots beyond E.
        setting: Speeds and memory of the ranks; nodes do not affect balance.
        seconds: Time after which the solver stops with the best placement found.

    Raises:
        ConfigError: There are too many variables, or no placement was found in time.
        CapacityError: No placement fits in memory.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    num_experts, most = len(load_E), num_replicas + 1
    num_x = num_experts * num_ranks * most
    if num_x > _MOST_VARIABLES:
        raise ConfigError(
            f"placement: exact takes experts x ranks x (replicas + 1) up to {_MOST_VARIABLES}, "
            f"got {num_x}"
        )
    speed_W, room_W = (
        setting.speeds(num_ranks),
        setting.rooms(num_experts + num_replicas, num_ranks),
    )
    scale = max(float(load_E.sum()) / float(speed_W.sum()), 1e-300)
    x = np.arange(num_x).reshape(num_experts, num_ranks, most)
    y = num_x + np.arange(num_experts * most).reshape(num_experts, most)
    total = num_x + y.size + 1
    copies = np.arange(1, most + 1)
    share_EC = load_E[:, None] / copies / scale
    rows: list[tuple[Array, Array]] = []
    low: list[float] = []
    high: list[float] = []

    def add(index: Array, value: Array, least: float, greatest: float) -> None:
        rows.append((np.ravel(index), np.ravel(value)))
        low.append(least)
        high.append(greatest)

    # every expert has exactly one number of copies, and as many of its copies sit on ranks
    for e in range(num_experts):
        add(y[e], np.ones(most), 1, 1)
        for c in range(most):
            add(np.append(x[e, :, c], y[e, c]), np.append(np.ones(num_ranks), -copies[c]), 0, 0)
    if num_replicas:
        add(y, np.tile(copies, num_experts), num_experts + num_replicas, num_experts + num_replicas)
    # the load of every rank is at most M times its speed; slots and memory are limited too
    for r in range(num_ranks):
        add(
            np.append(x[:, r, :].ravel(), total - 1),
            np.append(share_EC.ravel(), -speed_W[r]),
            -np.inf,
            0,
        )
        if setting.unequal:
            add(x[:, r, :], np.ones(num_experts * most), 0, room_W[r])
        else:
            add(x[:, r, :], np.ones(num_experts * most), room_W[r], room_W[r])
        if setting.room_bytes is not None:
            size = np.repeat(
                np.array(setting.expert_bytes) / max(max(setting.room_bytes), 1.0), most
            )
            add(
                x[:, r, :],
                size,
                0,
                max(setting.room_bytes[r], 0.0) / max(max(setting.room_bytes), 1.0),
            )
    upper = np.concatenate([np.broadcast_to(copies, x.shape).ravel(), np.ones(y.size), [np.inf]])
    lower = np.zeros(total)
    lower[-1] = 1.0  # the busiest rank has at least the mean load
    if not setting.unequal and setting.room_bytes is None:
        # ranks are interchangeable, so the heaviest expert may be fixed to the first
        heaviest = int(np.argmax(load_E))
        add(x[heaviest, 0], np.ones(most), 1, np.inf)
    pointers = np.concatenate([[0], np.cumsum([len(index) for index, _ in rows])])
    matrix = csr_array(
        (np.concatenate([v for _, v in rows]), np.concatenate([i for i, _ in rows]), pointers),
        shape=(len(rows), total),
    )
    found = milp(
        np.append(np.zeros(total - 1), 1.0),
        integrality=np.append(np.ones(total - 1), 0),
        bounds=Bounds(lower, upper),
        constraints=LinearConstraint(matrix, np.array(low), np.array(high)),
        options={"time_limit": seconds, "mip_rel_gap": 1e-4},
    )
    if found.x is None:
        if found.status == 2:
            raise CapacityError(
                f"placement: no placement of {num_experts} + {num_replicas} slots on {num_ranks} "
                "ranks fits in memory"
            )
        raise ConfigError(f"placement: exact found nothing in {seconds:g} s: {found.message}")
    count_ER = np.rint(found.x[:num_x]).astype(np.int64).reshape(x.shape).sum(axis=2)
    rank_P = np.repeat(np.tile(np.arange(num_ranks), num_experts), count_ER.ravel())
    expert_P = np.repeat(np.repeat(np.arange(num_experts), num_ranks), count_ER.ravel())
    order = np.argsort(rank_P, kind="stable")
    bound = (found.mip_dual_bound if found.mip_dual_bound is not None else 1.0) * scale
    return Exact(
        expert_P=expert_P[order],
        rank_P=rank_P[order],
        makespan=float(found.x[-1]) * scale,
        bound=bound,
        optimal=found.status == 0,
    )
