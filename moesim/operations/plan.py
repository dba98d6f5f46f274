"""Make what is simulated from a plan's records."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

from moesim.design.training.formats import train_formats
from moesim.design.training.layout import TrainLayout
from moesim.design.training.model import TrainedModel
from moesim.design.training.plan import TrainingPlan
from moesim.errors import ConfigError, MoesimError
from moesim.hardware import load_cluster
from moesim.hardware.sizing import sized
from moesim.model.hf_config import load_model
from moesim.operations.checkpoints import CheckpointPolicy
from moesim.operations.days_setting import TrainingDays
from moesim.operations.failure_draws import Topology
from moesim.operations.failure_rates import Cause, load_fleet
from moesim.operations.plan_file import (
    CheckpointRecord,
    FailuresRecord,
    JobRecord,
    PlanFile,
    RecoveryRecord,
    SimulatedStep,
    StatedStep,
)
from moesim.operations.recovery import RecoveryPolicy
from moesim.operations.replication import ReplicationPolicy
from moesim.operations.training_job import TrainingJob, job_of
from moesim.simulation.training.simulate import simulate_training
from moesim.units import GB, GIB

_HOUR_S = 3_600.0


@contextmanager
def named(where: str) -> Iterator[None]:
    """Put the name of a file, or of a key in it, before errors.

    Raises:
        ConfigError: What is done inside raises an error for users.
    """
    try:
        yield
    except MoesimError as error:
        raise ConfigError(f"{where}: {error}") from None


def planned_training(plan: PlanFile, where: str) -> TrainingDays:
    """Return the days of training that a plan asks for.

    Args:
        plan: The plan.
        where: Its name, for errors.

    Raises:
        ConfigError: It has no job, names something unknown, or does not fit.
    """
    if plan.job is None:
        raise ConfigError(f"{where}: job: expected a value, got nothing")
    with named(where):
        return TrainingDays(
            job=_job(plan.job),
            days=plan.job.days,
            causes=causes_of(plan.failures),
            checkpoint=_checkpoint(plan.checkpoint),
            replication=ReplicationPolicy(**plan.replication.model_dump()),
            recovery=_recovery(plan.recovery),
        )


def causes_of(record: FailuresRecord) -> tuple[Cause, ...]:
    """Return the causes of a plan: those of its fleet, scaled, and its own.

    Raises:
        ConfigError: There are none, the fleet is unknown, or a cause contradicts itself.
    """
    found: dict[str, Cause] = {}
    if record.fleet is not None:
        with named("failures.fleet"):
            fleet = load_fleet(record.fleet)
        found = {cause.name: cause for cause in fleet.scaled(record.scale)}
    with named("failures"):
        found |= {name: Cause(name=name, **own.model_dump()) for name, own in record.causes.items()}
    if not found:
        raise ConfigError("failures: expected a fleet or causes, got neither")
    return tuple(found.values())


def _job(record: JobRecord) -> TrainingJob:
    if record.simulated is not None:
        return _simulated(record.simulated, record.devices_per_switch)
    assert record.stated is not None
    return _stated(record.stated, record.devices_per_switch)


def _simulated(step: SimulatedStep, devices_per_switch: int) -> TrainingJob:
    with named("job.simulated.cluster"):
        cluster = sized(load_cluster(step.cluster), step.gpus)
    with named("job.simulated.model"):
        model = load_model(step.model)
    with named("job.simulated.formats"):
        formats = train_formats(step.formats)
    with named("job.simulated"):
        chosen = {one.name: getattr(step, one.name) for one in fields(TrainingPlan)}
        trained = TrainedModel(
            name=model.name,
            spec=model.spec,
            layout=TrainLayout.parse(step.layout, cluster.num_devices),
            plan=TrainingPlan(**chosen),
            precision=formats.experts,
            dispatch_format=formats.dispatch,
            dense_format=formats.dense,
            uneven_stages=step.uneven_stages,
        )
        result = simulate_training(trained, cluster, framework_name=step.framework)
        return job_of(result, devices_per_switch)


def _stated(step: StatedStep, devices_per_switch: int) -> TrainingJob:
    node = step.devices_per_node
    return TrainingJob(
        topology=Topology(
            devices=step.devices,
            devices_per_node=node,
            devices_per_switch=max(devices_per_switch // node, 1) * node,
        ),
        step_s=step.step_s,
        samples_per_step=step.samples_per_step,
        tokens_per_sample=step.tokens_per_sample,
        dense_bytes=step.dense_state_gib * GIB,
        expert_bytes=step.expert_state_gib * GIB,
        num_experts=step.num_experts,
        nic_bytes_per_s=step.nic_gb_per_s * GB,
        network_busy_fraction=step.network_busy_fraction,
        active_params=step.active_params,
        experts_over_top_k=step.experts_over_top_k,
    )


def _checkpoint(record: CheckpointRecord) -> CheckpointPolicy:
    given = record.model_dump()
    rates = {
        "storage_bytes_per_s": given.pop("storage_gb_per_s") * GB,
        "host_bytes_per_s": given.pop("host_gb_per_s") * GB,
    }
    return CheckpointPolicy(**given, **rates)


def _recovery(record: RecoveryRecord) -> RecoveryPolicy:
    given = record.model_dump()
    return RecoveryPolicy(repair_s=given.pop("repair_h") * _HOUR_S, **given)
