"""Days of training: closed forms, conservation, and what each failure does."""

from dataclasses import replace
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import ConfigError
from moesim.operations import (
    Cause,
    CheckpointPolicy,
    RecoveryPolicy,
    ReplicationPolicy,
    Topology,
    TrainingDays,
    TrainingJob,
    ettr_of,
    load_fleet,
    replication_costs,
    search_plan,
    simulate_days,
)
from moesim.operations.checkpoints import best_interval_s
from moesim.operations.failure_draws import Draws, draw_failures
from moesim.operations.failure_rates import DAY_S
from moesim.operations.plan_file import SearchRecord
from moesim.units import GB

JOB = TrainingJob(
    topology=Topology(devices=1024, devices_per_switch=64),
    step_s=5.0,
    samples_per_step=64,
    tokens_per_sample=4096.0,
    dense_bytes=100 * GB,
    expert_bytes=4000 * GB,
    num_experts=2048,
    active_params=3e9,
    experts_over_top_k=16.0,
)
CRASH = Cause(name="crash", scope="job", per_job_hour=0.1)
DEVICE = Cause(name="device", scope="device", per_device_hour=1e-4)
#: checkpoints that are read in no time
FREE = CheckpointPolicy(storage_bytes_per_s=1e20)
COPIES = ReplicationPolicy(degree=1, interval_steps=10)


def days_of(*causes, days=30.0, **more):
    return TrainingDays(job=JOB, days=days, causes=causes, **more)


def whole_s(result):
    """Seconds of all kinds."""
    steps_s = result.computed_steps * result.job.step_s
    others = result.slow_s + result.replication_s + result.checkpoint_s + result.cut_s
    return steps_s + others + result.down_s


@pytest.mark.parametrize(
    ("interval_s", "block_s", "restart_s", "mtbf_h"),
    [(900.0, 5.0, 300.0, 10.0), (1800.0, 60.0, 600.0, 24.0), (600.0, 2.0, 120.0, 5.0)],
)
def test_ratio_of_the_closed_form(interval_s, block_s, restart_s, mtbf_h):
    """1 - (checkpoint / interval + (interval / 2 + restart) / MTBF), within 1 %."""
    setting = days_of(
        Cause(name="crash", scope="job", per_job_hour=1 / mtbf_h),
        days=3000.0,
        checkpoint=CheckpointPolicy(
            interval_s=interval_s, block_s=block_s, storage_bytes_per_s=1e20
        ),
        recovery=RecoveryPolicy(detection_s=0.0, restart_s=restart_s),
    )
    expected = ettr_of(
        block_s=block_s,
        interval_s=interval_s + block_s,
        restart_s=restart_s,
        mtbf_s=mtbf_h * 3600,
    )
    assert simulate_days(setting, 0).ettr == pytest.approx(expected, rel=0.01)


def test_nothing_fails():
    setting = days_of(CRASH, checkpoint=CheckpointPolicy(interval_s=100.0, block_s=1.0))
    result = simulate_days(replace(setting, causes=(replace(CRASH, per_job_hour=0.0),)))
    # 20 steps of 5 s, then one second
    assert result.ettr == pytest.approx(100 / 101, abs=1e-4)
    cycles, rest_s = divmod(30 * DAY_S, 101)
    assert result.useful_steps == cycles * 20 + rest_s // 5
    assert result.lost_steps == result.interruptions == 0
    assert result.events == ()


