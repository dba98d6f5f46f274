"""Disks that are full, paths that cannot be written and streams that are gone, for every command
that writes: one line, and nothing that is half there.
"""

import csv
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moesim.cli.command import run_command
from moesim.cli.root import app
from moesim.cli.script import run_app

STUDIES = Path(__file__).parents[2] / "studies"
SMALL = ("study", "run", str(STUDIES / "small_study.toml"), "--sampler", "nsga2", "--confirm", "1")
MODEL = ("--model", "qwen3-30b-a3b", "--cluster", "hgx-h100-8")
LAYER = ("--preset", "qwen3-30b-a3b", "--cluster", "hgx-h100-8")
SERVE = ("serve", *MODEL, *["--layout", "tp2", "--isl", "64", "--osl", "8", "--concurrency", "4"])
TRAIN = ("train", "--model", "olmoe-1b-7b", "--cluster", "hgx-h100-8", "--gpus", "8")
TRAIN += ("--global-batch", "64", "--layout", "ep8")
PLAN = ("operate", "--plan", str(STUDIES / "operate_plan.toml"), "--seeds", "1")
RECOMMEND = ("recommend", *MODEL, "--tokens", "64")
#: name -> a command that writes to OUT; STUDY is the folder of a study
WRITERS = {
    "simulate": ("simulate", *LAYER, "--out", "OUT"),
    "simulate --trace": ("simulate", *LAYER, "--trace", "OUT"),
    "serve": (*SERVE, "--out", "OUT"),
    "serve --out-requests": (*SERVE, "--out-requests", "OUT"),
    "serve --trace": (*SERVE, "--trace", "OUT"),
    "train": (*TRAIN, "--out", "OUT"),
    "train --trace": (*TRAIN, "--trace", "OUT"),
    "operate --trace": (*PLAN, "--trace", "OUT"),
    "recommend": (*RECOMMEND, "--out", "OUT"),
    "report": ("report", "STUDY", "--out", "OUT"),
    "placement export": ("placement", "export", "OUT", *LAYER),
    "study export": ("study", "export", "STUDY", "--out", "OUT"),
    "profiles new": ("profiles", "new", "--like", "h100-sxm", "--out", "OUT"),
}
#: those that write into a folder
FOLDERS = {
    "operate": (*PLAN, "--out", "OUT"),
    "recommend --export": (*RECOMMEND, "--export", "vllm", "--out", "OUT"),
    "report --figures": ("report", "STUDY", "--out", "/dev/null", "--figures", "OUT"),
    "study run": (*SMALL, "--trials", "10", "--out", "OUT"),
}
#: those that print nothing but messages
QUIET = ("study export", "profiles new")


class Disk:
    """A file system of a few MiB, or, where none may be mounted, files of no more than its size."""

    def __init__(self, path):
        self.path, self.most = path, None
        self.mounted = self.mount("size=64k")

    def mount(self, options):
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)]
        return subprocess.run(words, capture_output=True).returncode == 0

    def resize(self, size):
        """Let it hold so many bytes."""
        self.most = size
        if self.mounted:
            assert self.mount(f"remount,size={size}")

    def fill(self):
        """Leave no room at all."""
        self.most = 0
        if self.mounted:
            chunk = b"x" * 4096
            with (self.path / "filling").open("wb", buffering=0) as file:
                try:
                    while file.write(chunk):
                        pass
                except OSError:
                    return

    def files(self):
        return {p.name for p in self.path.rglob("*") if p.is_file()} - {"filling"}

    def run(self, words, **options):
        def limit():
            if not self.mounted and self.most is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, self.most))

        return run(words, cwd=self.path, preexec_fn=limit, **options)


