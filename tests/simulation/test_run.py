"""`moesim.simulate`: what a result says, that its parts add up, and that more hardware or less work
is never slower.
"""

from dataclasses import replace

import pytest

from moesim import Candidate, Gate, Parallelism, Workload, load_cluster, load_preset, simulate
from moesim.engines import ENGINES
from moesim.errors import ConfigError, UnknownNameError
from moesim.files import toml
from moesim.hardware import single_device
from moesim.model import Precision
from moesim.simulation.phases import critical_phases
from moesim.simulation.prepare import prepare
from moesim.simulation.run import lower

WORK = Workload(num_tokens_per_device=512, routing="power_law:1.2")


@pytest.fixture(scope="module")
def candidate(make_candidate):
    return make_candidate(num_experts=64, top_k=4, hidden_size=2048)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"num_shared_experts": 1},
        {"capacity_factor": 1.0},
        {"ep": 4, "tp": 2},
        {"placement": "eplb", "num_replicas": 8},
        {"precision": Precision.named("fp8")},
        {"gate": Gate.parse("two_level:4:2")},
    ],
    ids=str,
)
def test_phases_of_the_critical_path_sum_to_the_layer_time(hgx, make_candidate, engine, sizes):
    result = simulate(make_candidate(**sizes), hgx, WORK, engine=engine)
    assert sum(result.phase_time_s.values()) == pytest.approx(result.layer_time_s, rel=1e-12)
    assert all(seconds >= 0 for seconds in result.phase_time_s.values())
    assert result.bottleneck == max(
        result.phase_time_s, key=lambda phase: result.phase_time_s[phase]
    )
    assert result.engine == engine


@pytest.mark.parametrize("name", toml.names("clusters"))
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_the_interval_holds_the_time_on_every_shipped_cluster(name, precision, make_layer):
    cluster = load_cluster(name)
    layer = make_layer(num_experts=8 * cluster.num_devices, precision=Precision.named(precision))
    if precision == "fp8" and "float8_e4m3" not in cluster.profile.peak_flops_per_s:
        with pytest.raises(ConfigError, match="no compute rate for float8_e4m3"):
            simulate(
                Candidate(layer=layer, parallelism=Parallelism(ep=cluster.num_devices)),
                cluster,
                WORK,
            )
        return
    result = simulate(
        Candidate(layer=layer, parallelism=Parallelism(ep=cluster.num_devices)), cluster, WORK
    )
    assert 0 < result.layer_time_low_s < result.layer_time_s < result.layer_time_high_s


@pytest.mark.parametrize("name", toml.names("devices"))
def test_every_shipped_device_simulates_alone(name, make_layer):
    device = load_cluster(name)
    result = simulate(Candidate(layer=make_layer()), single_device(device.profile), WORK)
    assert set(result.phase_time_s) == {"gate", "experts"}
    assert result.layer_time_s > 0
    assert (result.row()["dispatch_us"], result.row()["egress_utilisation"]) == (0.0, 0.0)


def test_engines_agree(hgx, candidate):
    bound, flow, event, _ = (
        simulate(candidate, hgx, WORK, engine=engine).layer_time_s for engine in ENGINES
    )
    assert bound <= flow * (1 + 1e-9)
    assert bound <= event * (1 + 1e-9)
    assert event == pytest.approx(flow, rel=0.01)


@pytest.mark.parametrize("field", ["hbm_bandwidth_bytes_per_s", "num_sms"])
def test_a_better_device_is_not_slower(hgx, candidate, field):
    profile = hgx.profile
    better = {field: getattr(profile, field) * 2}
    if field == "num_sms":
        better["peak_flops_per_s"] = {
            fmt: 2 * rate for fmt, rate in profile.peak_flops_per_s.items()
        }
    faster = replace(hgx, groups=((replace(profile, **better), 8),))
    assert (
        simulate(candidate, faster, WORK).layer_time_s
        <= simulate(candidate, hgx, WORK).layer_time_s
    )


