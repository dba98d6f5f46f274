"""Training steps of real layers on this CPU against their simulation: figures of
`pytest tests/benchmarks`, nothing asserted.

The profile is measured first, then 20 random layers are simulated and trained on one core, and as
many over two ranks joined by gloo, of which 8 fit the line a + b x simulated. ``extra_info`` holds
the mean absolute error in percent and Kendall's tau of each.
"""

import pytest
from moesim_kernels.profile.cpu_profile import write_profile
from moesim_kernels.sources.train_loop import training_rows, training_summary

from moesim.hardware import load_profile


@pytest.mark.parametrize("ranks", [1, 2])
def test_training_steps_against_simulation(benchmark, tmp_path, ranks):
    path = tmp_path / "local.toml"
    write_profile(path, 20.0, fabric=True)
    profile = load_profile(str(path))
    count = 20 if ranks == 1 else 28
    rows = benchmark.pedantic(training_rows, (profile, count, 0, ranks), rounds=1)
    for row in training_summary(rows):
        benchmark.extra_info[f"{row['what']}: error, tau, contended"] = (
            f"{row['mape']:.1f} %, {row['kendall_tau']:.3f}, {row['contended']:.0f}"
        )
