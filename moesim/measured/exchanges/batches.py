"""Price measured communication rows; only this module says what a row asks of a kernel.

Fitting and predicting both use `batches`, so there is one model of a row. A batch holds all rows of
one system and one class (collective, direction or phase); its fields are arrays over rows, which
the kernels price elementwise.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moesim.costs.calibration import Calibration
from moesim.costs.comm.bridge import host_interval
from moesim.costs.comm.deepep import DeepEpLowLatency, DeepEpNormal, interval_of
from moesim.costs.comm.nccl import COLLECTIVES, Nccl
from moesim.costs.comm.nvl72 import Nvl72, Phase
from moesim.costs.comm.work import Direction, Work
from moesim.measured.exchanges.table import MeasuredSystem, systems
from moesim.units import KIB

#: family -> its calibration file
CALIBRATION = {
    "nccl": "nccl",
    "deepep_normal": "deepep-normal",
    "deepep_ll": "deepep-ll",
    "nvl72_alltoall": "nvl72",
}
#: name of a format in the rows -> payload bytes per element
NCCL_BYTES = {"half": 2.0, "int8": 1.0}
MOE_BYTES = {"bfloat16": 2.0, "fp8": 1.0, "nvfp4": 0.5}
#: (op_name, kernel_source) of TensorRT-LLM's rows -> the phase they time
PHASES: dict[tuple[str, str], Phase] = {
    ("alltoall_dispatch", "NVLinkOneSided"): "dispatch_one_sided",
    ("alltoall_combine", "NVLinkOneSided"): "combine_one_sided",
    ("alltoall_dispatch", "NVLinkTwoSided"): "dispatch_two_sided",
    ("alltoall_combine", "NVLinkTwoSided"): "combine_two_sided",
    ("alltoall_combine_low_precision", "NVLinkTwoSided"): "combine_low_precision",
    ("alltoall_prepare", "NVLinkTwoSided"): "prepare",
}
_LEGACY_BEFORE = (2, 25)
#: bytes below which NCCL's rows have intervals of their own: they take steps of a few us that
#: depend on what else the machine did
SHORT_BYTES = 64 * KIB
#: classes of residuals of NCCL's short and long rows, after the name of the collective
SHORT, LONG = "_short", "_long"
#: DeepEP's collector limits a token to the nodes of its best four groups, one group per node
_NODE_LIMIT = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Rows that are priced in one call.

    Attributes:
        at: ndarray of int, shape (rows,): positions of the rows in the table.
        system: The package's name of the system.
        quantity: ``dispatch``, ``combine`` or empty, see `table.quantities`.
        kind: Collective, direction or phase.
        residual: Class of residuals: the kind, and for NCCL whether the rows are short or long.
        domains: Number of domains of DeepEP's rows.
        host: What a host between PCIe switches makes of the interval, see
            `moesim.costs.comm.bridge.host_interval`.
        seconds: Function from a calibration to predicted seconds, ndarray of shape (rows,).
    """

    at: np.ndarray
    system: str
    quantity: str
    kind: str
    residual: str
    seconds: Callable[[Calibration], np.ndarray]
    domains: float = 1.0
    host: tuple[Any, Any] = (1.0, 1.0)

    def interval(self, calibration: Calibration) -> tuple[Any, Any]:
        """Return the P10 and P90 of measured / predicted, of all rows or of each."""
        low, high = interval_of(calibration, self.residual, self.domains)
        return low * self.host[0], high * self.host[1]

    def level(self, calibration: Calibration) -> str:
        """Return how far the prediction can be trusted."""
        return "none" if systems()[self.system].bridge_bytes_per_s else calibration.level


def batches(rows) -> list[Batch]:
    """Split checked rows of one family into batches.

    Args:
        rows: DataFrame of one family with its `table.COLUMNS`, ``system`` and, for NCCL and if
            known, ``version`` or ``dataset``.
    """
    family, found = rows["family"].iloc[0], []
    rows = rows.assign(
        _at=np.arange(len(rows)), _legacy=_legacy(rows) if family == "nccl" else False
    )
    for name, part in rows.groupby("system"):
        system = systems()[str(name)]
        if family == "nccl":
            for (collective, short), some in part.groupby(["op_name", is_short(part)]):
                seconds = _nccl(some, system, collective)
                size = SHORT if short else LONG
                batch = _batch(some, name, "", collective, seconds, f"{collective}{size}")
                ports = system.ports(some["num_gpus"].to_numpy(dtype=np.float64))
                host = host_interval(ports, ring=collective != "alltoall")
                found.append(replace(batch, host=host))
        elif family == "nvl72_alltoall":
            phases = [
                PHASES[key] for key in zip(part["op_name"], part["kernel_source"], strict=True)
            ]
            for phase, some in part.groupby(np.array(phases)):
                found.append(_batch(some, name, "", phase, _nvl72(some, system, phase)))
        else:
            make = _normal if family == "deepep_normal" else _low_latency
            ranks = part["node_num"].astype(int) * system.ranks_per_node
            for domains, some in part.groupby(np.maximum(ranks / system.ranks_per_domain, 1.0)):
                found += [
                    replace(
                        _batch(some, name, way, way, make(some, system, way)),
                        domains=float(domains),
                    )
                    for way in ("dispatch", "combine")
                ]
    return found


