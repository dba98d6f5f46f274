"""Growth: experts that are added to a running job or service over months.

Every stage has a number of experts and begins at a month. What it costs:

- **devices**: the fewest, doubling from one node, on which the model of the stage fits;
- **traffic**: old experts move to their new places, and experts that are upcycled are copies of old
  ones with all their states, so they travel unless their place is where the old one is; new devices
  get the dense weights, too. It is simulated on the cluster (`moesim.operations.growth_traffic`);
- **downtime**: a checkpoint, the traffic and a restart in training; the traffic and a restart in
  service.

What it brings is an assumption with an interval. The middle is the joint law at the experts of the
stage and all tokens so far, as if they had always been there: experts that were doubled half-way
reached the loss of the larger model with 32 % less GPU-hours (7B to 13B, 32 to 64 experts, arXiv
2604.19835). The high end is the law at the experts of the stage before where experts were upcycled
or added since, for nothing may have been gained yet.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moesim.costs.training.memory import (
    activation_bytes_of,
    memory_of,
    params_of,
    state_bytes_per_param,
)
from moesim.design.training.layout import TrainLayout
from moesim.design.training.model import TrainedModel
from moesim.design.training.plan import TrainingPlan
from moesim.errors import CapacityError, ConfigError
from moesim.hardware.sizing import sized
from moesim.limits import MOST_DEVICES
from moesim.model.spec import ModelSpec
from moesim.model.weights import total
from moesim.operations.growth_stages import GrownStage, GrowthPlan, GrowthStage
from moesim.operations.growth_traffic import growth_traffic
from moesim.quality import estimate_losses
from moesim.units import GIB

_WEIGHT_BYTES = 2.0
_HOURS_PER_MONTH = 730.5


def grow(plan: GrowthPlan) -> list[GrownStage]:
    """Return what each stage of a plan comes to.

    Raises:
        CapacityError: A stage fits on no number of devices that there are.
        ConfigError: A gate cannot choose among the experts of its stage.
    """
    found: list[GrownStage] = []
    ends = [*(stage.month for stage in plan.stages[1:]), plan.months]
    for number, (stage, end) in enumerate(zip(plan.stages, ends, strict=True)):
        spec = plan.spec(number)
        least = found[-1].devices if found else 1
        devices, held = _devices(plan, spec, stage, least)
        moved_bytes = moved_s = downtime_s = 0.0
        if number:
            states = _expert_bytes(plan, spec) / stage.num_experts
            traffic = growth_traffic(
                sized(plan.cluster, devices),
                experts=(plan.stages[number - 1].num_experts, stage.num_experts),
                devices=(least, devices),
                expert_bytes=states,
                dense_bytes=_dense_params(spec) * _WEIGHT_BYTES,
                upcycled=stage.upcycled,
            )
            moved_bytes, moved_s = traffic
            saved_s = found[-1].total_params * _each(plan) / plan.storage_bytes_per_s
            downtime_s = plan.restart_s + moved_s + saved_s * plan.training
        loss, outside = _loss(plan, number, end * plan.tokens_per_month)
        found.append(
            GrownStage(
                stage=stage,
                total_params=float(spec.total_params),
                devices=devices,
                memory_bytes=held,
                moved_bytes=moved_bytes,
                moved_s=moved_s,
                downtime_s=downtime_s,
                device_hours=devices * (end - stage.month) * _HOURS_PER_MONTH,
                tokens=end * plan.tokens_per_month,
                loss=loss,
                extrapolated=outside,
            )
        )
    return found


def saved_device_hours(stages: Sequence[GrownStage]) -> float:
    """Return the share of device-hours that growing saves against the devices of the last stage
    from the beginning: what follows from memory alone, if steps take as long.
    """
    hours = sum(stage.device_hours for stage in stages)
    months = sum(stage.device_hours / stage.devices for stage in stages)
    return 1.0 - hours / (months * stages[-1].devices)


def _each(plan: GrowthPlan) -> float:
    """Return the bytes of a parameter's states that last: bf16 weight, and AdamW's in training."""
    adamw = state_bytes_per_param(_trained(plan, plan.model.spec, 1))
    return _WEIGHT_BYTES + adamw * plan.training


def _expert_params(spec: ModelSpec) -> float:
    moes = [block.moe for block in spec.blocks if block.moe is not None]
    return float(sum(total(moe.expert_weights(spec.hidden_size)) for moe in moes))


def _expert_bytes(plan: GrowthPlan, spec: ModelSpec) -> float:
    return _expert_params(spec) * _each(plan)


def _dense_params(spec: ModelSpec) -> float:
    return spec.total_params - _expert_params(spec)


def _devices(
    plan: GrowthPlan, spec: ModelSpec, stage: GrowthStage, least: int
) -> tuple[int, float]:
    """Return the fewest devices on which a stage fits, and what each holds."""
    most = plan.most_devices or MOST_DEVICES
    usable, node = plan.cluster.profile.usable_bytes, plan.cluster.devices_per_domain
    count, held = max(least, min(node, most)), float("inf")
    if plan.cluster.nic_bytes_per_s == 0:
        most = min(most, plan.cluster.num_devices)
    while count <= most:
        held = _memory(plan, spec, count)
        if held <= usable:
            return count, held
        count *= 2
    over = f"{held / GIB:.1f} of {usable / GIB:.1f} GiB on each of {count // 2:,}"
    raise CapacityError(
        f"growth: {stage.num_experts:,} experts at month {stage.month:g} fit on no number of "
        f"{plan.cluster.profile.name} up to {most:,}: {over if held < float('inf') else 'too few'}"
    )


def _trained(plan: GrowthPlan, spec: ModelSpec, devices: int) -> TrainedModel:
    moe = spec.moe
    experts = moe.num_experts if moe is not None else 1
    return TrainedModel(
        name=plan.model.name,
        spec=spec,
        layout=TrainLayout(dp=devices, ep=int(np.gcd(devices, experts))),
        plan=TrainingPlan(global_batch=devices, sequence=plan.sequence, recompute="full"),
    )


def _memory(plan: GrowthPlan, spec: ModelSpec, devices: int) -> float:
    """Return the bytes of a device; experts are divided over all, whole or in parts."""
    if not plan.training:
        return (_dense_params(spec) + _expert_params(spec) / devices) * _WEIGHT_BYTES
    trained = _trained(plan, spec, devices)
    params = params_of(trained, spec.blocks, first=True, last=True)
    # where the layout's groups are smaller than the job, experts are divided over all the same
    params = replace(params, experts=_expert_params(spec) / devices)
    kept = sum(activation_bytes_of(trained, block) for block in spec.blocks)
    memory = memory_of(trained, params, (devices, 1), activations_bytes=kept, last=True)
    return memory.total_bytes


def _loss(plan: GrowthPlan, number: int, tokens: float) -> tuple[tuple[float, float, float], bool]:
    """Return the interval of the loss at the end of a stage, and whether it is extrapolated."""
    bands = []
    for at in {number, max(number - 1, 0)}:
        spec = plan.spec(at)
        moe = spec.moe
        if moe is None:
            raise ConfigError(f"growth.model: expected experts, got {plan.model.name}")
        sizes = (moe.num_experts / moe.top_k, spec.active_params, tokens)
        grain = plan.model.dense_part.dense_intermediate_size / moe.width
        bands.append((at, estimate_losses(*(np.array([float(x)]) for x in (*sizes, grain)))))
    now = dict(bands)[number]
    high = max(float(band.high_N[0]) for _, band in bands)
    found = float(now.low_N[0]), float(now.loss_N[0]), high
    return found, bool(now.extrapolated_N[0])
