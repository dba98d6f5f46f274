"""A GPU's figures move to where its checked layers say, and a held-out half decides whether to."""

import re
from dataclasses import replace

import numpy as np
import pytest

from moesim.cli import main as run_moesim
from moesim.costs.libraries import running
from moesim.design.candidate import Candidate, Workload
from moesim.errors import ConfigError
from moesim.files import toml
from moesim.hardware import load_cluster, load_profile, single_device
from moesim.hardware.profile_file import ProfileFile
from moesim.measured import sources
from moesim.measured.recalibrate import Recalibration, recalibrate, recalibrated_text, scaled
from moesim.measured.sources import CheckRow
from moesim.measured.winners import Case
from moesim.model import Gate, MoELayer
from moesim.report import write_csv
from moesim.simulation.run import simulate
from moesim.units import US

pytestmark = pytest.mark.full

HERE = "NVIDIA H100 80GB HBM3"
MEASURED = f"""
[measurement]
command = "a test"
created = "2026-11-27"
machine = "{HERE}"
software = "none"
seconds = 1.0
slowdown = 0.0
contended = false
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A profile as `moesim measure` writes one of an H100."""
    text = toml.find("devices", "h100-sxm").read_text(encoding="utf-8")
    text = text.replace('aliases = ["h100_sxm", "h100", "h100-sxm5", "h100-80gb"]\n', "")
    path = tmp_path_factory.mktemp("gpu") / "local.toml"
    path.write_text(text.replace("\n[compute]\n", MEASURED + "\n[compute]\n"), encoding="utf-8")
    return path


def checked(profile, truth, noise=0.02, count=12):
    """What a GPU with those factors would take, for layers of many sizes."""
    rng = np.random.default_rng(2)
    there, pairs = running(single_device(scaled(profile, truth))), []
    for number in range(count):
        layer = MoELayer(
            hidden_size=int(512 * rng.integers(2, 9)),
            num_experts=int(2 ** rng.integers(3, 8)),
            top_k=int(2 ** rng.integers(0, 4)),
            expert_intermediate_size=int(256 * rng.integers(1, 9)),
            gate=Gate.parse(("flat", "two_level:4:2")[number % 2]),
        )
        case = Case(
            candidate=Candidate(layer=layer),
            cluster=single_device(profile),
            workload=Workload(num_tokens_per_device=int(2 ** rng.integers(4, 13)), seed=number),
        )
        before, after = (
            simulate(case.candidate, cluster, case.workload, must_fit=False)
            for cluster in (running(case.cluster), there)
        )
        for quantity, phase in (("layer", None), ("experts", "experts"), ("gate", "gate")):
            simulated, measured = (
                result.phase_time_s[phase] if phase else result.layer_time_s
                for result in (before, after)
            )
            row = CheckRow(
                candidate=case.candidate.label,
                source="triton",
                quantity=f"{quantity}_time_us",
                status="checked",
                simulated=simulated / US,
                measured=measured / US * float(np.exp(rng.normal(0, noise))),
            )
            pairs.append((case, row))
    return pairs


def test_factors_that_were_put_in_help(path):
    truth = {"matrix": 1.1, "memory": 1.25, "cycles": 1.5}
    found = recalibrate(checked(load_profile(str(path)), truth))
    assert set(found.factors) == set(truth)
    assert found.helps
    assert found.before["mape"] > 15
    assert found.after["mape"] < 4
    assert found.factors["memory"] == pytest.approx(1.25, rel=0.1)
    assert found.factors["cycles"] == pytest.approx(1.5, rel=0.1)
    assert len(found.fitted_on) == len(found.kept_apart) == 6
    assert not set(found.fitted_on) & set(found.kept_apart)


def test_a_profile_that_is_right_stays(path):
    found = recalibrate(checked(load_profile(str(path)), {}))
    for factor in found.factors.values():
        assert factor == pytest.approx(1.0, abs=0.05)
    assert found.after["mape"] == pytest.approx(found.before["mape"], abs=0.5)


def test_only_what_ran_on_this_gpu_counts(path):
    pairs = checked(load_profile(str(path)), {})
    with pytest.raises(ConfigError, match="at least 4 candidates that were measured as they are"):
        recalibrate([(case, replace(row, source="silicon")) for case, row in pairs])
    warm = [(case, replace(row, quantity="experts_warm_time_us")) for case, row in pairs]
    with pytest.raises(ConfigError, match="got 0"):
        recalibrate(warm)


