"""Simulate a training step: layers, pipeline, and what follows the last pass.

Layers are programs on the devices among which their tokens travel; their times make the units of
the pipeline, which is a program, too; then gradients are reduced and the optimizer runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moesim.costs.training.memory import TrainMemory, memory_of
from moesim.design.step import ExpertLoad
from moesim.design.training.model import TrainedModel
from moesim.engines.run import run
from moesim.errors import require
from moesim.hardware import Cluster
from moesim.hardware.frameworks import framework
from moesim.lowering.training.orders import Kept, Shape, Unit, kept_at_once
from moesim.lowering.training.pipeline import Wiring, kept_of, wired
from moesim.model.spec import LayerKind
from moesim.program import Timeline
from moesim.simulation.training.grades import grades_of
from moesim.simulation.training.kinds import NOTHING, KindTimes, PassTimer, TimedPass, added
from moesim.simulation.training.parts import (
    PartSizes,
    PartTimes,
    params_on,
    parts_of,
    parts_on,
    sharing_of,
    sizes_of,
)
from moesim.simulation.training.result import TrainResult
from moesim.simulation.training.tail import Tail, in_passes, tails_of

_ELEMENT_BYTES = 2.0
EVEN = ExpertLoad(routing="uniform")
#: phases that move tokens between devices while a pass waits
EXCHANGES = ("dispatch", "combine", "all_gather", "reduce_scatter", "context")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RanPipeline:
    """A step before a framework's efficiency is applied.

    Attributes:
        setting: The design on its cluster.
        kinds: The times of each kind of layer.
        passes: What units take, and of what.
        wiring: The units of the pipeline.
        timeline: When they ran.
        tails: What every stage does after its last pass.
        memory: Memory of the fullest device.
    """

    setting: PassTimer
    kinds: dict[LayerKind, KindTimes]
    passes: "UnitTimes"
    wiring: Wiring
    timeline: Timeline
    tails: list[Tail]
    memory: TrainMemory

    @property
    def shape(self) -> Shape:
        """The sizes of the pipeline."""
        return _shape(self.setting.trained)


def _shape(trained: TrainedModel) -> Shape:
    layout = trained.layout
    return Shape(layout.pp, layout.vp, trained.num_micro_batches, trained.plan.overlap_exchange)


def run_pipeline(
    trained: TrainedModel,
    cluster: Cluster,
    *,
    load: ExpertLoad = EVEN,
    engine: str = "flow",
) -> RanPipeline:
    """Time the layers of a step and run its pipeline.

    Args:
        trained: The design, which uses all devices of the cluster.
        cluster: The hardware.
        load: How tokens choose experts; training balances them.
        engine: Name of the engine that runs the layers' programs.

    Raises:
        CapacityError: A device's memory is too small.
        ConfigError: The layout does not fit the cluster.
    """
    require(
        trained.layout.num_devices == cluster.num_devices,
        "layout",
        f"the {cluster.num_devices} devices of {cluster.name}",
        trained.layout.num_devices,
    )
    require(
        not cluster.is_torus,
        "cluster",
        "devices behind switches, since the collectives of a torus are not modelled",
        cluster.name,
    )
    setting = PassTimer(trained=trained, cluster=cluster, load=load, engine=engine)
    pipeline, shape = trained.plan.pipeline, _shape(trained)
    sizes = sizes_of(trained)
    worst = _fullest(trained, sizes, kept_of(pipeline, shape))
    # before anything is timed: of many designs, most do not fit
    worst.check(trained.name, cluster.profile.name, cluster.profile.usable_bytes)
    kinds = setting.kinds()
    parts = parts_of(trained, setting.passes, kinds, sizes)
    passes, wiring = UnitTimes(setting, parts), wired(pipeline, shape)
    program = wiring.timed(passes.seconds, _hop_s(trained, cluster))
    return RanPipeline(
        setting=setting,
        kinds=kinds,
        passes=passes,
        wiring=wiring,
        timeline=run(program, "bound"),
        tails=tails_of(setting, parts),
        memory=worst,
    )


def simulate_training(
    trained: TrainedModel,
    cluster: Cluster,
    *,
    load: ExpertLoad = EVEN,
    engine: str = "flow",
    framework_name: str = "megatron",
) -> TrainResult:
    """Simulate one step.

    Args:
        trained: The design, which uses all devices of the cluster.
        cluster: The hardware.
        load: How tokens choose experts; training balances them.
        engine: Name of the engine that runs the layers' programs.
        framework_name: Framework whose efficiency is applied, a name or a file.

    Raises:
        CapacityError: A device's memory is too small.
        ConfigError: The layout does not fit the cluster.
    """
    ran = run_pipeline(trained, cluster, load=load, engine=engine)
    moe = [ran.kinds[kind] for kind in trained.spec.blocks if kind.moe is not None]
    result = replace(
        _result(ran),
        kernels=" ".join(dict.fromkeys(times.kernels for times in moe)),
        dropped_fraction=sum(times.dropped_fraction for times in moe) / max(len(moe), 1),
    )
    return result.graded(
        grades_of(trained, cluster, ran.kinds, ran.setting.passes.pricing),
        framework(framework_name),
    )


class UnitTimes:
    """What units take, and of what.

    Attributes:
        parts: The parts of the pipeline.
        more: What ZeRO adds to the forward and the backward passes of each part, in seconds.
    """

    def __init__(self, setting: PassTimer, parts: list[PartTimes]) -> None:
        self.parts = parts
        self.more = [in_passes(setting, part) for part in parts]
        self._known: dict[tuple[tuple[str, int], ...], TimedPass] = {}

    def seconds(self, unit: Unit) -> float:
        """Return the seconds of a unit."""
        return self.timed(unit).time_s

    def timed(self, unit: Unit) -> TimedPass:
        """Return a unit's time and phases; micro-batches are alike."""
        key = tuple((one.kind, one.part) for one in unit)
        if key not in self._known:
            self._known[key] = self._of(key)
        return self._known[key]

    def all_of(self, counts: Mapping[Unit, int]) -> TimedPass:
        """Return what a device computes in a step."""
        return added(*(self.timed(unit).repeated(n) for unit, n in counts.items()))

    def _of(self, key: tuple[tuple[str, int], ...]) -> TimedPass:
        found, kinds = [], [kind for kind, _ in key]
        for kind, part in key:
            times = self.parts[part]
            ahead, back = self.more[part]
            if kind == "F":
                found += [times.forward, _shown("gather_parameters", ahead)]
            elif kind == "B":
                # a pass through weights that follows at once is part of the whole backward
                found += [times.backward if "W" in kinds else times.dgrad]
                found += [_shown("reduce_gradients", back)]
            elif "B" not in kinds:
                found.append(times.wgrad)
        whole = added(*found)
        if "F" not in kinds or "B" not in kinds:
            return whole
        return _less(whole, min(self.parts[part].saved_s for kind, part in key if kind != "W"))


