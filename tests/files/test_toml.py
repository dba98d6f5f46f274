"""TOML files people write: what is said when one is wrong, word by word, and where names are looked
up.
"""

import pickle

import pytest
from pydantic import Field

from moesim.errors import ConfigError, MoesimError, UnknownNameError
from moesim.files import toml
from moesim.files.toml import Quantity, Sourced, Strict

GOOD = """
title = "T"
count = 3
rate = {value = 1.5, kind = "measured", source = "s", low = 1.0, high = 2.0}
[[points]]
size = 32
share = {value = 0.5, kind = "assumed", source = "s"}
[by_name]
a = {value = 2.0, kind = "datasheet", source = "s"}
[sources.s]
title = "S"
"""


class Point(Strict):
    size: float = Field(gt=0)
    share: Quantity


class File(Sourced):
    title: str
    count: int = Field(ge=1)
    flag: bool = False
    rate: Quantity
    points: list[Point] = Field(min_length=1)
    by_name: dict[str, Quantity]


def test_good_file():
    file = toml.parse(GOOD, File, "f.toml")
    assert [path for path, _ in toml.quantities(file)] == ["rate", "points[0].share", "by_name.a"]
    assert (file.rate.value, file.rate.low, file.rate.high, file.points[0].size) == (
        1.5,
        1.0,
        2.0,
        32.0,
    )


RATE = 'rate = {value = 1.5, kind = "measured", source = "s", low = 1.0, high = 2.0}'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("count = 3", "count =", "not valid TOML: Invalid value (at line 3, column 8)"),
        (
            "count = 3",
            "count = 3\ncount = 4",
            "not valid TOML: Cannot overwrite a value (at line 4, column 10)",
        ),
        (
            "count = 3",
            "count = 3\ncuont = 4",
            "cuont: no such key (remove it or check its spelling)",
        ),
        ("count = 3\n", "", "count: expected a value, got nothing"),
        ("count = 3", "count = 3.5", "count: expected an integer, got 3.5"),
        ("count = 3", "count = true", "count: expected an integer, got True"),
        ("count = 3", "count = '3'", "count: expected an integer, got '3'"),
        ("count = 3", "count = 0", "count: expected a number >= 1, got 0"),
        ('title = "T"', "title = 7", "title: expected a string, got 7"),
        ("count = 3", "count = 3\nflag = 1", "flag: expected true or false, got 1"),
        ("value = 1.5", "value = '3.35TB'", "rate.value: expected a number > 0, got '3.35TB'"),
        ("value = 1.5", "value = true", "rate.value: expected a number > 0, got True"),
        ("value = 1.5", "value = 0", "rate.value: expected a number > 0, got 0"),
        ("value = 1.5", "value = -3.0", "rate.value: expected a number > 0, got -3.0"),
        ("value = 1.5", "value = nan", "rate.value: expected a number > 0, got nan"),
        ("value = 1.5", "value = inf", "rate.value: expected a number > 0, got inf"),
        ("value = 1.5, ", "", "rate.value: expected a value, got nothing"),
        (
            RATE,
            "rate = true",
            "rate: expected a number > 0, or a table of value, kind and source, got True",
        ),
        (
            RATE,
            'rate = {value = 1.5, kind = "measured"}',
            "rate.source: expected a value, got nothing",
        ),
        (RATE, 'rate = {value = 1.5, source = "s"}', "rate.kind: expected a value, got nothing"),
        (
            'kind = "measured"',
            'kind = "guess"',
            (
                "rate.kind: expected one of datasheet, measured, derived, assumed or calibrated, "
                "got 'guess'"
            ),
        ),
        (
            'kind = "measured", source = "s"',
            'kind = "measured", source = "t"',
            "rate.source: expected one of [sources]: s, got 't'",
        ),
        ("low = 1.0", "low = 0.0", "rate.low: expected a number > 0, got 0.0"),
        (
            'kind = "assumed", source = "s"',
            'kind = "assumed", source = "x@y"',
            "points[0].share.source: expected one of [sources]: s, got 'x@y'",
        ),
        ("size = 32", "size = 'x'", "points[0].size: expected a number, got 'x'"),
        (
            'a = {value = 2.0, kind = "datasheet", source = "s"}',
            "a = [2]",
            "by_name.a: expected a number > 0, or a table of value, kind and source, got [2]",
        ),
        (
            "[by_name]",
            "[[by_name]]",
            (
                "by_name: expected a table, got [{'a': {'value': 2.0, 'kind': 'datasheet', "
                "'source': 's'}}]"
            ),
        ),
        ('[sources.s]\ntitle = "S"', "", "rate.source: expected one of [sources]: (none), got 's'"),
        (
            '[sources.s]\ntitle = "S"',
            "[sources]",
            "rate.source: expected one of [sources]: (none), got 's'",
        ),
        (
            '[sources.s]\ntitle = "S"',
            "[sources.s]",
            "sources.s.title: expected a value, got nothing",
        ),
    ],
)
def test_one_line_names_file_key_rule_and_what_came(old, new, message):
    assert GOOD.count(old) == 1
    with pytest.raises(ConfigError) as caught:
        toml.parse(GOOD.replace(old, new), File, "f.toml")
    assert str(caught.value) == f"f.toml: {message}"