KINDS = st.sampled_from(["full", "incremental", "partial", "sparse"])
CAUSES = st.lists(
    st.builds(
        lambda scope, rate, how: Cause(
            name="", scope=scope, per_device_hour=rate / 1024, per_job_hour=rate / 10, **how
        ),
        st.sampled_from(["device", "nic", "node", "switch", "job"]),
        st.floats(0.0, 2.0),
        st.sampled_from([{}, {"planned": True}, {"silent": True}, {"slowdown": 1.5}]),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(
    causes=CAUSES,
    kind=KINDS,
    asynchronous=st.booleans(),
    host_copies=st.booleans(),
    interval_s=st.floats(1.0, 20_000.0),
    degree=st.integers(0, 2),
    where=st.sampled_from(["device", "node", "switch"]),
    spares=st.integers(0, 3),
    elastic=st.booleans(),
    seed=st.integers(0, 100),
)
def test_time_and_work_are_conserved(
    causes, kind, asynchronous, host_copies, interval_s, degree, where, spares, elastic, seed
):
    setting = days_of(
        *(replace(cause, name=f"c{n}") for n, cause in enumerate(causes)),
        days=2.0,
        checkpoint=CheckpointPolicy(
            kind=kind,
            asynchronous=asynchronous,
            host_copies=host_copies,
            interval_s=interval_s,
            storage_bytes_per_s=5e10,
        ),
        replication=ReplicationPolicy(degree=degree, where=where),
        recovery=RecoveryPolicy(spare_nodes=spares, elastic=elastic, elastic_unit=64),
    )
    result = simulate_days(setting, seed)
    assert whole_s(result) == pytest.approx(2 * DAY_S, rel=1e-9)
    assert result.useful_steps >= 0
    assert result.useful_steps + result.lost_steps == result.computed_steps
    # no loss without an event that tells it
    assert sum(event.lost_steps for event in result.events) == result.lost_steps
    assert sum(e.lost_updates for e in result.events) == pytest.approx(result.lost_updates)
    assert min((e.lost_steps for e in result.events), default=0) >= 0
    assert min(result.slow_s, result.cut_s, result.lost_updates, 0.0) >= -1e-6
    assert 0 <= result.ettr <= 1
    if not elastic and all(cause.slowdown == 1 for cause in causes):
        # a job that waits for repairs never runs on fewer devices
        assert result.slow_s == pytest.approx(0.0, abs=1e-6)
    # an expert cannot lose more updates than steps that were ever computed
    assert result.lost_updates <= result.computed_steps * JOB.num_experts * (1 + 1e-9)
    assert result == simulate_days(setting, seed)


def test_a_cause_leaves_the_draws_of_others():
    alone = draw_failures((CRASH,), JOB.topology, 100.0, 3)[0]
    beside = draw_failures((DEVICE, CRASH), JOB.topology, 100.0, 3)[1]
    longer = draw_failures((CRASH,), JOB.topology, 200.0, 3)[0]
    assert (alone.time_s_F == beside.time_s_F).all()
    assert (alone.device_F == beside.device_F).all()
    assert (alone.time_s_F == longer.time_s_F[: len(alone.time_s_F)]).all()
    assert len(alone.time_s_F) == pytest.approx(240, abs=3 * 240**0.5)


def test_huge_numbers_of_failures_are_refused_with_the_figure():
    with pytest.raises(ConfigError, match=r"at most 500,000 events in all, got 1e\+15"):
        simulate_days(days_of(Cause(name="x", scope="job", per_job_hour=1e9 / 24), days=1e6))


def test_copies_take_over_without_a_rollback():
    setting = days_of(DEVICE, replication=COPIES, checkpoint=CheckpointPolicy(interval_s=7200.0))
    copied = simulate_days(setting, 1)
    restarted = simulate_days(replace(setting, replication=ReplicationPolicy()), 1)
    assert copied.failovers > 50
    assert copied.lost_steps == copied.rollbacks == 0
    assert restarted.failovers == restarted.lost_updates == 0
    assert restarted.lost_steps > 1000
    assert copied.ettr > restarted.ettr + 0.05
    # 2 experts of a device, each as many steps behind as half an interval and the transfer
    costs = replication_costs(COPIES, JOB)
    assert costs.transfer_s == pytest.approx(4000 / 1024 / 50, rel=1e-6)
    behind = copied.lost_updates / copied.failovers / 2
    assert behind == pytest.approx((COPIES.interval_steps - 1) / 2 + 1, abs=1.0)
    low, middle, high = copied.loss_effect
    assert low == 0 < middle < high < 1e-3


def test_ratio_with_copies():
    """1 - (detection + failover + restoring) / MTBF, and nothing is rolled back."""
    policy = replace(FREE, interval_s=1800.0, block_s=0.0)
    setting = days_of(DEVICE, days=1000.0, replication=COPIES, checkpoint=policy)
    stop_s = 60.0 + COPIES.failover_s + replication_costs(COPIES, JOB).restore_s
    result = simulate_days(setting, 0)
    assert result.ettr == pytest.approx(1 - stop_s * DEVICE.per_second(1024), rel=1e-3)


def test_a_search_finds_the_best_interval():
    """Within a factor of 1.5 of sqrt(2 block MTBF), where ratios hardly differ."""
    checkpoint = replace(FREE, block_s=30.0)
    setting = days_of(CRASH, days=300.0, checkpoint=checkpoint)
    choices = SearchRecord(
        checkpoint_interval_s=[100.0, 20_000.0], replication_degree=[0], spare_nodes=[0]
    )
    points = search_plan(setting, choices, 40)
    best = best_interval_s(30.0, 36_000.0)
    assert best / 1.5 < points[0].setting.checkpoint.interval_s < best * 1.5
    assert points[0].ettr > points[-1].ettr + 0.1
    # the same failures for all
    assert len({point.row()["interruptions"] for point in points}) == 1
    assert [point.ettr for point in search_plan(setting, choices, 40)] == [p.ettr for p in points]


@pytest.mark.parametrize(
    ("scope", "where", "survives"),
    [
        ("device", "device", True),
        ("node", "device", False),
        ("node", "node", True),
        ("switch", "node", False),
        ("switch", "switch", True),
        ("job", "switch", False),
    ],
)
def test_where_copies_live_decides(scope, where, survives):
    rate = {"per_job_hour": 0.2} if scope == "job" else {"per_device_hour": 0.2 / 1024}
    setting = days_of(
        Cause(name="x", scope=scope, **rate), replication=replace(COPIES, where=where)
    )
    result = simulate_days(setting, 0)
    assert (result.failovers > 50) == survives
    assert (result.rollbacks > 50) != survives


@pytest.mark.parametrize(
    ("second", "after_s", "degree", "responses"),
    [
        # the copy's device fails while it gives the experts back, or before the next refresh
        (8, 20.0, 1, ["failover", "rollback"]),
        (0, 120.0, 1, ["failover", "failover"]),
        (1016, 91.0, 1, ["failover", "rollback"]),
        # later it is whole again, another device has nothing to do with it, a second copy helps
        (1016, 3600.0, 1, ["failover", "failover"]),
        (16, 20.0, 1, ["failover", "failover"]),
        (8, 20.0, 2, ["failover", "failover"]),
    ],
)
def test_two_failures_in_a_row(second, after_s, degree, responses):
    """Device 0 fails, whose experts device 8 has; it has those of device 1016."""
    draws = Draws(
        cause=DEVICE,
        time_s_F=np.array([5000.0, 5000.0 + after_s]),
        device_F=np.array([0, second]),
        chance_F=np.zeros(2),
    )
    setting = days_of(DEVICE, days=1.0, replication=replace(COPIES, degree=degree))
    result = simulate_days(setting, draws=[draws])
    assert [event.response for event in result.events] == responses
    assert (result.lost_steps > 0) == ("rollback" in responses)


def test_a_transfer_that_takes_longer_than_the_interval_is_exposed():
    slow = replace(JOB, nic_bytes_per_s=0.5 * GB, network_busy_fraction=0.5)
    costs = replication_costs(ReplicationPolicy(degree=2, interval_steps=1), slow)
    assert costs.transfer_s == pytest.approx(4000 / 1024 / 0.5 * 2 / 0.5, rel=1e-6)
    assert costs.exposed_s == pytest.approx(costs.transfer_s - 5.0 + 100 / 1024 / 0.5 / 0.5)
    setting = days_of(DEVICE, replication=ReplicationPolicy(degree=2, interval_steps=1))
    assert simulate_days(replace(setting, job=slow)).replication_s > 0


def test_spares_run_out():
    """A node a day fails and stays away for 10 days."""
    cause = Cause(name="node", scope="node", per_device_hour=1 / 24 / 1024, repair_s=10 * DAY_S)
    ratios, slow = {}, {}
    for spares, elastic in ((0, False), (0, True), (30, False)):
        recovery = RecoveryPolicy(spare_nodes=spares, elastic=elastic)
        result = simulate_days(days_of(cause, days=100.0, recovery=recovery), 0)
        ratios[spares, elastic], slow[spares, elastic] = result.ettr, result.slow_s
        assert min(event.devices for event in result.events) < 1024 or spares
    assert ratios[0, False] < 0.3 < 0.8 < ratios[0, True] < ratios[30, False]
    assert slow[30, False] == 0 < slow[0, True]


def test_stragglers_slow_all_until_they_are_found():
    cause = Cause(
        name="slow", scope="device", per_device_hour=0.1 / 1024, slowdown=1.5, detection_s=3000.0
    )
    result = simulate_days(days_of(cause, days=200.0), 0)
    found = [event for event in result.events if event.response == "replaced"]
    assert result.lost_steps == 0
    # a third of 3,000 s is lost to each, a little less where two are slow at once
    assert result.slow_s / len(found) == pytest.approx(1000, rel=0.1)


def test_silent_corruption_goes_back_before_it_came():
    kinds = {"silent": True, "detection_s": 3600.0}
    cause = Cause(name="silent", scope="device", per_device_hour=0.02 / 1024, **kinds)
    checkpoint = CheckpointPolicy(interval_s=600.0, block_s=0.0)
    result = simulate_days(days_of(cause, days=400.0, checkpoint=checkpoint), 0)
    assert result.lost_steps * 5.0 / result.rollbacks == pytest.approx(3600 + 300, rel=0.05)


def test_a_failure_during_recovery_begins_it_anew():
    cause = Cause(name="crash", scope="job", per_job_hour=60.0)
    recovery = RecoveryPolicy(detection_s=0.0, restart_s=120.0)
    result = simulate_days(days_of(cause, days=3.0, recovery=recovery), 0)
    assert max(event.down_s for event in result.events) <= 120.0 + 5
    # a recovery succeeds with probability exp(-2)
    assert result.down_s / (3 * DAY_S) == pytest.approx(1 - np.exp(-2), abs=0.02)


def test_checkpoints_that_are_still_written_do_not_last():
    slow = CheckpointPolicy(
        interval_s=600.0, asynchronous=True, storage_bytes_per_s=4100 * GB / 590, block_s=0.0
    )
    quick = replace(slow, storage_bytes_per_s=1e20)
    lost = [
        simulate_days(days_of(CRASH, days=400.0, checkpoint=one), 0).lost_steps * 5 / 960
        for one in (slow, quick)
    ]
    # each failure loses the time of the writing more
    assert lost[0] - lost[1] == pytest.approx(590, rel=0.15)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Cause(name="x", scope="job", per_job_hour=-1.0), "causes.x.per_job_hour: exp"),
        (lambda: Cause(name="x", scope="job", planned=True, silent=True), "at most one of planned"),
        (lambda: Topology(devices=12), "job.devices: expected a multiple of the 8 devices"),
        (lambda: CheckpointPolicy(kind="none"), "checkpoint.kind: expected full or"),
        (lambda: CheckpointPolicy(interval_s=0.0), "checkpoint.interval_s: expected a number > 0"),
        (lambda: ReplicationPolicy(where="moon"), "replication.where: expected device or node or"),
        (
            lambda: replication_costs(ReplicationPolicy(degree=128), JOB),
            "fewer copies than the 128",
        ),
        (lambda: simulate_days(days_of(CRASH, CRASH)), "expected names that differ"),
        (lambda: load_fleet("llama"), "unknown fleet of failures 'llama'"),
    ],
)
def test_bad_input_is_one_line(make, said):
    with pytest.raises(ConfigError) as error:
        make()
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_month_of_16384_devices_takes_less_than_a_second():
    job = replace(JOB, topology=Topology(devices=16384))
    setting = TrainingDays(job=job, days=30.0, causes=load_fleet("llama3-2024").causes)
    began = process_time()
    result = simulate_days(setting, 0)
    assert process_time() - began < 1.0
    assert result.interruptions > 200
