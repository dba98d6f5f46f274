"""How fast a search over training runs is: 1,000 points of DeepSeek-V3 on 512 H100."""

import time

from moesim import load_cluster
from moesim.hardware.sizing import sized
from moesim.search import TrainingSpace, TrainingWorkload, run_study

SPACE = {
    "model": "deepseek-v3",
    "tp": [1, 2, 4, 8],
    "cp": [1, 2],
    "ep": [8, 16, 32, 64],
    "pp": [1, 4, 8, 16],
    "vp": [2, 4],
    "micro_batch": [1, 2, 4],
    "pipeline": ["1f1b", "interleaved", "zero_bubble", "dualpipe"],
    "overlap_exchange": [False, True],
    "recompute": ["none", "selective", "full"],
    "zero": [1, 2, 3],
    "optimizer": ["adamw", "muon"],
    "state_format": ["float32", "bfloat16"],
    "formats": ["bf16", "fp8_block"],
}


def test_1000_training_runs(benchmark, tmp_path):
    """The search on one core; `extra_info` holds its CPU time."""

    def search():
        begun = time.process_time()
        study = run_study(
            TrainingSpace(**SPACE),
            sized(load_cluster("h100-rail-8x8"), 512),
            TrainingWorkload(train_tokens=14.8e12, global_batch=4096),
            objectives=["train_days", "peak_memory_gib"],
            num_trials=1000,
            sampler="nsga2",
            storage=tmp_path,
            fresh=True,
        )
        benchmark.extra_info["cpu_s"] = time.process_time() - begun
        benchmark.extra_info["trials"] = len(study.trials)
        benchmark.extra_info["fit"] = sum(trial.feasible for trial in study.trials)

    benchmark.pedantic(search, rounds=1)
    assert benchmark.extra_info["trials"] == 1000
    assert benchmark.extra_info["cpu_s"] < 120, "60 s on two cores"
