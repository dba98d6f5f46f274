"""A small study that runs in a second, with points that fit, points over memory and points that are no candidates."""

import optuna
import pytest

from moesim import Workload
from moesim.search import Space, run_study

SPACE = {
    "dense_part": "qwen3-30b-a3b", "num_layers": 24, "train_tokens": 1e11, "hidden_size": 2048,
    "num_experts": [8, 64, 1024], "top_k": [2, 4, 8, 16], "expert_intermediate_size": [512, 1024, 4096, 8192],
    "gate": ["flat", "group_limited:4:2"], "placement": ["contiguous", "eplb"], "num_replicas": [0, 8],
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
        return run_study(space or make_space(), cluster, workload or Workload(**WORKLOAD),
                         **{"objectives": OBJECTIVES, "num_trials": 60, "seed": 3, "sampler": "nsga2", "storage": storage} | options)

    return make


@pytest.fixture(scope="session")
def rows():
    """Rows of a study but for how long each took."""
    return lambda found: [{k: v for k, v in t.row().items() if not k.startswith("wall_")} for t in found.trials]


@pytest.fixture(scope="session")
def whole(study, tmp_path_factory):
    """120 trials in one go."""
    return study(tmp_path_factory.mktemp("whole"), num_trials=120)
