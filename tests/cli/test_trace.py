"""``moesim trace describe``: the statistics of a file, and one-line errors."""

import json

import numpy as np
import pandas as pd
import pytest

from moesim.cli.root import app
from moesim.cli.script import run_command


@pytest.fixture
def moesim_trace(capsys):
    """Runs the command; gives exit code, stdout and stderr."""

    def run(*arguments):
        code = 0
        try:
            run_command(
                lambda: app(["trace", "describe", *map(str, arguments)], standalone_mode=False)
            )
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return run


def test_statistics_of_every_layer(moesim_trace, tmp_path):
    ids = np.stack([np.stack([np.arange(40) % 4, np.arange(40) % 2 + 4], axis=1)] * 2, axis=1)
    np.save(tmp_path / "t.npy", ids)
    code, out, _ = moesim_trace(tmp_path / "t.npy", "--json", "--out", tmp_path / "t.csv")
    (table,) = json.loads(out)["tables"]
    rows = table["rows"]
    assert code == 0
    assert [(r["layer"], r["tokens"], r["top_k"], r["experts"], r["choices"]) for r in rows] == [
        (0, 40, 2, 6, 80.0),
        (1, 40, 2, 6, 80.0),
    ]
    assert rows[0]["max_over_mean"] == pytest.approx(20 / (80 / 6))
    assert pd.read_csv(tmp_path / "t.csv")["gini"].tolist() == pytest.approx(
        [r["gini"] for r in rows]
    )
    code, out, _ = moesim_trace(tmp_path / "t.npy")
    assert code == 0
    assert "ids of 2 layers" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--experts", "5"), "layer 0, token 1: expected expert ids from 0 to 4, got 5"),
        (("--top-k", "3"), "layer 0: expected 3 experts a token, got 2"),
        (("--kind", "loads"), "--kind: expected ids or counts, got 'loads'"),
    ],
)
def test_errors_are_one_line_and_code_2(moesim_trace, tmp_path, options, message):
    np.save(tmp_path / "t.npy", np.stack([np.arange(40) % 4, np.arange(40) % 2 + 4], axis=1))
    code, out, err = moesim_trace(tmp_path / "t.npy", *options)
    assert (code, out) == (2, "")
    assert err.strip().endswith(message)
    assert err.count("\n") == 1


def test_what_is_left_out_is_said(moesim_trace, tmp_path):
    counts_LE, ids_TK = np.zeros((3, 8)), np.arange(32).reshape(8, 4) % 8
    np.save(tmp_path / "empty.npy", counts_LE)
    counts_LE[1] = 5
    ids_TK[2] = -1
    np.save(tmp_path / "some.npy", counts_LE)
    np.save(tmp_path / "ids.npy", ids_TK)
    code, out, err = moesim_trace(tmp_path / "some.npy")
    assert code == 0
    assert "no choices in 2 layers, left out: 0, 2" in out + err
    code, out, err = moesim_trace(tmp_path / "ids.npy", "--kind", "ids")
    assert code == 0
    assert "1 rows of -1 are padding" in out + err
    code, out, err = moesim_trace(tmp_path / "empty.npy")
    assert code == 2
    assert "got none in 3 layers" in err
