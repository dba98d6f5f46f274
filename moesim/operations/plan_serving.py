"""Make a server's days, or a growth plan, from a plan's records."""

from moesim.design.served import ServedModel
from moesim.design.step import Layout
from moesim.errors import ConfigError
from moesim.hardware import load_cluster
from moesim.hardware.sizing import sized
from moesim.model import Gate
from moesim.model.hf_config import load_model
from moesim.model.precision import Precision
from moesim.operations.failure_rates import HOUR_S
from moesim.operations.growth_stages import GrowthPlan, GrowthStage
from moesim.operations.plan import causes_of, named
from moesim.operations.plan_file import PlanFile
from moesim.operations.serving_days import ServingDays
from moesim.operations.serving_pool import ServingPool
from moesim.serving.formats import dense_format_of, precision_on
from moesim.units import GB


def planned_serving(plan: PlanFile, where: str) -> ServingDays:
    """Return the days of serving that a plan asks for.

    Args:
        plan: The plan.
        where: Its name, for errors.

    Raises:
        ConfigError: It has no serving, names something unknown, or does not fit.
    """
    record = plan.serving
    if record is None:
        raise ConfigError(f"{where}: serving: expected a value, got nothing")
    with named(f"{where}: serving.cluster"):
        cluster = sized(load_cluster(record.cluster), record.gpus)
    with named(f"{where}: serving.model"):
        model = load_model(record.model)
    with named(f"{where}: serving"):
        ranks = cluster.num_devices
        served = ServedModel(
            name=model.name,
            spec=model.spec,
            layout=Layout(dp=ranks, ep=ranks),
            precision=Precision.named(precision_on(model, cluster.profile)),
            dense_format=dense_format_of(model),
            placement="eplb",
            num_replicas=record.redundant_experts,
            engine=record.engine,
        )
        pool = ServingPool(
            served=served,
            cluster=cluster,
            sequences_per_rank=record.sequences_per_rank,
            context_tokens=record.context_tokens,
            rebuild_s=record.rebuild_s,
            host_bytes_per_s=record.host_gb_per_s * GB,
        )
    with named(where):
        return ServingDays(
            pool=pool,
            days=record.days,
            causes=causes_of(plan.failures),
            elastic=record.elastic,
            restart_s=record.restart_s,
            rejoin_s=record.rejoin_s,
            repair_s=record.repair_h * HOUR_S,
        )


def planned_growth(plan: PlanFile, where: str) -> GrowthPlan:
    """Return the growth that a plan asks for.

    Args:
        plan: The plan.
        where: Its name, for errors.

    Raises:
        ConfigError: It has no growth, names something unknown, or stages are not in order.
    """
    record = plan.growth
    if record is None:
        raise ConfigError(f"{where}: growth: expected a value, got nothing")
    with named(f"{where}: growth.cluster"):
        cluster = load_cluster(record.cluster)
    with named(f"{where}: growth.model"):
        model = load_model(record.model)
    with named(where):
        stages = tuple(
            GrowthStage(
                month=stage.month,
                num_experts=stage.num_experts,
                upcycled=stage.upcycled,
                gate=None if stage.gate is None else Gate.parse(stage.gate),
            )
            for stage in record.stages
        )
        return GrowthPlan(
            model=model,
            cluster=cluster,
            stages=stages,
            months=record.months,
            tokens_per_month=record.tokens_per_month,
            training=record.training,
            expert_width=record.expert_width,
            most_devices=record.most_devices,
            sequence=record.sequence,
            restart_s=record.restart_s,
            storage_bytes_per_s=record.storage_gb_per_s * GB,
        )
