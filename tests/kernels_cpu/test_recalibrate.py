"""Factors come back that were put in, the half kept apart decides, and the profile that is written
holds them.
"""

from dataclasses import replace

import numpy as np
import pytest

from moesim.cli import main as run_moesim
from moesim.design.candidate import Candidate, Parallelism, Workload
from moesim.errors import ConfigError
from moesim.files import toml
from moesim.hardware import HostFabric, load_cluster, load_profile, ranks_of_host, single_device
from moesim.hardware.profile_file import ProfileFile
from moesim.measured.recalibrate import (
    Recalibration,
    _halves,
    recalibrate,
    recalibrated_text,
    scaled,
)
from moesim.measured.sources import CheckRow
from moesim.measured.winners import Case
from moesim.model import MoELayer
from moesim.report import write_csv
from moesim.simulation.run import simulate
from moesim.units import US

pytestmark = pytest.mark.full

FABRIC = HostFabric(
    backend="gloo",
    start_s=1e-4,
    port_bytes_per_s=2e9,
    ranks=(2,),
    bytes_per_pair=(1e6,),
    time_s=(6e-4,),
    interval=(0.8, 1.2),
)


@pytest.fixture
def profile(cpu_profile_path):
    return replace(load_profile(str(cpu_profile_path)), host_fabric=FABRIC)


def checked(profile, truth, noise=0.0, count=12):
    """Layers on one rank and on two, and what a machine with those factors would take for them."""
    rng = np.random.default_rng(1)
    pairs = []
    for number in range(count):
        ranks = 1 + number % 2
        made = single_device if ranks == 1 else lambda p: ranks_of_host(p, 2)
        layer = MoELayer(
            hidden_size=int(64 * rng.integers(2, 12)),
            num_experts=int(2 ** rng.integers(2, 7)),
            top_k=2,
            expert_intermediate_size=int(64 * rng.integers(1, 12)),
        )
        winner = Case(
            candidate=Candidate(layer=layer, parallelism=Parallelism(ep=ranks)),
            cluster=made(profile),
            workload=Workload(num_tokens_per_device=int(rng.integers(16, 600)), seed=number),
        )
        here = simulate(winner.candidate, winner.cluster, winner.workload).layer_time_s
        there = simulate(
            winner.candidate, made(scaled(profile, truth)), winner.workload
        ).layer_time_s
        pairs.append(
            (
                winner,
                CheckRow(
                    candidate=winner.candidate.label,
                    source="torch-cpu",
                    quantity="layer_time_us",
                    status="checked",
                    simulated=here / US,
                    measured=there / US * float(np.exp(rng.normal(0, noise))),
                    extra={"as_it_is": True},
                ),
            )
        )
    for size in (1e3, 1e5, 1e7):
        seconds = FABRIC.start_s * truth.get("exchange_start", 1.0) + size / 2e9 * truth.get(
            "exchange_bytes", 1.0
        )
        pairs += [
            (
                winner,
                CheckRow(
                    candidate=winner.candidate.label,
                    source="gloo",
                    quantity="dispatch_time_us",
                    status="checked",
                    simulated=1.0,
                    measured=seconds / US,
                    extra={"port_bytes": size, "as_it_is": True},
                ),
            )
            for winner, _ in pairs[1:9:2]
        ]
    return pairs


def test_factors_that_were_put_in_help(profile):
    truth = {"gemm": 1.3, "exchange_start": 2.0, "exchange_bytes": 0.7}
    found = recalibrate(checked(profile, truth))
    assert found.helps
    assert found.after["mape"] < 0.3 * found.before["mape"]
    assert found.factors["gemm"] == pytest.approx(1.3, rel=0.1)
    assert found.factors["exchange_start"] == pytest.approx(2.0, rel=0.2)
    assert found.factors["exchange_bytes"] == pytest.approx(0.7, rel=0.1)
    assert len(found.fitted_on) == len(found.kept_apart) == 6
    assert not set(found.fitted_on) & set(found.kept_apart)