def test_a_wrong_value_is_told_before_an_unknown_key():
    text = GOOD.replace("count = 3", "count = 0\ncuont = 3")
    with pytest.raises(ConfigError, match=r"^f.toml: count: expected a number >= 1, got 0") as told:
        toml.parse(text, File, "f.toml")
    assert told.value.__notes__ == ["f.toml: cuont: no such key (remove it or check its spelling)"]


def test_all_errors_are_told_up_to_twenty():
    text = GOOD.replace("count = 3", "count = 0").replace("size = 32", 'size = "big"')
    with pytest.raises(ConfigError) as told:
        toml.parse(text, File, "f.toml")
    assert str(told.value) == "f.toml: count: expected a number >= 1, got 0"
    assert told.value.__notes__ == ["f.toml: points[0].size: expected a number, got 'big'"]
    many = "\n".join(f"extra{n} = 1" for n in range(30)) + GOOD
    with pytest.raises(ConfigError) as told:
        toml.parse(many, File, "f.toml")
    assert len(told.value.__notes__) == 20
    assert told.value.__notes__[-1] == "f.toml: and 10 more"


def test_every_unknown_source_is_told():
    with pytest.raises(ConfigError) as told:
        toml.parse(GOOD.replace("[sources.s]", "[sources.t]"), File, "f.toml")
    assert len(told.value.__notes__) == 2


def test_a_plain_number_is_assumed():
    file = toml.parse(GOOD.replace(RATE, "rate = 2"), File, "f.toml")
    assert (file.rate.value, file.rate.kind, file.rate.source) == (2.0, "assumed", "this file")
    for wrong, got in (("true", "True"), ('"3.35TB"', "'3.35TB'"), ("-1", "-1")):
        with pytest.raises(ConfigError, match=f"rate.*: expected a number > 0.*, got {got}"):
            toml.parse(GOOD.replace(RATE, f"rate = {wrong}"), File, "f.toml")


@pytest.mark.parametrize(
    ("old", "new", "key", "got"),
    [
        (GOOD[GOOD.index("[[points]]") : GOOD.index("[by_name]")], "points = []\n", "points", "[]"),
        ('kind = "measured", source = "s"', 'kind = "measured", source = ""', "rate.source", "''"),
    ],
)
def test_what_is_empty_is_told_in_our_words(old, new, key, got):
    """The rule and not the validation library's sentence: 'expected List should have at least 1
    item ...'.
    """
    text = GOOD.replace(old, "")
    text = new + text if key == "points" else GOOD.replace(old, new)
    with pytest.raises(ConfigError) as caught:
        toml.parse(text, File, "f.toml")
    assert str(caught.value).startswith(f"f.toml: {key}: expected ")
    assert str(caught.value).endswith(f", got {got}")
    assert "should" not in str(caught.value)


