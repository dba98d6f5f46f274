"""Devices that do not exist: what hangs together moves together, and nobody calls it calibrated."""

import pytest

from moesim import (
    Candidate,
    Parallelism,
    Workload,
    load_cluster,
    load_preset,
    load_profile,
    simulate,
)
from moesim.errors import ConfigError, UnknownNameError
from moesim.hardware.what_if import DEVICE_KEYS, changed_number, changed_profile

WORK = Workload(num_tokens_per_device=256)


def time_of(cluster):
    layer = load_preset("qwen3-30b-a3b").layer
    return simulate(Candidate(layer=layer, parallelism=Parallelism(ep=8)), cluster, WORK)


@pytest.mark.parametrize("key", sorted(DEVICE_KEYS.keys() - {"host_launch_us"}))
def test_a_factor_of_one_changes_no_time(hgx, key):
    same = hgx.with_(**{key: "1x"})
    assert time_of(same).layer_time_s == time_of(hgx).layer_time_s
    assert time_of(same).calibration == "spec_sheet" != time_of(hgx).calibration
    assert same.digest != hgx.digest


def test_launches_from_the_host_are_asked_for(hgx):
    """Naming the host's launch time gives up graphs, also at the time the profile states."""
    captured, eager = (
        time_of(cluster).layer_time_s for cluster in (hgx, hgx.with_(host_launch_us="1x"))
    )
    slower, faster = (
        time_of(hgx.with_(host_launch_us=us)).layer_time_s for us in (2.0 * 19.255, 0.5)
    )
    assert captured < eager < slower
    # A host faster than the chip's own front end leaves the time of a graph.
    assert faster == captured
    changed = hgx.with_(host_launch_us="2x").profile
    assert changed.eager
    assert changed.host_launch_s == pytest.approx(38.51e-6)
    pod = load_cluster("tpu-v5p-4x4x4")
    with pytest.raises(ConfigError, match="tpu-v5p: host_launch_us: expected a GPU whose profile"):
        pod.with_(host_launch_us=5.0)


@pytest.mark.parametrize("key", ["hbm_gb_per_s", "num_sms", "bf16_tflops", "nvlink_gb_per_s"])
def test_more_is_never_slower(hgx, key):
    times = [
        time_of(hgx.with_(**{key: factor})).layer_time_s for factor in ("0.5x", "1x", "2x", "4x")
    ]
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1]


def test_sms_bring_their_share_of_every_peak(h100):
    twice = changed_profile(h100, {"num_sms": "2x"})
    assert twice.num_sms == 264
    assert twice.peak_flops_per_s == {fmt: 2 * rate for fmt, rate in h100.peak_flops_per_s.items()}
    assert twice.growth == {"num_sms": 2.0}


def test_changes_add_up_and_keep(hgx):
    grown = hgx.with_(hbm_gb_per_s="2x").with_(nvlink_gb_per_s=900.0).with_(hbm_gb_per_s="1.5x")
    assert grown.profile.growth == {"hbm_gb_per_s": 3.0}
    assert grown.profile.hbm_bandwidth_bytes_per_s == pytest.approx(
        3 * hgx.profile.hbm_bandwidth_bytes_per_s
    )
    assert grown.growth == {"link_gb_per_s": 2.0}
    assert grown.with_(profile="h200-sxm").profile.growth == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("2", "expected a number > 0 or a factor such as '2x', got '2'"),
        (0, "got 0"),
        (-1.0, "got -1.0"),
        (True, "got True"),
        (None, "got None"),
        ("0x", "got '0x'"),
        (float("nan"), "got nan"),
        ("x", "got 'x'"),
    ],
)
def test_wrong_numbers(hgx, change, message):
    with pytest.raises(ConfigError) as caught:
        hgx.with_(hbm_gb_per_s=change)
    assert str(caught.value).startswith("hbm_gb_per_s: expected")
    assert str(caught.value).endswith(message.rpartition("got")[2])


def test_unknown_numbers_and_cpus(h100, hgx):
    with pytest.raises(UnknownNameError, match="unknown device number 'hbm': did you mean hbm_gib"):
        changed_profile(h100, {"hbm": 1.0})
    with pytest.raises(ConfigError, match=r"cluster.with_: expected one of .*num_sms.*, got 'hbm'"):
        hgx.with_(hbm=1.0)
    assert changed_number("k", 3.0, "2x") == 6.0


def test_alone_in_a_torus_too():
    pod = load_cluster("tpu-v5p-4x4x4")
    assert pod.with_(hbm_gb_per_s="2x").profile.hbm_bandwidth_bytes_per_s == pytest.approx(
        2 * load_profile("tpu-v5p").hbm_bandwidth_bytes_per_s
    )
