"""``moesim operate`` on the command line: plans, searches, bad input."""

import csv
from pathlib import Path
from time import process_time

import pytest
from typer.testing import CliRunner

from moesim.cli.root import app
from moesim.errors import MoesimError

STUDIES = Path(__file__).parents[2] / "studies"
JOB = """
[job]
days = 10.0
[job.stated]
devices = 512
step_s = 5.0
expert_state_gib = 500.0
num_experts = 64
[failures.causes.node]
scope = "node"
per_device_hour = 1e-4
"""


def invoke(plan, *words):
    return CliRunner().invoke(app, ["operate", "--plan", str(plan), *map(str, words)])


def rows_of(path):
    return list(csv.DictReader(path.open()))


@pytest.fixture
def plan(tmp_path):
    def write(text):
        path = tmp_path / "plan.toml"
        path.write_text(text)
        return path

    return write


def test_the_shipped_plan_is_told_in_80_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = invoke(STUDIES / "operate_plan.toml", "--out", tmp_path, "--seeds", 2)
    assert done.exit_code == 0, done.stderr
    for word in (
        "ETTR",
        "goodput",
        "copies",
        "failures",
        "lost work",
        "no copies",
        "2 seeds",
        "nats",
    ):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    days = rows_of(tmp_path / "days.csv")
    assert [row["seed"] for row in days] == ["0", "1"]
    events = rows_of(tmp_path / "events.csv")
    assert sum(int(row["lost_steps"]) for row in events) == int(days[0]["lost_steps"])
    down_h = sum(float(row["down_h"]) for row in rows_of(tmp_path / "downtime.csv"))
    assert down_h == pytest.approx(float(days[0]["down_h"]))
    assert "plotly" in (tmp_path / "timeline.html").read_text()


def test_a_thousand_ways_in_a_minute(tmp_path):
    """A hundred here; time grows with their number."""
    began = process_time()
    done = invoke(STUDIES / "operate_plan.toml", "--search", 100, "--out", tmp_path)
    assert process_time() - began < 6.0
    assert done.exit_code == 0, done.stderr
    points = rows_of(tmp_path / "points.csv")
    assert len(points) == 100
    best = [float(row["samples_per_device_hour"]) for row in points]
    assert best == sorted(best, reverse=True)
    assert "best" in done.stdout
    again = invoke(STUDIES / "operate_plan.toml", "--search", 100, "--out", tmp_path)
    assert again.stdout == done.stdout


def test_a_simulated_step(plan):
    text = JOB[: JOB.index("[job.stated]")] + JOB[JOB.index("[failures") :]
    text += """
[job.simulated]
model = "olmoe-1b-7b"
cluster = "hgx-h100-8"
layout = "ep8"
global_batch = 64
[replication]
degree = 1
where = "device"
"""
    done = invoke(plan(text))
    assert done.exit_code == 0, done.stderr
    # 6.9 B parameters of 14 bytes; every expert matrix has 2,048 x 1,024
    assert f"experts {64 * 16 * 3 * 2048 * 1024 * 14 / 2**30:,.0f} GiB" in done.stdout
    assert "loss" in done.stdout


def test_serving_and_growth(tmp_path):
    for name, word in (("serving", "half lost"), ("growth", "1,000,000")):
        done = invoke(STUDIES / f"operate_{name}.toml", "--out", tmp_path / name)
        assert done.exit_code == 0, done.stderr
        assert word in done.stdout
    assert len(rows_of(tmp_path / "growth" / "stages.csv")) == 4
    assert rows_of(tmp_path / "serving" / "events.csv")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("1e-4", "-1e-4"),
            "plan.toml: failures.causes.node.per_device_hour: expected a numb",
        ),
        (('"node"', '"rack"'), "failures.causes.node.scope: expected one of device, nic, node"),
        (("devices = 512", "devices = 0"), "plan.toml: job.stated.devices: expected a number >= 1"),
        (("devices = 512", "devices = 9"), "plan.toml: job.devices: expected a multiple of the 8"),
        (("days = 10.0", "day = 10.0"), "plan.toml: job.days: expected a value, got nothing"),
        (("1e-4", "1e9"), "at most 500,000 events in all, got 1.23e+14 in 10 days"),
        (("10.0", "1e300"), "plan.toml: job.days: expected a number <= 100000, got 1e+300"),
        (("5.0", "1e-320"), "plan.toml: job.stated.step_s: expected a number >= 1e-06"),
        (("5.0", "inf"), "plan.toml: job.stated.step_s: expected a number"),
        (("[job]", "[serving]\n[job]"), "plan.toml: serving.days: expected a value, got nothing"),
        (("[failures", "[other"), "plan.toml: other: no such key"),
        (("", '[failures]\nfleet = "x"\n'), "plan.toml: failures.fleet: unknown fleet of failures"),
        (("", "[replication]\ndegree = 64\n"), "plan.toml: replication.degree: expected fewer"),
        (("", "[search]\nspare_nodes = [-1]\n"), "plan.toml: search.spare_nodes: expected numbers"),
        (
            ("", "[job.simulated]\nmodel='x'\ncluster='y'\nglobal_batch=1\n"),
            "either job.sim",
        ),
    ],
)
def test_bad_plans_are_one_line(plan, change, said):
    old, new = change
    done = invoke(plan(JOB.replace(old, new, 1) if old else new + JOB))
    assert isinstance(done.exception, MoesimError), done.output
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)
    assert done.exception.exit_code == 2


def test_a_fleet_is_shown_with_its_sources():
    done = CliRunner().invoke(app, ["profiles", "meta-a100-fleet"])
    assert done.exit_code == 0
    for word in ("per_job_hour", "0.0919", "derived", "reliability"):
        assert word in done.stdout


def test_unknown_devices_are_named(plan):
    simulated = "[job]\ndays = 1.0\n[job.simulated]\nmodel = 'olmoe-1b-7b'\nglobal_batch = 8\n"
    done = invoke(plan(simulated + "cluster = 'h1000'\n[failures]\nfleet = 'llama3-2024'\n"))
    assert "plan.toml: job.simulated.cluster: unknown" in str(done.exception)
    refused = invoke(STUDIES / "operate_growth.toml", "--search", 3)
    assert "--search: expected a plan with [job]" in str(refused.exception)
