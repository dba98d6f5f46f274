"""A study's journal: whatever happens to its bytes, no trial comes back with another number."""

import json
import random
import resource
import signal

import pytest

from moesim import Workload
from moesim.errors import ConfigError, WriteRefusedError
from moesim.search import Space, run_study
from moesim.search.journal import lines_of, written_line
from moesim.search.session.join import load_study

TRIALS = 12


@pytest.fixture(scope="module")
def run(hgx):
    """A tiny study in a folder."""
    space = Space(
        dense_part="qwen3-30b-a3b",
        train_tokens=1e12,
        hidden_size=2048,
        num_experts=[8, 16, 32],
        top_k=[1, 2],
        expert_intermediate_size=[256, 512],
    )

    def run(folder, num_trials=TRIALS, **options):
        return run_study(
            space,
            hgx,
            Workload(num_tokens_per_device=32, phase="decode"),
            objectives=["loss"],
            engine="bound",
            sampler="random",
            num_trials=num_trials,
            storage=folder,
            **options,
        )

    return run


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    """Bytes of a journal, and the rows of its trials."""
    folder = tmp_path_factory.mktemp("study")
    rows = rows_of(run(folder))
    return (folder / "study.journal").read_bytes(), rows


def rows_of(study):
    return [{k: v for k, v in t.row().items() if "wall" not in k} for t in study.trials]


def flipped(content, at, bit):
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def checked_flips(run, written, folder, count):
    content, rows = written
    drawn, told = random.Random(0), []
    for number in range(count):
        where = folder / str(number)
        where.mkdir()
        damaged = flipped(content, drawn.randrange(len(content)), drawn.randrange(8))
        (where / "study.journal").write_bytes(damaged)
        try:
            found = rows_of(load_study(str(where)))
        except ConfigError as error:  # settings, which cannot be made again
            told.append(str(error))
            continue
        by_number = {row["number"]: row for row in rows}
        assert all(row == by_number[row["number"]] for row in found)
        assert len(found) >= TRIALS - 2
        if number < 6:
            assert rows_of(run(where)) == rows
    assert len(told) < count
    assert all(len(text.splitlines()) == 1 for text in told)


def test_no_flipped_bit_changes_a_number(run, written, tmp_path):
    checked_flips(run, written, tmp_path, 30)


@pytest.mark.full
def test_no_flipped_bit_of_many_changes_a_number(run, written, tmp_path):
    checked_flips(run, written, tmp_path, 400)


def test_a_journal_without_checksums_opens_and_goes_on(run, written, tmp_path):
    content, rows = written
    plain = [json.loads(line) for line in content.splitlines()]
    for log in plain:
        assert log.pop("crc32")
    path = tmp_path / "study.journal"
    path.write_text("".join(json.dumps(log) + "\n" for log in plain[:-4]))
    assert rows_of(run(tmp_path)) == rows
    assert sum(b'"crc32"' in line.raw for line in lines_of(path)) == 4


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"5",
        b"[" * 100_000,
        b"9" * 5000,
        b'{"op_code":' + b"9" * 5000 + b"}",
        b"\xff\xfe",
        b"null",
        b"",
    ],
    ids=["list", "number", "deep", "huge", "huge inside", "no text", "null", "empty"],
)
def test_a_strange_line_is_set_aside(written, tmp_path, line, capsys):
    content, rows = written
    lines = content.splitlines(keepends=True)
    (tmp_path / "study.journal").write_bytes(b"".join([*lines[:-1], line + b"\n", lines[-1]]))
    assert rows_of(load_study(str(tmp_path))) == rows
    said = capsys.readouterr().err
    assert f"damaged: line {len(lines)}: left out" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("log", [{"a": 1}, {"op_code": 99}, {"op_code": 4}, {"op_code": "4"}])
def test_an_intact_line_that_says_nonsense_is_one_line(written, tmp_path, log):
    (tmp_path / "study.journal").write_bytes(written[0] + written_line(log))
    with pytest.raises(ConfigError, match="damaged, cannot be continued"):
        load_study(str(tmp_path))


def test_damaged_settings_are_refused(run, written, tmp_path):
    lines = written[0].splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"seed":0', b'"seed":1')
    (tmp_path / "study.journal").write_bytes(b"".join(lines))
    for act in (run, load_study):
        with pytest.raises(ConfigError, match=r"damaged: line 2, which holds settings: use"):
            act(str(tmp_path))


@pytest.mark.parametrize("name", [".lock", "study.journal"])
def test_a_folder_in_the_place_of_a_file(run, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="Is a directory"):
        run(tmp_path)


def test_a_lock_that_is_a_link_changes_nothing(run, tmp_path):
    (tmp_path / "precious").write_text("x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").symlink_to(tmp_path / "precious")
    run(tmp_path / "out", num_trials=1)
    assert (tmp_path / "precious").read_text() == "x"


def test_a_full_disk_keeps_the_trials_there_are(run, written, tmp_path):
    rows = written[1]
    run(tmp_path, num_trials=3)
    before = (tmp_path / "study.journal").read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 500, old[1]))
        with pytest.raises(WriteRefusedError, match=r": File too large; the trials that it holds"):
            run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "study.journal").read_bytes() == before
    assert rows_of(run(tmp_path)) == rows


def test_a_folder_that_goes_away_is_one_line(run, tmp_path):
    out = tmp_path / "out"

    def remove(trial):
        if trial.number == 0:
            out.rename(tmp_path / "elsewhere")

    with pytest.raises(WriteRefusedError, match="No such file or directory; the trials that it"):
        run(out, on_trial=remove, num_trials=200)
