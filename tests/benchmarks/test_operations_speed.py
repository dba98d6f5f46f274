"""How fast days go by: a month of 16,384 devices, and ways to run a job."""

from dataclasses import replace

from moesim.operations import (
    ReplicationPolicy,
    Topology,
    TrainingDays,
    TrainingJob,
    load_fleet,
    search_plan,
    simulate_days,
)
from moesim.operations.plan_file import SearchRecord

JOB = TrainingJob(
    topology=Topology(devices=16384),
    step_s=10.0,
    dense_bytes=3e11,
    expert_bytes=9e12,
    num_experts=14848,
)
MONTH = TrainingDays(job=JOB, days=30.0, causes=load_fleet("llama3-2024").causes)


def test_a_month_of_16384_devices(benchmark):
    copies = replace(MONTH, replication=ReplicationPolicy(degree=1))
    assert benchmark(simulate_days, copies, 0).interruptions > 200


def test_a_hundred_ways_to_run_a_month(benchmark):
    points = benchmark.pedantic(search_plan, (MONTH, SearchRecord(), 100), rounds=3)
    assert len(points) == 100
