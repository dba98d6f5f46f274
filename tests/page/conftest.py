"""Small studies of each kind, each with the folder that its run leaves."""

import optuna
import pytest

from moesim import Workload
from moesim.search import (
    ServingSpace,
    ServingWorkload,
    Space,
    TrainingSpace,
    TrainingWorkload,
    run_study,
)
from moesim.search.session.findings import show_findings

LAYERS = {
    "dense_part": "qwen3-30b-a3b",
    "num_layers": 24,
    "train_tokens": 1e11,
    "hidden_size": 2048,
    "num_experts": [8, 64, 1024],
    "top_k": [2, 8],
    "expert_intermediate_size": [512, 4096],
    "placement": ["contiguous", "eplb"],
    "num_replicas": [0, 8],
    "precision": ["bf16", "fp8"],
}
OBJECTIVES = {
    "layers": ["loss", "layer_tokens_per_s_per_device"],
    "serving": ["tokens_per_s_per_device", "tokens_per_s_per_user"],
    "training": ["train_days", "peak_memory_gib"],
}


@pytest.fixture(scope="session")
def problems():
    """Kind -> space and workload."""
    serving = {
        "model": "gpt-oss-120b",
        "layout": ["tp2", "dp8 ep8"],
        "concurrency": [8, 64],
        "engine": ["vllm"],
        "placement": ["contiguous", "eplb"],
    }
    training = {
        "model": "qwen3-30b-a3b",
        "ep": [4, 8],
        "pp": [1, 2],
        "recompute": ["none", "full"],
        "optimizer": ["adamw", "muon"],
    }
    work = {"num_tokens_per_device": 256, "routing": "zipf:0.8", "kv_tokens_per_device": 1024}
    work["seed"] = 1
    return {
        "layers": (Space(**LAYERS), Workload(**work)),
        "serving": (ServingSpace(**serving), ServingWorkload(isl=512, osl=128, seed=1)),
        "training": (
            TrainingSpace(**training),
            TrainingWorkload(train_tokens=1e11, sequence=4096, global_batch=128, seed=1),
        ),
    }


@pytest.fixture(scope="session")
def folders(problems, hgx, tmp_path_factory):
    """Kind -> folder of a study of that kind."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = {}
    for kind, (space, workload) in problems.items():
        folder = found[kind] = tmp_path_factory.mktemp(kind)
        study = run_study(
            space,
            hgx,
            workload,
            objectives=OBJECTIVES[kind],
            num_trials=40,
            seed=1,
            sampler="random",
            storage=folder,
        )
        show_findings(study, folder, limit=2, title=kind)
    return found


@pytest.fixture
def make_checks():
    """Rows of check.csv, written to a folder; anything can be said otherwise."""
    from moesim.measured.check import CHECK_COLUMNS
    from moesim.report.tables import write_csv

    def make(folder, *rows):
        plain = dict.fromkeys(CHECK_COLUMNS, "") | {
            "candidate": "E8",
            "role": "winner",
            "source": "silicon",
            "quantity": "layer_time_us",
            "status": "checked",
            "simulated": 100.0,
            "simulated_low": 80.0,
            "simulated_high": 120.0,
            "measured": 110.0,
            "error_percent": -9.1,
            "verdict": "confirmed",
            "design": "none",
            "version": "0.1.0",
        }
        return write_csv(folder / "check.csv", [plain | row for row in rows or ({},)])

    return make