def test_each_half_has_exchanges_on_any_machine(profile):
    """The digest of a measured profile is another on every machine, and with it the halves."""
    for number in range(6):
        pairs = checked(replace(profile, digest=f"{number:012d}"), {})
        for half in _halves(pairs):
            timed = {winner.key for winner, row in half if "port_bytes" in row.extra}
            assert (len(timed), len({winner.key for winner, _ in half})) == (2, 6)


def test_halves_and_factors_are_the_same_in_any_order(profile):
    pairs = checked(profile, {"gemm": 1.2}, noise=0.05)
    first, second = recalibrate(pairs), recalibrate(pairs[::-1])
    assert set(first.fitted_on) == set(second.fitted_on)
    assert first.factors == pytest.approx(second.factors, rel=1e-3)


def test_refuses(profile):
    pairs = checked(profile, {})
    with pytest.raises(
        ConfigError, match="expected at least 4 candidates that were measured as they are, got 3"
    ):
        recalibrate(pairs[:3])
    with pytest.raises(ConfigError, match="expected at least 4 candidates"):
        recalibrate([(winner, replace(row, extra={})) for winner, row in pairs])
    for cluster in (load_cluster("h100-sxm"), load_cluster("hgx-h100-8")):
        with pytest.raises(
            ConfigError, match="expected winners on one profile that `moesim measure` wrote"
        ):
            recalibrate([(replace(winner, cluster=cluster), row) for winner, row in pairs])


def test_the_profile_that_is_written_holds_the_factors(cpu_profile_path, tmp_path):
    text = cpu_profile_path.read_text(encoding="utf-8")
    found = Recalibration(
        factors={"gemm": 1.25, "select": 0.5},
        before={"mape": 9.0},
        after={"mape": 7.0},
        fitted_on=("a",),
        kept_apart=("b",),
    )
    path = tmp_path / "local.toml"
    path.write_text(recalibrated_text(text, found), encoding="utf-8")
    old, new = load_profile(str(cpu_profile_path)), load_profile(str(path))
    for table, factor in (("gemm_float32", 1.25), ("top_k", 0.5), ("stream", 1.0), ("launch", 1.0)):
        assert new.serial[table] == pytest.approx(
            {k: factor * v for k, v in old.serial[table].items()}, rel=1e-4
        )
    assert new.peak_flops_per_s == old.peak_flops_per_s
    file = toml.parse(path.read_text(encoding="utf-8"), ProfileFile, path.name)
    assert "gemm 1.250, select 0.500" in file.sources["recalibrated"].locator
    assert {q.source for q in file.serial["gemm_float32"].values()} == {"recalibrated"}


def test_the_command_tells_before_and_after(cpu_profile_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MOESIM_HOME", str(tmp_path))
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "local.toml").write_text(
        cpu_profile_path.read_text(encoding="utf-8"), encoding="utf-8"
    )
    cluster = load_cluster("local")
    rows = []
    for width in (64, 128, 192, 256):
        layer = MoELayer(hidden_size=128, expert_intermediate_size=width, num_experts=8, top_k=2)
        rows.append(
            simulate(Candidate(layer=layer), cluster, Workload(num_tokens_per_device=64)).row()
        )
    write_csv(tmp_path / "winners.csv", rows)
    new = tmp_path / "new.toml"
    monkeypatch.setattr(
        "sys.argv",
        [
            "moesim",
            "check",
            str(tmp_path / "winners.csv"),
            "--sources",
            "torch-cpu",
            "--recalibrate",
            "--profile-out",
            str(new),
            "--even-if-worse",
        ],
    )
    with pytest.raises(SystemExit) as stopped:
        run_moesim()
    out = capsys.readouterr().out
    assert not stopped.value.code
    assert "candidates kept apart, before: mean" in out
    assert "candidates kept apart, after: mean" in out
    assert load_profile(str(new)).serial
    monkeypatch.setattr(
        "sys.argv", ["moesim", "check", str(tmp_path / "winners.csv"), "--profile-out", str(new)]
    )
    with pytest.raises(SystemExit) as stopped:
        run_moesim()
    assert stopped.value.code == 2
    assert (
        capsys.readouterr().err
        == "error: --profile-out: expected --recalibrate beside it, got none\n"
    )
