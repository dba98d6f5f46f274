"""Take one simulated MoE layer apart: where its time went, who was late and why, who sent what to
whom, and which experts were busy.

Shape legend: D devices, L slots of a device, N ops, S sources, R resources.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.engines.run import run
from moesim.lowering.traffic import AnyTraffic, Traffic
from moesim.page.charts import Axis, Chart, HeatChart
from moesim.page.topology import topology_chart
from moesim.program import Program, Timeline
from moesim.simulation.phases import critical_phases
from moesim.simulation.prepare import Prepared
from moesim.simulation.run import lower
from moesim.units import US

#: rows of the table of stragglers
_LATE = 8
#: experts of a device that are named
_NAMED = 8
#: devices beyond which maps of pairs are drawn by node
_MOST_PAIRS = 128
#: share of the lead of the last device that its experts must explain to be named
_EXPLAINS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Anatomy:
    """A layer taken apart.

    Attributes:
        phase_s: Phase -> seconds on the critical path, which sum to the layer's time.
        stragglers: A row per device, the latest first.
        charts: Maps of traffic, expert load and topology.
        notes: What could not be shown, and why.
    """

    phase_s: dict[str, float]
    stragglers: list[dict[str, Any]]
    charts: tuple[Chart, ...]
    notes: tuple[str, ...] = ()


def anatomy(prepared: Prepared) -> Anatomy:
    """Simulate a prepared layer by the fluid engine and take it apart."""
    program = lower(prepared)
    timeline = run(program, "flow")
    rows_D = prepared.traffic.counts_DL.sum(axis=1)
    busy = _busy(program, timeline)
    ratio_D = rows_D / rows_D.mean()
    topology = topology_chart(prepared.cluster, busy, ratio_D, _experts_of_devices(prepared))
    charts = [*load_charts(prepared.traffic, prepared), topology]
    notes = []
    if prepared.cluster.num_devices == 1:
        notes.append("A single device exchanges nothing, so there is no traffic to show.")
    elif not isinstance(prepared.traffic, Traffic):
        notes.append("Traffic of so many devices is expected, not drawn: it has no map of pairs.")
    return Anatomy(
        phase_s=critical_phases(program, timeline),
        stragglers=_stragglers(program, timeline, prepared, busy),
        charts=tuple(chart for chart in charts if chart is not None),
        notes=tuple(notes),
    )


def _experts_of_devices(prepared: Prepared) -> list[str]:
    """Return the experts of each device in words, those with the most rows first."""
    placed, tp = prepared.placement, prepared.candidate.parallelism.tp
    expert_WL = placed.by_rank(placed.expert_of_slot_P + 1) - 1
    found = []
    for device, rows_L in enumerate(np.asarray(prepared.traffic.counts_DL)):
        expert_L = expert_WL[device // tp]
        order = [slot for slot in np.argsort(-rows_L, kind="stable") if expert_L[slot] >= 0]
        named = ", ".join(str(expert_L[slot]) for slot in order[:_NAMED])
        more = f" and {len(order) - _NAMED} more" if len(order) > _NAMED else ""
        found.append(f"{len(order)} slots, the busiest first: experts {named}{more}")
    return found


def load_charts(traffic: AnyTraffic, prepared: Prepared | None = None) -> list[Chart]:
    """Return the heat maps of traffic between devices, and of rows by expert slot.

    Args:
        traffic: The traffic of the layer.
        prepared: The design, whose placement names the experts; None for none to name.
    """
    counts_DL = np.asarray(traffic.counts_DL, dtype=float)
    found: list[Chart] = []
    if isinstance(traffic, Traffic) and len(traffic.copies_SD) > 1:
        found.append(_traffic_chart(traffic, prepared))
    text: list[list[str]] = []
    if prepared is not None:
        placed = prepared.placement
        expert_WL = placed.by_rank(placed.expert_of_slot_P + 1) - 1
        tp = prepared.candidate.parallelism.tp
        text = [
            [f"expert {expert}" if expert >= 0 else "no expert" for expert in expert_WL[d // tp]]
            for d in range(len(counts_DL))
        ]
    found.append(
        HeatChart(
            key="expert_load",
            title="Rows of each expert slot",
            note=(
                "A row is a token that an expert computes. Slots lie side by side on their device, "
                "replicas of an expert among them; even colors mean an even load."
            ),
            x=Axis(label="slot of the device"),
            y=Axis(label="device"),
            z=counts_DL,
            label="rows",
            text=text,
        )
    )
    return found


def _traffic_chart(traffic: Traffic, prepared: Prepared | None) -> HeatChart:
    copies_SD = np.asarray(traffic.copies_SD, dtype=float)
    what, count = "device", len(copies_SD)
    if count > _MOST_PAIRS and prepared is not None:
        per = prepared.cluster.devices_per_domain
        nodes = count // per
        copies_SD = copies_SD.reshape(nodes, per, nodes, per).sum(axis=(1, 3))
        what = "node"
    return HeatChart(
        key="traffic",
        title=f"Tokens from {what} to {what}",
        note=(
            "Copies of tokens that dispatch moves, those that stay on their own device included; "
            "combine moves as many back."
        ),
        x=Axis(label=f"to {what}"),
        y=Axis(label=f"from {what}"),
        z=copies_SD,
        label="tokens",
    )


def _busy(program: Program, timeline: Timeline) -> dict[str, np.ndarray]:
    """Return the share of the time in which each resource works, by kind."""
    found: dict[str, np.ndarray] = {}
    first = 0
    for kind, count in program.resources.kinds():
        share_R = timeline.busy_s_R[first : first + count] / timeline.makespan_s
        found.setdefault(kind, share_R)
        first += count
    return found


def _experts(program: Program, timeline: Timeline, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return when the expert phase of each device ends, and the seconds that it takes, over all
    micro-batches: two ndarrays of shape (D,).
    """
    end_D, took_D, first = np.zeros(count), np.zeros(count), 0
    for name, ops in program.ops.kinds():
        # an op per device; each micro-batch has a run of its own, experts@0, experts@1, ...
        if name.partition("@")[0] == "experts":
            own = slice(first, first + ops)
            end_D = np.maximum(end_D, timeline.end_s_N[own])
            took_D += timeline.end_s_N[own] - timeline.start_s_N[own]
        first += ops
    return end_D, took_D


