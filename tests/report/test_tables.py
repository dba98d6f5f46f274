"""CSV files: one form, full precision, whole or not at all."""

import csv

import pytest

from moesim.errors import ConfigError
from moesim.report import write_csv


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_header_is_the_union_of_keys_in_order_of_appearance(tmp_path):
    path = write_csv(tmp_path / "t.csv", [{"b": 1, "a": 2.5}, {"a": 3.0, "c": "x"}])
    assert read(path) == [["b", "a", "c"], ["1", "2.5", ""], ["", "3.0", "x"]]


def test_columns_set_the_header_and_its_order(tmp_path):
    path = write_csv(tmp_path / "t.csv", [{"a": 1, "b": 2}, {"b": 3}], ("b", "c", "a"))
    assert read(path) == [["b", "c", "a"], ["2", "", "1"], ["3", "", ""]]


def test_integers_stay_integers_beside_nothing(tmp_path):
    """A trial without a candidate has no ep and no seed; that must not make 8 into 8.0 in all other
    rows.
    """
    path = write_csv(
        tmp_path / "t.csv", [{"ep": 8, "seed": 0}, {"ep": None, "seed": 0}, {"ep": 4, "seed": None}]
    )
    assert read(path)[1:] == [["8", "0"], ["", "0"], ["4", ""]]


@pytest.mark.parametrize("value", [1 / 3, 1e-300, 123456789.123456789, 2.0**-1074, 0.1 + 0.2])
def test_floats_are_written_in_full(tmp_path, value):
    assert float(read(write_csv(tmp_path / "t.csv", [{"x": value}]))[1][0]) == value


def test_texts_survive(tmp_path):
    texts = ["a,b", 'say "x"', "two\nlines", "Größe", "", " padded ", "NA"]
    path = write_csv(tmp_path / "t.csv", [{"n": i, "text": text} for i, text in enumerate(texts)])
    assert [row[1] for row in read(path)[1:]] == texts


def test_truth_values_and_nothing(tmp_path):
    assert read(write_csv(tmp_path / "t.csv", [{"a": True, "b": None}, {"a": False, "b": None}]))[
        1:
    ] == [["True", ""], ["False", ""]]


def test_no_rows(tmp_path):
    assert read(write_csv(tmp_path / "t.csv", [], ("a", "b"))) == [["a", "b"]]
    assert write_csv(tmp_path / "none.csv", []).is_file()


def test_a_generator_and_a_new_folder(tmp_path):
    path = write_csv(tmp_path / "a" / "b" / "t.csv", ({"x": i} for i in range(3)))
    assert read(path) == [["x"], ["0"], ["1"], ["2"]]


def test_same_rows_same_bytes(tmp_path):
    rows = [{"x": 0.1, "y": "z"}]
    assert (
        write_csv(tmp_path / "1.csv", rows).read_bytes()
        == write_csv(tmp_path / "2.csv", rows).read_bytes()
    )
    assert write_csv(tmp_path / "1.csv", rows).read_bytes() == (tmp_path / "2.csv").read_bytes(), (
        "written over"
    )


def test_an_unwritable_place_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        ConfigError, match=r"file/t.csv: cannot write this file: (Not a directory|File exists)$"
    ):
        write_csv(tmp_path / "file" / "t.csv", [{"a": 1}])
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match=r"folder.csv: cannot write this file: Is a directory$"):
        write_csv(tmp_path / "folder.csv", [{"a": 1}])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.csv"]


def test_what_fails_in_between_keeps_the_old_file(tmp_path):
    path = write_csv(tmp_path / "t.csv", [{"x": 1}])

    def rows():
        yield {"x": 2}
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_csv(path, rows())
    assert read(path) == [["x"], ["1"]]
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]
