"""The script that prints the kernels' figures on a GPU, run on small sizes with a clock that only
calls.
"""

import csv
import importlib.util
import sys
from pathlib import Path

import pytest
from moesim_kernels.ops.runtime import triton_mode

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu" / "figures.py"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(scope="module")
def figures():
    spec = importlib.util.spec_from_file_location("gpu_figures", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


class Clock:
    """Every call takes a microsecond, and there is time until ``cases`` questions were asked."""

    def __init__(self, cases=1000):
        self.cases = cases

    def left(self):
        self.cases -= 1
        return self.cases >= 0

    def device_us(self, call, repeats=1):
        call()
        return 1.0

    eager_us = host_us = device_us


@pytest.fixture
def small(figures, monkeypatch, tmp_path):
    for name, value in {
        "SHAPES": {"olmoe": (64, 32, 8, 2)},
        "TOKENS": (4,),
        "TRAIN_TOKENS": (8,),
        "HOST_TOKENS": (4,),
        "PAIRS": (64, 128),
        "GATE_SIZES": (64, 8),
        "TINY_SIZES": (64, 32, 16, 4),
        "GATES": (("flat", 16, 14), ("two_level:4:2", 16, 30), ("product_key:2:16", 64, 110)),
    }.items():
        monkeypatch.setattr(figures, name, value)
    peers = tmp_path / "peers.csv"
    columns = (
        "shape",
        "hidden_size",
        "expert_intermediate_size",
        "num_experts",
        "top_k",
        "dtype",
        "routing",
        "num_tokens",
        "moesim_us",
        "vllm_us",
        "sglang_us",
    )
    with peers.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerow(("a", 64, 32, 8, 2, "bf16", "uniform", 4, 9.0, 2.0, 4.0))
        writer.writerow(("b", 128, 128, 4, 2, "fp8_block", "zipf1.0", 4, 9.0, 0.5, ""))
    return peers


def test_every_line_of_the_table(figures, small):
    rows = list(figures.table(Clock(), small))
    what = [row.what for row in rows]
    for start in (
        "host time per eager",
        "device kernels of a layer",
        "plan at 64 / 128 pairs",
        "gate flat, 16 experts",
        "gate product_key:2:16",
        "tiny_expert, 4 tokens",
        "expert phase over the best peer",
        "forward and backward",
        "of the best tile",
    ):
        assert any(line.startswith(start) for line in what), start
    [over_peers] = [
        row.here for row in rows if row.what.startswith("expert phase over the best peer")
    ]
    assert over_peers.startswith("1.00 / 2.00 (2 cases; b zipf1.0 4 tokens: 1 us, peer 0)")
    [kernels] = [row.here for row in rows if row.what.startswith("device kernels")]
    # Interpreted kernels are made of torch's operators, which count, too.
    assert kernels == "6" if triton_mode() == "gpu" else int(kernels) >= 6


def test_stops_in_time(figures, small):
    rows = list(figures.table(Clock(cases=6), small))
    assert any(row.here == "stopped after 1 of 2 cases" for row in rows)
    assert not any(
        row.what.startswith(("forward and backward", "of the best tile")) for row in rows
    )


def test_says_so_without_a_gpu(figures, monkeypatch, capsys):
    if triton_mode() == "gpu":
        pytest.skip("there is one")
    monkeypatch.setattr(sys, "argv", ["figures.py"])
    assert figures.main() == 2
    assert "need a GPU" in capsys.readouterr().out
