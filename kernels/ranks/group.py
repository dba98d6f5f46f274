"""Run processes of this host as ranks of one torch.distributed group: over gloo on a CPU, over NCCL
or RCCL on GPUs.

Each rank is a separate process, ``python -m MODULE`` (or another command), that gets its task as
JSON on stdin and answers with JSON on stdout. Ranks meet through a file and, for gloo, over the
loopback interface: no network is needed. Ranks on a CPU have one thread each, on separate cores
while there are enough. If the ranks do not finish in time they are ended, and the caller gets a
one-line error.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from moesim.errors import MeasurementError
from moesim.processes import follow_parent

# Name of the loopback interface by operating system.
_LOOPBACK = {"linux": "lo", "darwin": "lo0"}


def run_ranks(
    command: Sequence[str], ranks: int, task: dict[str, Any], *, backend: str, timeout_s: float
) -> list[Any]:
    """Run a command as every rank of a group.

    Args:
        command: Command of one rank, such as ``[sys.executable, "-m",
            "moesim_kernels.profile.host_fabric"]``.
        ranks: Number of processes.
        task: Task that each rank gets, with ``backend``, ``rank``, ``ranks``, ``meet``, and
            ``timeout_s`` added.
        backend: Communication backend, ``gloo`` or ``nccl``.
        timeout_s: Seconds after which the processes are ended.

    Returns:
        The answer of each rank, by rank index.

    Raises:
        MeasurementError: A rank failed (the message is its last line), or the ranks did not finish
            in time.
    """
    environment = dict(os.environ)
    if backend == "gloo":
        environment |= {"OMP_NUM_THREADS": "1"}
        if sys.platform in _LOOPBACK:
            environment |= {"GLOO_SOCKET_IFNAME": _LOOPBACK[sys.platform]}
    until = time.monotonic() + timeout_s
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        processes: list[subprocess.Popen[str]] = []
        try:
            for rank in range(ranks):
                process = subprocess.Popen(
                    command,
                    text=True,
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for this process, which ends its ranks
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    # A file cannot fill up and block the rank, as a pipe that nobody reads would.
                    stderr=_errors(folder, rank).open("w"),
                )
                processes.append(process)
                assert process.stdin is not None
                json.dump(
                    task
                    | {
                        "backend": backend,
                        "rank": rank,
                        "ranks": ranks,
                        "timeout_s": timeout_s,
                        "meet": str(Path(folder) / "meet"),
                    },
                    process.stdin,
                )
                # The rank reads its task to the end of the input.
                process.stdin.close()
                process.stdin = None
            # One deadline for all: the time left shrinks from rank to rank.
            outputs = [_finish(process, until, backend) for process in processes]
            told = [
                _last_line(_errors(folder, rank))
                for rank, process in enumerate(processes)
                if process.returncode
            ]
            if told:
                # A rank whose peer died reports only that; another rank's line names the cause.
                raise MeasurementError(
                    f"{backend}: {min(told, key=lambda line: 'closed by peer' in line)}"
                )
        finally:
            # Ranks that finished are not harmed; the others must not outlive the call.
            for process in processes:
                process.kill()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()
    return [json.loads(output) for output in outputs]


def _errors(folder: str, rank: int) -> Path:
    return Path(folder) / f"errors{rank}"


def _finish(process: "subprocess.Popen[str]", until: float, backend: str) -> str:
    """Return the output of a rank, which may have failed.

    Raises:
        MeasurementError: The time is up.
    """
    try:
        return process.communicate(timeout=max(until - time.monotonic(), 0.1))[0]
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"{backend}: the ranks did not finish in time") from None


def _last_line(errors: Path) -> str:
    return (
        errors.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
    )[-1]


@contextmanager
def rank_group(task: dict[str, Any]) -> Iterator[Any]:
    """Join the group that `run_ranks` started this process for; yields the torch.device of this
    rank.

    Args:
        task: Task with backend, rank, ranks, meet (a file all ranks name), and timeout_s.
    """
    # Imported here: the process that starts the ranks needs no torch.
    import torch
    import torch.distributed as dist

    follow_parent()
    rank, ranks = task["rank"], task["ranks"]
    if task["backend"] == "nccl":
        device = torch.device(f"cuda:{rank}")
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(1)
        if hasattr(os, "sched_setaffinity"):
            # Pinned to separate cores, so that ranks do not displace each other.
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[rank % len(cores)]})
    dist.init_process_group(
        task["backend"],
        init_method=f"file://{task['meet']}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=task["timeout_s"]),
    )
    try:
        yield device
    finally:
        # Also after an error, so that the other ranks notice it.
        dist.destroy_process_group()
