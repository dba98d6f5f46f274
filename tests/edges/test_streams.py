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


def small_files():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def test_a_full_output(tmp_path):
    with (tmp_path / "out").open("w") as out:
        done = run(PRINTS, stdout=out, preexec_fn=small_files)
    assert (done.returncode, done.stderr) == (3, "error: File too large\n")


def test_an_output_that_was_closed():
    done = run(PRINTS, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_went_away():
    read, write = os.pipe()
    os.close(read)
    done = run(PRINTS, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.full
@pytest.mark.parametrize("name", ["n" * 300, ".", "loop"])
def test_what_the_system_refuses(tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    done = run(FAILS.format(name), cwd=tmp_path)
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert len(done.stderr) <= 301
