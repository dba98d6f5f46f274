"""What works here, said truly."""

import json

import pytest

from moesim.cli import main
from moesim.measured import environment


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["moesim", "doctor", *words])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code, capsys.readouterr().out


def test_it_says_what_works_and_how_to_get_the_rest(monkeypatch, capsys):
    code, said = run(monkeypatch, capsys, "--json")
    rows = {row["name"]: row for row in json.loads(said)["tables"][0]["rows"]}
    assert code == 0
    assert {"Python", "torch", "triton", "numba cache", "GPU and driver"} <= set(rows)
    assert {row["status"] for row in rows.values()} <= {"ok", "missing", "hint"}
    assert all(bool(row["fix"]) == (row["status"] != "ok") for row in rows.values())
    assert rows["distributed"]["status"] == "ok"


def test_a_missing_package_has_a_remedy(monkeypatch):
    usual = environment.installed
    monkeypatch.setattr(
        environment, "installed", lambda name: None if name == "distributed" else usual(name)
    )
    found = {one.name: one for one in environment.look_around()}
    assert found["distributed"].status == "missing"
    assert found["distributed"].fix == "pip install 'moesim[dask]'"
    assert environment.works(list(found.values()))


@pytest.mark.parametrize("broken", ["python", "numpy"])
def test_what_the_core_needs_ends_with_an_error(monkeypatch, capsys, broken):
    if broken == "python":
        monkeypatch.setattr(environment, "_PYTHON", ((4, 0), (4, 2)))
    else:
        monkeypatch.setattr(environment, "_CORE", ("no-such-package",))
    code, said = run(monkeypatch, capsys)
    assert code == 2
    assert "cannot run: " in said


def test_the_interpreter_of_triton_3_6_needs_an_older_numpy(monkeypatch):
    there = {"triton": "3.6.0", "numpy": "2.4.6", "torch": "2.13.0"}
    monkeypatch.setattr(environment, "installed", there.get)
    assert environment._interpreter().fix == "pip install 'numpy<2.4'"
