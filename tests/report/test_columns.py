"""Every column that a command or study writes is in the schema, with a sentence."""

import csv
from importlib.resources import files

import pytest

from moesim.advice import compare, placements, worth
from moesim.measured.check import CHECK_COLUMNS
from moesim.report.columns import column_of, known_columns
from moesim.search.evaluate import TRIAL_COLUMNS
from moesim.serving.result import WHOLE_COLUMNS
from moesim.simulation.result import RESULT_COLUMNS
from moesim.simulation.training.result import TRAIN_COLUMNS

TABLES = {
    "trials": TRIAL_COLUMNS,
    "layer": RESULT_COLUMNS,
    "serve": WHOLE_COLUMNS,
    "train": TRAIN_COLUMNS,
    "check": CHECK_COLUMNS,
    "compare": compare.COLUMNS,
    "worth": worth.COLUMNS,
    "placements": placements.COLUMNS,
}


@pytest.mark.parametrize("table", TABLES)
def test_tables_are_in_the_schema(table):
    assert [name for name in TABLES[table] if column_of(name) is None] == []


def test_schema_is_unique_sentences():
    text = (files("moesim.report") / "columns.csv").read_text(encoding="utf-8")
    rows = list(csv.reader(text.splitlines()))
    names = [row[1] for row in rows[1:]]
    assert len(set(names)) == len(names) == len(known_columns())
    assert all(len(row) == 4 and row[3].endswith(".") for row in rows[1:])


def test_ends_and_percentiles_follow():
    low = column_of("layer_time_low_us")
    assert (low.unit, low.group) == ("us", "layer")
    assert "P10" in low.meaning
    assert "layer_time_us" in low.meaning
    assert "P99 of ttft_ms" in column_of("ttft_p99_ms").meaning
    assert column_of("loss_high").unit == "nats"
    assert column_of("no_such_low") is None
    assert column_of("nonsense") is None
