"""What works here, said truly."""

import json

import pytest

from moesim.cli import main
from moesim.measured import workplace


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["moesim", "doctor", *words])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code, capsys.readouterr().out


def test_it_says_what_works_and_how_to_get_the_rest(monkeypatch, capsys):
    code, said = run(monkeypatch, capsys, "--json")
    rows = {row["name"]: row for row in json.loads(said)["tables"][0]["rows"]}
    assert code == 0
    assert {"python", "torch", "triton", "compiled code", "C compiler", "check: silicon"} <= set(
        rows
    )
    assert {row["state"] for row in rows.values()} <= {"ok", "missing"}
    assert all(bool(row["remedy"]) == (row["state"] == "missing") for row in rows.values())
    assert rows["dask"]["state"] == "ok"


def test_a_missing_package_has_a_remedy(monkeypatch):
    monkeypatch.setattr(workplace, "find_spec", lambda name: None)
    parts = {part.name: part for part in workplace.workplace_parts()}
    assert parts["dask"].state == "missing"
    assert parts["dask"].remedy == "pip install 'moesim[dask]'"


def test_a_python_that_is_too_old_ends_with_an_error(monkeypatch, capsys):
    monkeypatch.setattr(workplace, "_PYTHONS", ((4, 0), (4, 1)))
    code, said = run(monkeypatch, capsys)
    assert code == 2
    assert "cannot run: python" in said
