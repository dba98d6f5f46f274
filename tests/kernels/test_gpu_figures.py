"""The script that prints the kernels' figures on a GPU, run on small sizes with a clock that only
calls.
"""

import csv
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from moesim_kernels.ops.runtime import triton_mode
from moesim_kernels.timing.sweep import sweep
from moesim_kernels.timing.tune import tune

from moesim.costs.devices.tile_choice import compiled_tiles
from moesim.report.tables import write_csv

FOLDER = Path(__file__).parents[1] / "benchmarks" / "gpu"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def _load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def figures():
    names = ("figures_clock", "figures_peers", "figures_parts", "figures_tiles", "figures")
    path = list(sys.path)
    yield [_load(name) for name in names][-1]
    sys.path[:] = path
    for name in names:
        del sys.modules[name]


class Clock:
    """Every call takes a microsecond, and there is time until ``cases`` questions were asked."""

    def __init__(self, cases=10000):
        self.cases, self.end = cases, 0.0

    def left(self):
        self.cases -= 1
        return float(self.cases >= 0)

    def device_us(self, call, repeats=1):
        call()
        return 1.0

    def wait(self):
        pass

    eager_us = host_us = device_us


def _swept(layer, tokens, *, seconds):
    """Rows of a sweep as an H100's, whose every call takes what its tile has rows."""
    rows = sweep(layer, tokens, seconds=1e9, timer=lambda gemm, tile, call: tile.block_m * 1e-6)
    return [row | {"device": "NVIDIA H100 80GB HBM3"} for row in rows]


def _tuned(layer, tokens, *, seconds):
    return tune(layer, tokens[:1], seconds=1e9, timer=lambda gemm, tile, call: tile.block_n * 1e-6)


def _checked(command, **_):
    """What studies/check_gpu.py leaves in its folder."""
    folder = Path(command[command.index("--out") + 1])
    score = {"mape": 6.0, "p90": 14.0, "bias": -1.0, "rows": 8}
    names = ("experts", "gate", "layer")
    write_csv(folder / "summary.csv", [{"quantity": f"{n}_time_us"} | score for n in names])
    verdicts = [{"role": "winner", "verdict": v} for v in ("confirmed", "confirmed", "refuted")]
    write_csv(folder / "check.csv", verdicts)
    return SimpleNamespace(returncode=0, stderr="")


@pytest.fixture
def small(figures, monkeypatch, tmp_path):
    chosen = tuple(compiled_tiles("sm_80", 16, gemm)[0] for gemm in ("up", "down"))
    for name, value in {
        "SHAPES": {"olmoe": (64, 32, 8, 2)},
        "TOKENS": (4,),
        "sweep": _swept,
        "tune": _tuned,
        "default_tiles": lambda *_: chosen,
        "subprocess": SimpleNamespace(run=_checked),
    }.items():
        monkeypatch.setattr(figures.simulator, name, value)
    for name, value in {
        "SHAPES": {"olmoe": (64, 32, 8, 2)},
        "TOKENS": (4,),
        "TRAIN_TOKENS": (8,),
        "HOST_TOKENS": (4,),
        "LAYER_TOKENS": (4,),
        "PAIRS": (64, 128),
        "GATE_SIZES": (64, 8),
        "TINY_SIZES": (64, 32, 16, 4),
        "GATES": (("flat", 16, 14), ("two_level:4:2", 16, 30), ("product_key:2:16", 64, 110)),
    }.items():
        monkeypatch.setattr(figures.parts, name, value)
    monkeypatch.setattr(sys.modules["figures_peers"], "rates", lambda clock: (790e12, 3.0e12))
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


def _rows(figures, clock, file, only=()):
    parts = figures.all_parts(file)
    return list(figures.table(clock, {n: p for n, p in parts.items() if n in (only or parts)}))