def test_files_do_not_change_after_loading():
    file = toml.parse(GOOD, File, "f.toml")
    with pytest.raises(ValueError, match="frozen"):
        file.count = 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100_smx", "unknown thing 'h100_smx': did you mean h100_sxm?"),
        ("H100_SXN", "unknown thing 'H100_SXN': did you mean h100_sxm?"),
        ("zzz", "unknown thing 'zzz': known: h100_sxm, tpu-v5"),
        ("", "unknown thing '': known: h100_sxm, tpu-v5"),
    ],
)
def test_unknown_names_come_with_near_ones(name, message):
    assert str(UnknownNameError("thing", name, ["tpu-v5", "h100_sxm"])) == message
    assert issubclass(UnknownNameError, MoesimError)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MOESIM_PROFILES", str(tmp_path))
    (tmp_path / "devices").mkdir()
    return tmp_path / "devices"


def test_lookup_by_path_name_alias_in_any_case(folder):
    path = folder / "my-chip.toml"
    path.write_text('aliases = ["Chip_One"]')
    for name in (str(path), "my-chip", "MY-CHIP", "chip_one", "Chip_One"):
        assert toml.find("devices", name) == path


def test_a_file_written_after_the_first_lookup_is_found(folder):
    """`moesim` itself writes profiles (a measured CPU) and then loads them by name."""
    with pytest.raises(UnknownNameError):
        toml.find("devices", "late-chip")
    (folder / "late-chip.toml").write_text("")
    assert toml.find("devices", "late-chip") == folder / "late-chip.toml"


def test_the_first_folder_of_several_wins(tmp_path, monkeypatch):
    for base in ("one", "two"):
        (tmp_path / base / "devices").mkdir(parents=True)
        (tmp_path / base / "devices" / "chip.toml").write_text("")
    (tmp_path / "two" / "devices" / "other.toml").write_text("")
    monkeypatch.setenv(
        "MOESIM_PROFILES", f"{tmp_path / 'one'}:{tmp_path / 'two'}:{tmp_path / 'absent'}"
    )
    assert toml.find("devices", "chip") == tmp_path / "one" / "devices" / "chip.toml"
    assert toml.find("devices", "other") == tmp_path / "two" / "devices" / "other.toml"


def test_home_comes_between_the_variable_and_the_shipped_files(tmp_path, monkeypatch):
    monkeypatch.setenv("MOESIM_HOME", str(tmp_path))
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "h100-sxm.toml").write_text("")
    assert toml.find("devices", "h100-sxm") == tmp_path / "devices" / "h100-sxm.toml"


def test_a_file_s_own_name_beats_the_alias_of_another(folder):
    (folder / "chip.toml").write_text("")
    (folder / "tuned-chip.toml").write_text('aliases = ["chip"]')
    assert toml.find("devices", "chip") == folder / "chip.toml"


def test_a_file_removed_after_the_first_lookup_is_unknown(folder):
    (folder / "chip.toml").write_text("")
    assert toml.find("devices", "chip") == folder / "chip.toml"
    (folder / "chip.toml").unlink()
    with pytest.raises(UnknownNameError):
        toml.find("devices", "chip")


def test_a_path_that_is_not_there():
    with pytest.raises(ConfigError, match=r"^no/such.toml: no such file$"):
        toml.find("devices", "no/such.toml")


@pytest.mark.parametrize("content", [b"x = [", b"\xff\xfe\x00", b"aliases = 3"])
def test_a_broken_file_in_the_way_does_not_hide_the_others(folder, content):
    (folder / "broken.toml").write_bytes(content)
    (folder / "chip.toml").write_text("")
    assert toml.find("devices", "chip") == folder / "chip.toml"


def test_an_unknown_name_survives_a_copy():
    """Processes pickle errors, and SimPy makes them anew from their arguments."""
    error = UnknownNameError("thing", "h100", ["h100_sxm", "tpu-v5"])
    for other in (pickle.loads(pickle.dumps(error)), type(error)(*error.args)):
        assert str(other) == str(error)