def _shown(name: str, seconds: float) -> TimedPass:
    return TimedPass(time_s=seconds, phases={name: seconds}, flops=0.0) if seconds else NOTHING


def _less(whole: TimedPass, saved_s: float) -> TimedPass:
    """Take what an overlap saves from the exchanges, and what is more than they take from all."""
    moved = sum(whole.phases.get(name, 0.0) for name in EXCHANGES)
    left = max(1.0 - saved_s / moved, 0.0) if moved else 1.0
    rest = whole.time_s - moved
    shrunk = (whole.time_s - saved_s - moved * left) / rest if rest else 1.0
    return TimedPass(
        time_s=whole.time_s - saved_s,
        phases={
            name: seconds * (left if name in EXCHANGES else shrunk)
            for name, seconds in whole.phases.items()
        },
        flops=whole.flops,
    )


def _hop_s(trained: TrainedModel, cluster: Cluster) -> float:
    """Return the seconds in which a stage sends a micro-batch on: each device its share of the
    tokens, over its NIC where stages are in different domains.
    """
    if trained.layout.pp == 1:
        return 0.0
    moved = trained.tokens_per_device * trained.spec.hidden_size * _ELEMENT_BYTES
    near = cluster.num_devices <= cluster.devices_per_domain
    rate = cluster.link_bytes_per_s if near else cluster.nic_bytes_per_s
    require(rate > 0, "layout.pp", "1 without links between devices", trained.layout.pp)
    return cluster.hop_s + moved / rate


def _fullest(
    trained: TrainedModel, sizes: Sequence[PartSizes], kept: Sequence[list[Kept]]
) -> TrainMemory:
    """Return the memory of the fullest device."""
    dense, experts = sharing_of(trained)
    found = []
    for stage, counts in enumerate(kept):
        held = parts_on(trained, stage)
        found.append(
            memory_of(
                trained,
                params_on(sizes, held),
                (dense.group, experts.group),
                activations_bytes=kept_at_once(counts, lambda c: sizes[c].kept_bytes),
                last=len(sizes) - 1 in held,
            )
        )
    return max(found, key=lambda one: one.total_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """How long a stage is busy, and when it ends."""

    end_s: float
    busy_s: float


def _result(ran: RanPipeline) -> TrainResult:
    setting, passes, tails = ran.setting, ran.passes, ran.tails
    trained = setting.trained
    computed = [passes.all_of(counts) for counts in ran.wiring.counts]
    stages = [
        _Stage(end_s=float(ran.timeline.end_s_N[op]), busy_s=done.time_s)
        for op, done in zip(ran.wiring.last, computed, strict=True)
    ]
    ends = [stage.end_s + tail.total_s for stage, tail in zip(stages, tails, strict=True)]
    time_s, span_s = max(ends), max(stage.end_s for stage in stages)
    busy = [stage.busy_s + tail.total_s for stage, tail in zip(stages, tails, strict=True)]
    busiest = int(np.argmax(busy))
    tail = tails[busiest]
    phases = dict(computed[busiest].phases)
    phases["bubble"] = max(time_s - busy[busiest], 0.0)
    for name, seconds in (
        ("reduce_gradients", tail.reduce_s),
        ("optimizer", tail.optimizer_s),
        ("gather_parameters", tail.gather_s),
    ):
        phases[name] = phases.get(name, 0.0) + seconds
    flops = _flops(passes.parts, trained.num_micro_batches, trained.layout.pp)
    return TrainResult(
        trained=trained,
        cluster=setting.cluster,
        load=setting.load,
        engine=setting.engine,
        time_s=time_s,
        phase_time_s={name: seconds for name, seconds in phases.items() if seconds},
        # sums of many passes may be longer by an ulp
        bubble_fraction=max(1.0 - float(np.mean([one.busy_s for one in stages])) / span_s, 0.0),
        useful_flops_per_device=flops[0],
        done_flops_per_device=flops[1],
        sent=tail.sent,
        dropped_fraction=0.0,
        kernels="",
        memory=ran.memory,
    )


def _flops(parts: list[PartTimes], micro_batches: int, pp: int) -> tuple[float, float]:
    """Return the FLOPs of a device in a step, the mean over stages: useful ones, three times the
    forward's, and those that are done.
    """
    ahead = sum(part.forward.flops for part in parts)
    back = sum(part.backward.flops for part in parts)
    return 3.0 * ahead * micro_batches / pp, (ahead + back) * micro_batches / pp