def _stragglers(
    program: Program, timeline: Timeline, prepared: Prepared, busy: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Return when the experts of each device were done and what held the latest up.

    A device is late because its experts take longer than the mean, or because their tokens
    arrived late over its links; the larger part is named.
    """
    count = prepared.cluster.num_devices
    end_D, took_D = _experts(program, timeline, count)
    # beginning and gaps: what the device waited for
    wait_D = end_D - took_D
    rows_D = np.asarray(prepared.traffic.counts_DL).sum(axis=1)
    busiest_D = _busiest_link(busy, count)
    order = np.lexsort((np.arange(count), -end_D))
    found = []
    for device in order[:_LATE]:
        late = end_D[device] - end_D.mean()
        own, waited = took_D[device] - took_D.mean(), wait_D[device] - wait_D.mean()
        if late <= 1e-3 * end_D.mean():
            why = "not late"
        elif own >= _EXPLAINS * late:
            why = "experts"
        else:
            why = "link"
        found.append(
            {
                "device": int(device),
                "experts done (us)": end_D[device] / US,
                "behind the mean (us)": late / US,
                "rows over the mean": rows_D[device] / rows_D.mean(),
                "experts take (us)": took_D[device] / US,
                "tokens late by (us)": waited / US,
                "busiest link (% of the layer)": 100 * busiest_D[device],
                "why": why,
            }
        )
    return found


def _busiest_link(busy: dict[str, np.ndarray], count: int) -> np.ndarray:
    """Return the share of the time in which the busiest port, link or NIC of each device moves
    bytes: ndarray of shape (D,).
    """
    found_D = np.zeros(count)
    for kind in ("ingress", "egress", "link", "nic_in", "nic_out"):
        if kind in busy:
            # a device of a mesh or a torus has several links, one after the other
            found_D = np.maximum(found_D, busy[kind].reshape(count, -1).max(axis=1))
    return found_D