def test_a_faster_fabric_is_not_slower(hgx, candidate):
    faster = hgx.with_(scale_up_gb_per_s=900.0)
    assert (
        simulate(candidate, faster, WORK).layer_time_s < simulate(candidate, hgx, WORK).layer_time_s
    )


def test_more_tokens_take_longer(hgx, candidate):
    times = [
        simulate(candidate, hgx, Workload(num_tokens_per_device=t)).layer_time_s
        for t in (64, 256, 1024, 4096)
    ]
    assert times == sorted(times)
    assert len(set(times)) == 4


def test_balancing_helps_skewed_loads(hgx, make_candidate):
    work = Workload(num_tokens_per_device=1024, routing="zipf:0.8")
    plain, balanced, replicated = (
        simulate(
            make_candidate(num_experts=64, top_k=4, hidden_size=2048, placement=p, num_replicas=r),
            hgx,
            work,
        )
        for p, r in (("contiguous", 0), ("balanced", 0), ("eplb", 64))
    )
    assert replicated.load_imbalance <= balanced.load_imbalance <= plain.load_imbalance
    assert replicated.layer_time_s <= plain.layer_time_s


def test_a_critical_path_walks_to_the_latest_dependency(hgx, candidate):
    from moesim.engines.run import run

    program = lower(prepare(candidate, hgx, WORK))
    timeline = run(program, "flow")
    phases = critical_phases(program, timeline)
    last_gate = max(
        timeline.end_s_N[i] for i, p in enumerate(program.phases_N) if p in ("gate", "permute")
    )
    assert phases["gate"] + phases["permute"] == pytest.approx(last_gate)
    assert phases["reduce"] == pytest.approx(
        timeline.makespan_s
        - max(timeline.end_s_N[i] for i, p in enumerate(program.phases_N) if p == "combine"),
        rel=1e-9,
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"parallelism": Parallelism(ep=4)},
            ConfigError,
            "parallelism: ep x tp: expected the 8 devices of hgx-h100-8, got 4",
        ),
        ({"placement": "eplbb"}, UnknownNameError, "unknown placement 'eplbb': did you mean eplb?"),
        (
            {"num_replicas": 8},
            ConfigError,
            "placement.num_replicas: contiguous places no replicas, got 8: use one of eplb, "
            "eplb_hierarchical, hierarchical, affinity, domain, local_search, exact",
        ),
        (
            {"placement": "eplb", "num_replicas": 3},
            ConfigError,
            (
                "placement: expected experts + replicas divisible by the 8 expert-parallel "
                "ranks, got 64 + 3"
            ),
        ),
    ],
)
def test_one_line_errors(hgx, candidate, change, error, message):
    with pytest.raises(error) as caught:
        simulate(replace(candidate, **change), hgx, WORK)
    assert str(caught.value) == message


def test_unknown_engine_is_told_before_anything_runs(hgx, candidate):
    with pytest.raises(
        UnknownNameError,
        match=r"^unknown engine 'simpy': known: bound, event, event_compiled, flow$",
    ):
        simulate(candidate, hgx, WORK, engine="simpy")


@pytest.mark.parametrize(
    "preset", ["mixtral-8x7b", "qwen3-30b-a3b", "olmoe-1b-7b", "gpt-oss-120b", "switch-base-128"]
)
def test_published_models_simulate_and_fit_on_a_node(hgx, preset):
    model = load_preset(preset)
    candidate = Candidate(
        layer=model.layer, parallelism=Parallelism(ep=8), dense_part=model.dense_part
    )
    result = simulate(candidate, hgx, Workload(num_tokens_per_device=256))
    assert result.layer_time_s > 0
    assert 2**30 < result.peak_memory_bytes < hgx.profile.usable_bytes
    assert (result.dropped_token_fraction == 0) or preset == "switch-base-128"
