"""An output that cannot be written is one line, not a traceback."""

import os
import resource
import signal
import subprocess
import sys

import pytest

PRINTS = "from moesim.cli.script import run_command; run_command(lambda: print('x' * 100_000))"
FAILS = "from moesim.cli.script import run_command; run_command(lambda: open('{}'))"


def run(code, **options):
    return subprocess.run(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, timeout=60, **options
    )


def command(words, **options):
    return subprocess.run(
        [sys.executable, "-m", "moesim", *words.split()],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        **options,
    )


def small_files():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def test_a_full_output(tmp_path):
    with (tmp_path / "out").open("w") as out:
        done = run(PRINTS, stdout=out, preexec_fn=small_files)
    assert (done.returncode, done.stderr) == (3, "error: standard output: File too large\n")


def test_an_output_that_was_closed():
    done = run(PRINTS, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_went_away():
    read, write = os.pipe()
    os.close(read)
    done = run(PRINTS, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


COMMANDS = [
    pytest.param(words, marks=[] if words == "--version" else [pytest.mark.full])
    for words in ("doctor", "doctor --json", "--help", "--version", "profiles list", "")
]


@pytest.mark.parametrize("words", COMMANDS)
def test_a_reader_that_went_away_ends_every_command_alike(words):
    """Command-line libraries have answers of their own."""
    read, write = os.pipe()
    os.close(read)
    done = command(words, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.full
def test_the_reader_of_a_file_that_is_a_stream_went_away():
    read, write = os.pipe()
    os.close(read)
    done = command("simulate --preset qwen3-30b-a3b --out /dev/stdout", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("words", COMMANDS)
def test_streams_that_were_closed(words):
    wanted = 0 if words else 2
    assert command(words, preexec_fn=lambda: os.close(1)).returncode == wanted
    done = command(words, preexec_fn=lambda: os.close(2), stdout=subprocess.PIPE)
    assert (done.returncode, bool(done.stdout)) == (wanted, True)
    done = command(words, preexec_fn=lambda: [os.close(stream) for stream in range(3)])
    assert done.returncode == wanted


def test_an_error_is_never_data():
    done = command("simulat", preexec_fn=lambda: os.close(2), stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.full
@pytest.mark.parametrize("name", ["n" * 300, ".", "loop"])
def test_what_the_system_refuses(tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    done = run(FAILS.format(name), cwd=tmp_path)
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert len(done.stderr) <= 301