def test_every_line_of_the_table(figures, small):
    rows = _rows(figures, Clock(), small)
    what = [row.what for row in rows]
    assert not [row for row in rows if row.here.startswith("failed")]
    for start in (
        "largest error of an expert phase",
        "host time per eager",
        "device kernels of a layer",
        "plan at 64 / 128 pairs",
        "gate flat, 16 experts",
        "gate product_key:2:16",
        "tiny_expert, 4 tokens",
        "peers here",
        "expert phase over an H100's best peer, published: geometric mean / worst",
        "forward and backward",
        "of the best tile",
        "tile model, up: MAPE",
        "tile model, down: MAPE",
        "check_gpu, experts: MAPE",
        "check_gpu, verdicts",
        "tune, one model",
    ):
        assert any(line.startswith(start) for line in what), start
    [regret] = [row.here for row in rows if row.what.startswith("of the best tile")]
    assert regret.startswith("0.0 / 0 % (8 tiles;")
    [verdicts] = [row.here for row in rows if row.what.startswith("check_gpu, verdicts")]
    assert verdicts == "2 confirmed, 1 refuted"
    [over_peers] = [row.here for row in rows if row.what.startswith("expert phase over an H100")]
    assert over_peers.startswith("1.00 / 2.00 (2 cases; worst b zipf1.0 4 tokens: 1 us, vllm 0)")
    [kernels] = [row.here for row in rows if row.what.startswith("device kernels")]
    # Interpreted kernels are made of torch's operators, which count, too.
    assert kernels == "6" if triton_mode() == "gpu" else int(kernels) >= 6
    [error] = [row.here for row in rows if row.what.startswith("largest error")]
    assert float(error) < 0.02


def test_stops_in_time_and_says_so(figures, small):
    rows = _rows(figures, Clock(cases=2), small, only=["peers"])
    assert any("stopped after 1 of 2 cases" in row.here for row in rows)


def test_a_part_that_fails_is_a_line_and_the_others_go_on(figures, small, monkeypatch):
    monkeypatch.setattr(figures.parts, "prepare_layer", None)
    rows = _rows(figures, Clock(), small, only=["host", "plans"])
    assert [row.what for row in rows[:2]] == ["host", "plan at 64 / 128 pairs"]
    assert rows[0].here.startswith("failed: TypeError")


def test_a_peer_that_fails_is_said_once(figures, small, monkeypatch, capsys):
    peers = sys.modules["figures_peers"]

    def broken(operands):
        raise RuntimeError("another version\nand more")

    monkeypatch.setattr(
        peers, "PEERS", (peers.Peer(name="vllm", prepare=broken, package="moesim"),)
    )
    monkeypatch.setattr(peers, "missing_because", lambda peer: None)
    rows = _rows(figures, Clock(), small, only=["peers"])
    assert capsys.readouterr().out.count("vllm: RuntimeError: another version") == 1
    assert not any("installed here" in row.what for row in rows)


def test_what_a_gpu_needs_at_least(figures):
    bound = sys.modules["figures_peers"].bound_us
    case = dict(
        zip(
            ("hidden_size", "expert_intermediate_size", "num_experts", "top_k", "num_tokens"),
            ("4096", "14336", "8", "2", "4096"),
            strict=True,
        ),
        dtype="bf16",
    )
    assert bound(case, 790e12, 3.0e12) == pytest.approx(3653, rel=1e-3)
    assert bound(case | {"num_tokens": "16"}, 790e12, 3.0e12) == pytest.approx(940, rel=2e-2)
    assert bound(case, 395e12, 3.0e12) == pytest.approx(2 * 3653, rel=1e-3)


def test_says_so_without_a_gpu(figures, monkeypatch, capsys):
    monkeypatch.setattr(figures, "triton_mode", lambda: "none")
    monkeypatch.setattr(sys, "argv", ["figures.py"])
    assert figures.main() == 2
    assert "need a GPU" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["figures.py", "--only", "all"])
    assert figures.main() == 2
    assert "--only: expected any of right" in capsys.readouterr().out
