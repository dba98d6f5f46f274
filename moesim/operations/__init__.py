"""Simulate what happens over hours and days around the steps."""

from moesim.operations.checkpoints import CheckpointPolicy, checkpoint_costs, ettr_of
from moesim.operations.days_result import DaysResult
from moesim.operations.days_setting import TrainingDays
from moesim.operations.failure_draws import Topology
from moesim.operations.failure_rates import Cause, Fleet, load_fleet
from moesim.operations.growth import grow, saved_device_hours
from moesim.operations.growth_stages import GrowthPlan, GrowthStage
from moesim.operations.plan import planned_training
from moesim.operations.plan_file import read_plan
from moesim.operations.plan_search import search_plan
from moesim.operations.plan_serving import planned_growth, planned_serving
from moesim.operations.recovery import RecoveryPolicy
from moesim.operations.replication import ReplicationPolicy, replication_costs
from moesim.operations.serving_days import ServingDays, simulate_serving_days
from moesim.operations.serving_pool import ServingPool
from moesim.operations.training_days import simulate_days
from moesim.operations.training_job import TrainingJob, job_of

__all__ = [
    "Cause",
    "CheckpointPolicy",
    "DaysResult",
    "Fleet",
    "GrowthPlan",
    "GrowthStage",
    "RecoveryPolicy",
    "ReplicationPolicy",
    "ServingDays",
    "ServingPool",
    "Topology",
    "TrainingDays",
    "TrainingJob",
    "checkpoint_costs",
    "ettr_of",
    "grow",
    "job_of",
    "load_fleet",
    "planned_growth",
    "planned_serving",
    "planned_training",
    "read_plan",
    "replication_costs",
    "saved_device_hours",
    "search_plan",
    "simulate_days",
    "simulate_serving_days",
]