def _batch(part, system: str, quantity: str, kind: str, seconds, residual: str = "") -> Batch:
    return Batch(
        at=part["_at"].to_numpy(),
        system=str(system),
        quantity=quantity,
        kind=kind,
        residual=residual or kind,
        seconds=seconds,
    )


def _sent_bytes(rows) -> np.ndarray:
    """Return the bytes of the buffer of NCCL rows: ndarray of shape (rows,)."""
    return (rows["message_size"].astype(float) * rows["nccl_dtype"].map(NCCL_BYTES)).to_numpy()


def is_short(rows) -> np.ndarray:
    """Return which NCCL rows are shorter than `SHORT_BYTES`: ndarray of bool, shape (rows,)."""
    return _sent_bytes(rows) < SHORT_BYTES


def _numbers(part, *columns: str) -> list[np.ndarray]:
    return [part[c].to_numpy(dtype=np.float64) for c in columns]


def _work(**fields: Any) -> Work:
    """Return a `Work` whose sizes are arrays, too, with one device per row."""
    zero = np.zeros_like(fields["tokens_D"])
    return Work(**({"far_bytes_D": zero, "top_k": 1, "num_experts": 1, "hidden_size": 1} | fields))


def _nccl(part, system: MeasuredSystem, collective) -> Callable[[Calibration], np.ndarray]:
    [ranks] = _numbers(part, "num_gpus")
    sent = _sent_bytes(part)
    assert collective in COLLECTIVES
    near_peers = np.minimum(ranks, system.ranks_per_domain) - 1
    near, far = sent * near_peers / ranks, sent * (ranks - 1 - near_peers) / ranks
    legacy: Any = part["_legacy"].to_numpy(dtype=bool)
    return lambda calibration: Nccl(
        ports=system.ports(ranks), calibration=calibration, collective=collective, legacy=legacy
    ).time_s(near, far)


def _legacy(rows) -> np.ndarray:
    """Return which NCCL rows ran a version before 2.25: ndarray of bool, shape (rows,).

    The column ``version`` decides; folders are named after versions, too, but some hold another
    version. The package's tables of NCCL 2.23 have no such column. Where it is empty and other rows
    have it, ``dataset`` decides; a row without either is old.
    """
    versions = [_version(v) for v in rows["version"]] if "version" in rows else [None] * len(rows)
    folders = (
        [_version(str(d).removeprefix("nccl/")) for d in rows["dataset"]]
        if "dataset" in rows
        else versions
    )
    fallback = (0, 0) if any(versions) else (99, 0)
    return np.array(
        [(v or f or fallback) < _LEGACY_BEFORE for v, f in zip(versions, folders, strict=True)]
    )


def _version(text: object) -> tuple[int, int] | None:
    """Return (2, 27) for ``2.27.3``, and None for anything that is not a version."""
    digits = str(text).split(".")
    return (
        (int(digits[0]), int(digits[1]))
        if len(digits) > 1 and all(d.isdigit() for d in digits[:2])
        else None
    )


def distinct_ranks(num_experts, top_k, num_ranks) -> np.ndarray:
    """Return the expected distinct ranks among uniformly random choices without repetition: R (1 -
    C(E - E/R, k) / C(E, k)).

    The arguments are arrays that broadcast.

    Args:
        num_experts: Number of experts E of all ranks.
        top_k: Number of choices k.
        num_ranks: Number of ranks R.
    """
    from scipy.special import gammaln

    experts, choices, ranks = np.broadcast_arrays(num_experts, top_k, num_ranks)
    others = experts - experts / ranks
    some = np.maximum(others, choices)

    def log_choose(n: np.ndarray) -> np.ndarray:
        return gammaln(n + 1) - gammaln(choices + 1) - gammaln(n - choices + 1)

    missed = np.where(others >= choices, np.exp(log_choose(some) - log_choose(experts)), 0.0)
    return ranks * (1.0 - missed)


