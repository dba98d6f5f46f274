"""`moesim quality laws` and `moesim quality fit`."""

import csv

import pytest
from typer.testing import CliRunner

from moesim.cli.root import app
from moesim.errors import ConfigError
from moesim.quality import PUBLISHED, load_law

RUN = CliRunner()


def test_laws_are_listed_with_ranges_and_sources():
    done = RUN.invoke(app, ["quality", "laws"], env={"COLUMNS": "250"})
    assert done.exit_code == 0
    for word in (
        "joint",
        "fine_grained",
        "clark",
        "abnar",
        "leverage",
        "2502.05172",
        "second hand",
        "two_level",
        "no measured figure of hash routing",
        "E_eff 1-32",
    ):
        assert word in done.stdout


def test_fit_writes_a_law_and_says_how_good_it_is(tmp_path):
    points, law = tmp_path / "runs.csv", tmp_path / "law.toml"
    rows = [
        (e, 2, 2e8, 1e10, 2, PUBLISHED.mid(e / 2, 2e8, 1e10, 2.0) * 1.05)
        for e in (4, 8, 16, 32, 64)
    ]
    points.write_text(
        "num_experts,top_k,active_params,train_tokens,granularity,loss\n"
        + "".join(",".join(map(str, row)) + "\n" for row in rows)
    )
    done = RUN.invoke(
        app,
        ["quality", "fit", str(points), "--out", str(law), "--residuals", str(tmp_path / "r.csv")],
        env={"COLUMNS": "200"},
    )
    assert done.exit_code == 0
    said = " ".join(done.stdout.split())
    assert "root mean square error in nats: as published 0.1" in said
    assert "points left out 0.0000" in said
    assert load_law(law).num_points == 5
    assert len(list(csv.DictReader((tmp_path / "r.csv").open()))) == 5


def test_bad_points_are_one_line(tmp_path):
    (tmp_path / "p.csv").write_text("loss\n1\n")
    done = RUN.invoke(
        app, ["quality", "fit", str(tmp_path / "p.csv"), "--out", str(tmp_path / "law.toml")]
    )
    assert isinstance(done.exception, ConfigError)
    assert "p.csv: expected columns" in str(done.exception)
    assert not (tmp_path / "law.toml").exists()


@pytest.mark.parametrize(("command", "flags"), [("laws", set()), ("fit", {"--out", "--residuals"})])
def test_flags_are_frozen(command, flags):
    import typer.main

    group = typer.main.get_command(app).commands["quality"]
    found = {
        flag
        for parameter in group.commands[command].params
        for flag in parameter.opts
        if flag.startswith("-")
    }
    assert found == flags | {"--details", "--json"}
