"""All-to-alls between processes really run, over loopback; what does not work ends in one line and
leaves nothing.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from moesim_kernels.profile.host_fabric import (
    AllToAll,
    fabric_lines,
    fabric_or_why,
    measure_gloo,
    measure_nccl,
    port_bytes,
    time_exchanges,
)
from moesim_kernels.ranks import group

from moesim.errors import MeasurementError

pytestmark = pytest.mark.full


def children():
    """Ranks this process started that still run; none to see without /proc."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ours = (process / "stat").read_text().rpartition(")")[2].split()[1] == str(os.getpid())
            if ours and b"moesim_kernels.profile.host_fabric" in (process / "cmdline").read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found


def test_two_processes_exchange():
    sizes = (1024, 1 << 16, 1 << 18)
    measured = measure_gloo(sizes=sizes, timeout_s=120.0)
    assert [(point.ranks, point.bytes_per_pair) for point in measured] == [
        (2, size) for size in sizes
    ]
    for point in measured:
        assert len(point.seconds) >= 7
        assert (point.seconds > 0).all()
    assert children() == []


def test_uneven_exchanges():
    matrices = [np.array([[5, 7000], [0, 9]]), np.zeros((2, 2), dtype=int)]
    times = time_exchanges("gloo", matrices, timeout_s=120.0)
    assert [len(seconds) >= 16 for seconds in times] == [True, True]
    assert [port_bytes(matrix) for matrix in matrices] == [7000.0, 0.0]
    assert port_bytes([[9, 1, 2], [3, 9, 0], [4, 0, 9]]) == 7.0


def test_ranks_that_do_not_finish_are_ended():
    with pytest.raises(MeasurementError, match=r"^gloo: the ranks did not finish in time$"):
        measure_gloo(timeout_s=0.2)
    assert children() == []


@pytest.mark.skipif(
    "__import__('torch').cuda.is_available()", reason="what machines without a GPU are told"
)
def test_without_gpus_nccl_says_why_in_one_line():
    with pytest.raises(MeasurementError, match=r"^nccl: .+") as caught:
        measure_nccl(2, sizes=(1024,), timeout_s=120.0)
    assert "\n" not in str(caught.value)


def test_a_rank_that_dies_is_reported(monkeypatch):
    real = subprocess.Popen

    def dies(command, **options):
        return real(
            [sys.executable, "-c", "import sys; sys.stdin.read(); sys.exit('no loopback')"],
            **options,
        )

    monkeypatch.setattr(group.subprocess, "Popen", dies)
    with pytest.raises(MeasurementError, match=r"^gloo: no loopback$"):
        measure_gloo(timeout_s=60.0)


def test_a_profile_is_written_without_what_does_not_work(capsys):
    def fails():
        raise MeasurementError("gloo: no loopback")

    assert fabric_or_why("gloo", fails) == []
    assert capsys.readouterr().err == "all-to-all not measured: gloo: no loopback\n"


def test_lines_state_start_rate_points_and_spread():
    noise = np.array([1.0, 1.0, 1.0, 2.0, 9.0])  # P10 and median are the same
    measured = [
        AllToAll(ranks=2, bytes_per_pair=size, seconds=noise * (1e-4 + size / 1e9))
        for size in (1 << 10, 1 << 14, 1 << 18, 1 << 22)
    ]
    lines = fabric_lines("gloo", measured)
    assert lines[:2] == ["[host_fabric]", 'backend = "gloo"']
    assert lines[2].startswith(
        'start_us = {value = 100.0, kind = "measured", source = "fit", low = '
    )
    assert lines[3].startswith('gb_per_s = {value = 1.0, kind = "measured", source = "fit"')
    assert lines.count("[[host_fabric.points]]") == 4
    assert "bytes_per_pair = 1024.0" in lines
    assert any(
        "repeats = 5" in line and line.startswith("time_us = {value = 101.02,") for line in lines
    )