@pytest.fixture
def disk(tmp_path):
    found = Disk(tmp_path)
    yield found
    if found.mounted:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a small study."""
    folder = tmp_path_factory.mktemp("study") / "out"
    done = run((*SMALL, "--trials", "30", "--out", str(folder)))
    assert done.returncode == 0, done.stderr
    return folder


def run(words, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(
        [sys.executable, "-m", "moesim", *words], text=True, timeout=60, **options
    )


def put(words, out, study):
    return [{"OUT": out, "STUDY": str(study)}.get(word, word) for word in words]


def error_of(done):
    """The one line that says what is wrong."""
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(line) <= 300
    assert done.stderr.splitlines()[-1] == line
    return line


@pytest.mark.full
@pytest.mark.parametrize("name", WRITERS | FOLDERS)
def test_no_room(disk, study, name):
    disk.fill()
    done = disk.run(put((WRITERS | FOLDERS)[name], "out", study))
    assert done.returncode == 3, done.stderr
    said = error_of(done)
    assert "cannot write this file: " in said
    assert said.endswith("; make room, and run the same command again")
    # a study may hold its lock and a journal without trials
    assert disk.files() <= {".lock", "study.journal"}


@pytest.mark.full
def test_a_study_goes_on_as_room_is_made(disk, study):
    words = (*SMALL, "--trials", "60", "--out", "out")
    refused = []
    # the journal, the tables and the page have no room in turn
    for size_kib in (120, 330, 600, 20_000):
        disk.resize(size_kib * 1024)
        before = journal_of(disk.path / "out")
        done = disk.run(words)
        if done.returncode == 0:
            break
        assert done.returncode == 3, done.stderr
        refused.append(error_of(done).partition(": cannot")[0].rpartition("/")[2])
        after = journal_of(disk.path / "out")
        assert after[: len(before)] == before
        assert after.endswith(b"\n")
        assert not [name for name in disk.files() if name.endswith(".partial")]
    # without a disk of its own, the tables are smaller than the journal that there is room for
    assert (
        list(dict.fromkeys(refused))
        == ["study.journal", "trials.csv", "report.html"][:: 1 if disk.mounted else 2]
    )
    whole = disk.path / "whole"
    assert disk.run((*words[:-1], str(whole))).returncode == 0
    assert rows_of(disk.path / "out") == rows_of(whole)


def rows_of(folder):
    with (folder / "trials.csv").open() as file:
        return [row | {"wall_s": None} for row in csv.DictReader(file)]


def journal_of(folder):
    path = folder / "study.journal"
    return path.read_bytes() if path.exists() else b""


@pytest.mark.full
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_folder_that_is_removed_meanwhile(tmp_path, workers):
    out = tmp_path / "out"
    words = (*SMALL, "--trials", "5000", "--workers", workers, "--out", str(out))
    # once there are trials
    script = (
        f"until [ $(cat {out}/study.journal | wc -c) -gt 20000 ]; do sleep .1; done; rm -r {out}"
    )
    remover = subprocess.Popen(["sh", "-c", script], stderr=subprocess.DEVNULL)
    done = run(words)
    remover.wait(10)
    assert done.returncode == 3, done.stderr
    assert "study.journal: cannot write this file: No such file or directory" in error_of(done)
    assert not out.exists()


@pytest.mark.parametrize("out", ["loop", "n" * 300, "folder", "plain/x"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "simulate" else [pytest.mark.full])
        for name in WRITERS
    ],
)
def test_a_path_that_cannot_be_written(tmp_path, request, monkeypatch, capsys, name, out):
    words = WRITERS[name]
    study = request.getfixturevalue("study") if "STUDY" in words else None
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["moesim", *put(words, out, study)])
    with pytest.raises(SystemExit) as left:
        run_command(lambda: run_app(app))
    [said] = capsys.readouterr().err.splitlines()
    assert left.value.code == 2
    assert ": cannot write this file: " in said
    assert len(said) <= 300
    assert {path.name for path in tmp_path.rglob("*")} == {"loop", "folder", "plain"}


@pytest.mark.full
@pytest.mark.parametrize(
    "name",
    [*QUIET, "simulate", "serve --trace", "train", "operate", "recommend", "report", "study run"],
)
def test_an_output_that_cannot_be_printed(tmp_path, study, name):
    words = (WRITERS | FOLDERS)[name]
    quiet = name in QUIET
    with Path("/dev/full").open("w") as full:
        done = run(put(words, "full", study), cwd=tmp_path, stdout=full)
    assert done.returncode == (0 if quiet else 3)
    assert quiet or error_of(done) == "error: standard output: No space left on device"
    done = run(put(words, "closed", study), cwd=tmp_path, preexec_fn=lambda: os.close(1))
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    read, write = os.pipe()
    os.close(read)
    done = run(put(words, "gone", study), cwd=tmp_path, stdout=write)
    os.close(write)
    assert (done.returncode, "Traceback" in done.stderr) == (0 if quiet else 141, False)
    # what was written is whole; most commands write before they print
    sizes = {path.stat().st_size for path in tmp_path.iterdir() if path.is_file()}
    assert 0 not in sizes
    assert (tmp_path / "closed").exists()
