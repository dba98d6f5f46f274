"""A small study that runs in a second, with points that fit, points over memory and points that are
no candidates.
"""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import optuna
import pytest

from moesim import Workload
from moesim.search import Space, run_study

SPACE = {
    "dense_part": "qwen3-30b-a3b",
    "num_layers": 24,
    "train_tokens": 1e11,
    "hidden_size": 2048,
    "num_experts": [8, 64, 1024],
    "top_k": [2, 4, 8, 16],
    "expert_intermediate_size": [512, 1024, 4096, 8192],
    "gate": ["flat", "group_limited:4:2"],
    "placement": ["contiguous", "eplb"],
    "num_replicas": [0, 8],
    "precision": ["bf16", "fp8"],
}
WORKLOAD = {"num_tokens_per_device": 32, "phase": "decode", "routing": "zipf:0.8"}
OBJECTIVES = ["loss", "layer_tokens_per_s_per_device"]


@pytest.fixture(scope="session", autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="session")
def make_space():
    return lambda **choices: Space(**SPACE | choices)


@pytest.fixture(scope="session")
def study(hgx, make_space):
    """Run the study in a folder; anything can be said otherwise."""

    def make(storage, *, space=None, cluster=hgx, workload=None, **options):
        return run_study(
            space or make_space(),
            cluster,
            workload or Workload(**WORKLOAD),
            **{
                "objectives": OBJECTIVES,
                "num_trials": 60,
                "seed": 3,
                "sampler": "nsga2",
                "storage": storage,
            }
            | options,
        )

    return make


@pytest.fixture(scope="session")
def rows():
    """Rows of a study but for how long each took."""
    return lambda found: [
        {k: v for k, v in t.row().items() if not k.startswith("wall_")} for t in found.trials
    ]


@pytest.fixture(scope="session")
def whole(study, tmp_path_factory):
    """120 trials in one go."""
    return study(tmp_path_factory.mktemp("whole"), num_trials=120)


_PASSWORD = "s3cret-word"


def _bin() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [
        Path(shutil.which("initdb") or "/nowhere").parent
    ]
    return found[-1]


@pytest.fixture
def free_port():
    """A port nobody listens on."""
    return _free_port()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory):
    """A real PostgreSQL server in a folder of its own, for as long as the tests take: its URL with
    a password.

    The server refuses to run as root, so root runs it as the user that its Debian package made.
    """
    folder = tmp_path_factory.mktemp("postgres")
    port, data = _free_port(), folder / "data"
    words = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if words:
        shutil.chown(folder, "postgres")
        for parent in (folder, *folder.parents):
            if parent.stat().st_uid == 0 and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o055)
    (folder / "password").write_text(_PASSWORD)
    (folder / "password").chmod(0o644)

    def run(name: str, *options: str) -> None:
        subprocess.run(
            [*words, str(_bin() / name), *options],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
        )

    run(
        "initdb",
        "-D",
        str(data),
        "-U",
        "moesim",
        f"--pwfile={folder / 'password'}",
        "-A",
        "scram-sha-256",
    )
    run(
        "pg_ctl",
        "-D",
        str(data),
        "-w",
        "-l",
        str(folder / "log"),
        "-o",
        f"-p {port} -k {folder} -h 127.0.0.1",
        "start",
    )
    try:
        yield f"postgresql://moesim:{_PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