def _normal(
    part, system: MeasuredSystem, direction: Direction
) -> Callable[[Calibration], np.ndarray]:
    nodes, hidden, tokens, top_k, experts, sms = _numbers(
        part, "node_num", "hidden_size", "num_token", "num_topk", "num_experts", f"{direction}_sms"
    )
    per_node, ranks = system.ranks_per_node, nodes * system.ranks_per_node
    hit = np.minimum(nodes, _NODE_LIMIT)
    copies = tokens * distinct_ranks(experts * hit / nodes, top_k, hit * per_node)
    # each domain that a token reaches beyond its own costs one crossing of the NIC
    domains = np.maximum(ranks / system.ranks_per_domain, 1.0)
    reached = np.minimum(domains, _NODE_LIMIT)
    reached = np.where(
        domains > _NODE_LIMIT, reached, distinct_ranks(1e6 * reached, top_k, reached)
    )
    crossings = tokens * reached * (1.0 - 1.0 / domains)
    near_ranks = np.minimum(ranks, system.ranks_per_domain)
    element = 1.0 if direction == "dispatch" else 2.0

    def seconds(calibration: Calibration) -> np.ndarray:
        kernel = DeepEpNormal(ports=system.ports(ranks), calibration=calibration, num_sms=sms)  # type: ignore[arg-type]
        size: Any = kernel.copy_bytes(direction, hidden, top_k, element)  # type: ignore[arg-type]
        work = _work(
            tokens_D=tokens,
            copies_D=copies,
            near_bytes_D=copies * size * (near_ranks - 1) / near_ranks,
            far_bytes_D=crossings * size,
            copy_bytes=size,
        )
        return kernel.stages(direction, work).time_s

    return seconds


def _low_latency(
    part, system: MeasuredSystem, direction: Direction
) -> Callable[[Calibration], np.ndarray]:
    nodes, hidden, tokens, top_k, experts = _numbers(
        part, "node_num", "hidden_size", "num_token", "num_topk", "num_experts"
    )
    ranks, copies = nodes * system.ranks_per_node, tokens * top_k
    near_ranks = np.minimum(ranks, system.ranks_per_domain)
    element = 1.0 if direction == "dispatch" else 2.0

    def seconds(calibration: Calibration) -> np.ndarray:
        kernel = DeepEpLowLatency(ports=system.ports(ranks), calibration=calibration)
        size: Any = kernel.copy_bytes(direction, hidden, 1, element)  # type: ignore[arg-type]
        work = _work(
            tokens_D=tokens,
            copies_D=copies,
            near_bytes_D=copies * size * (near_ranks - 1) / ranks,
            far_bytes_D=copies * size * (ranks - near_ranks) / ranks,
            num_experts=experts,
            copy_bytes=size,
        )
        return kernel.stages(direction, work).time_s

    return seconds


def balanced_copies(num_experts: int, top_k: int, num_ranks: int) -> tuple[float, float]:
    """Return the copies per token, and those to other ranks, when token t's choice j is expert (t +
    j ceil(E/k)) mod E.
    """
    stride = -(-num_experts // top_k)
    chosen = (np.arange(num_experts)[:, None] + stride * np.arange(top_k)) % num_experts
    hit = np.zeros((num_experts, num_ranks), dtype=bool)
    np.put_along_axis(hit, chosen * num_ranks // num_experts, True, axis=1)
    copies = float(hit.sum(axis=1).mean())
    return copies, copies * (1.0 - 1.0 / num_ranks)  # tokens of all ranks choose in the same way


def _nvl72(part, system: MeasuredSystem, phase: Phase) -> Callable[[Calibration], np.ndarray]:
    tokens, ranks, hidden = _numbers(part, "num_tokens", "moe_ep_size", "hidden_size")
    shapes = list(
        zip(
            part["num_experts"].astype(int),
            part["topk"].astype(int),
            part["moe_ep_size"].astype(int),
            strict=True,
        )
    )
    known = {shape: balanced_copies(*shape) for shape in set(shapes)}
    copies, remote = tokens * np.array([known[s] for s in shapes]).T
    element = np.full(len(part), 0.5 if phase == "combine_low_precision" else 2.0)
    if phase.startswith("dispatch"):
        element = part["moe_dtype"].map(MOE_BYTES).to_numpy()

    def seconds(calibration: Calibration) -> np.ndarray:
        kernel = Nvl72(ports=system.ports(ranks), calibration=calibration)
        per_element = np.array([kernel.copy_bytes("dispatch", 1, 1, e) for e in element])
        size: Any = hidden * per_element
        if phase == "prepare":
            size = np.zeros(len(part))
        near_ranks = np.minimum(ranks, system.ranks_per_domain)
        near = remote * size * (near_ranks - 1) / np.maximum(ranks - 1, 1)
        work = _work(
            tokens_D=tokens,
            copies_D=copies,
            near_bytes_D=near,
            far_bytes_D=remote * size - near,
            copy_bytes=size,
        )
        return kernel.time_s(phase, work)

    return seconds