def test_a_shipped_profile_is_not_ours_to_move(path):
    shipped = single_device(load_profile("h100-sxm"))
    pairs = checked(load_profile(str(path)), {})
    with pytest.raises(
        ConfigError, match=r"one profile that `moesim measure` wrote of this CPU or GPU, got h100"
    ):
        recalibrate([(replace(case, cluster=shipped), row) for case, row in pairs])


def test_the_profile_that_is_written_holds_the_factors(path, tmp_path):
    found = Recalibration(
        factors={"matrix": 1.25, "memory": 0.8, "cycles": 2.0},
        before={"mape": 9.0},
        after={"mape": 7.0},
        fitted_on=("a",),
        kept_apart=("b",),
    )
    new_path = tmp_path / "new.toml"
    text = recalibrated_text(path.read_text(encoding="utf-8"), found)
    new_path.write_text(text, encoding="utf-8")
    old, new = load_profile(str(path)), load_profile(str(new_path))
    assert new.peak_flops_per_s == pytest.approx(
        {fmt: rate / 1.25 for fmt, rate in old.peak_flops_per_s.items()}, rel=1e-4
    )
    assert new.clock_hz == pytest.approx(old.clock_hz / 2)
    assert new.hbm_bandwidth_bytes_per_s == pytest.approx(old.hbm_bandwidth_bytes_per_s / 0.8)
    # The rates that were measured are what they were.
    rates = [
        np.multiply(chip.gather_efficiency, chip.hbm_bandwidth_bytes_per_s) for chip in (old, new)
    ]
    assert rates[1] == pytest.approx(rates[0], rel=1e-4)
    assert new.gather_slowdown(32) == pytest.approx(old.gather_slowdown(32), rel=1e-3)
    file = toml.parse(new_path.read_text(encoding="utf-8"), ProfileFile, new_path.name)
    assert file.compute.clock_ghz.source == "recalibrated"
    assert file.hbm.gather[0].efficiency.source == "run-gather"
    assert "matrix 1.250, memory 0.800, cycles 2.000" in file.sources["recalibrated"].locator
    # Prices with it are those that the factors were fitted with.
    case, _ = checked(old, {}, count=1)[0]
    expected = simulate(
        case.candidate, single_device(scaled(old, found.factors)), case.workload
    ).layer_time_s
    written = simulate(case.candidate, single_device(new), case.workload).layer_time_s
    assert written == pytest.approx(expected, rel=1e-3)


class Slower:
    """A source whose GPU needs 1.3 times the cycles and bytes that its profile says."""

    name = "triton"

    def unavailable_because(self):
        return None

    def check(self, candidate, cluster, workload):
        pairs = checked_one(candidate, cluster, workload, {"memory": 1.3, "cycles": 1.3})
        return [row for _, row in pairs]


def checked_one(candidate, cluster, workload, truth):
    case = Case(candidate=candidate, cluster=cluster, workload=workload)
    there = single_device(scaled(cluster.profile, truth))
    before, after = (
        simulate(candidate, running(on), workload, must_fit=False).layer_time_s
        for on in (cluster, there)
    )
    row = CheckRow(
        candidate=candidate.label,
        source="triton",
        quantity="layer_time_us",
        status="checked",
        simulated=before / US,
        measured=after / US,
    )
    return [(case, row)]


def test_the_command_tells_before_and_after(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MOESIM_HOME", str(tmp_path))
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "local.toml").write_text(path.read_text(encoding="utf-8"))
    cluster, work = load_cluster("local"), Workload(num_tokens_per_device=512)
    layers = [
        MoELayer(hidden_size=1024, expert_intermediate_size=width, num_experts=16, top_k=2)
        for width in (256, 512, 768, 1024, 1280, 1536)
    ]
    rows = [simulate(Candidate(layer=layer), cluster, work).row() for layer in layers]
    write_csv(tmp_path / "winners.csv", rows)
    monkeypatch.setattr(sources, "installed_sources", lambda: {"triton": Slower()})
    new = tmp_path / "new.toml"
    arguments = ["check", str(tmp_path / "winners.csv"), "--recalibrate", "--profile-out", str(new)]
    monkeypatch.setattr("sys.argv", ["moesim", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run_moesim()
    out = capsys.readouterr().out
    assert not stopped.value.code
    assert "factors: matrix " in out
    before, after = (
        float(re.search(rf"3 candidates kept apart, {when}: mean ([\d.]+) %", out)[1])
        for when in ("before", "after")
    )
    assert after < 5 < 15 < before
    old, found = load_profile(str(path)), load_profile(str(new))
    assert found.clock_hz < old.clock_hz
    assert found.hbm_bandwidth_bytes_per_s < old.hbm_bandwidth_bytes_per_s
