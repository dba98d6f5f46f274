"""The probe on four variants: it trains, differences are paired, and what it says of the table
follows from both.
"""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.full

FOLDER = Path(__file__).parents[2] / "studies" / "quality_probe"
SCRIPT = str(FOLDER / "run.py")


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("probe") / "new"
    done = run("--quick", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "tiny models do not transfer" in done.stdout
    return out


@pytest.fixture(scope="module")
def probe():
    """Both modules, as the script imports them."""
    sys.path.insert(0, str(FOLDER))
    try:
        import model
        import run as study
    finally:
        sys.path.remove(str(FOLDER))
    return model, study


def rows(path):
    return list(csv.DictReader(path.open()))


def test_models_learn_more_than_how_often_bytes_occur(study):
    runs = rows(study / "runs.csv")
    assert {(row["variant"], row["seed"]) for row in runs} == {
        (name, seed)
        for name in ("flat", "two_level", "noisy_top_k", "expert_dropout")
        for seed in "01"
    }
    for row in runs:
        assert float(row["last_loss"]) < float(row["first_loss"]) - 2
        assert float(row["loss"]) < float(row["unigram_entropy"]) - 0.1
        assert float(row["ms_per_step"]) > 0
        assert 1 <= float(row["load_imbalance"]) <= 8
        assert (row["evidence"], row["engine"]) == ("measured", "torch")


def test_differences_are_paired_by_seed(study):
    runs = rows(study / "runs.csv")
    flat = {row["seed"]: float(row["loss"]) for row in runs if row["variant"] == "flat"}
    for row in runs:
        assert float(row["delta"]) == pytest.approx(float(row["loss"]) - flat[row["seed"]])
    for row in rows(study / "deltas.csv"):
        deltas = [float(r["delta"]) for r in runs if r["variant"] == row["variant"]]
        assert float(row["delta"]) == pytest.approx(sum(deltas) / 2)
        assert float(row["deviation"]) == pytest.approx(abs(deltas[0] - deltas[1]) / 2**0.5)
        # 90 % of Student's t with one degree of freedom: 6.314 standard errors
        assert float(row["high"]) - float(row["delta"]) == pytest.approx(
            6.3138 * abs(deltas[0] - deltas[1]) / 2, rel=1e-3
        )


def test_files(study):
    assert {path.name for path in study.iterdir()} == {
        "runs.csv",
        "deltas.csv",
        "deltas.html",
    }
    page = (study / "deltas.html").read_text()
    assert "expert_dropout" in page
    assert "table's interval" in page or "table\\u0027s interval" in page


def test_variants_begin_alike_and_differ_where_they_should(probe):
    model, _ = probe
    sizes = model.Probe(hidden_size=32, window=16, batch=2)
    flat, noisy, null, dense = (
        model.LanguageModel(sizes, variant, 3).eval()
        for variant in (
            model.Variant(),
            model.Variant(gate="flat+noisy_top_k:1"),
            model.Variant(redraw=1),
            model.Variant(dense=True),
        )
    )
    batch = model.windows(model.text()[0], sizes, 0)
    assert (batch == model.windows(model.text()[0], sizes, 0)).all()
    # without noise, noisy top-k is flat
    assert torch.allclose(flat(batch[:, :-1]), noisy(batch[:, :-1]), atol=1e-5)
    assert not torch.allclose(flat(batch[:, :-1]), null(batch[:, :-1]), atol=1e-2)
    ours, other = dict(flat.named_parameters()), dict(null.named_parameters())
    assert {name for name in ours if not torch.equal(ours[name], other[name])} == {
        "moe.0.fine_EH",
        "moe.1.fine_EH",
    }
    # a dense model uses as many parameters, but for the router's
    assert model.active_params(flat) - model.active_params(dense) == 2 * (16 - 1) * 32


@pytest.mark.parametrize(
    "name",
    [
        "flat",
        "two_level",
        "two_level_selects",
        "group_limited",
        "hash",
        "bias",
        "noisy_top_k",
        "share_tokens",
        "capacity_1",
        "expert_dropout",
        "dense",
    ],
)
def test_every_variant_runs_both_ways_and_never_sees_the_future(probe, name):
    model, study = probe
    sizes = model.Probe(hidden_size=32, window=16, batch=2, expert_width=16)
    torch.manual_seed(0)
    variant = study.VARIANTS[name]
    language = model.LanguageModel(sizes, variant, 0)
    batch = model.windows(model.text()[0], sizes, 1)
    model._loss(language, batch).backward()
    gradients = [p.grad for n, p in language.named_parameters() if "coarse" not in n]
    missing = [n for n, p in language.named_parameters() if p.grad is None]
    assert all(g is None or bool(g.isfinite().all()) for g in gradients)
    assert all("coarse" in n or "fine" in n for n in missing), missing
    language.eval()
    changed = batch.clone()
    changed[:, 10:] = 65
    with torch.no_grad():
        before, after = language(batch[:, :-1]), language(changed[:, :-1])
    if variant.capacity_factor is None:  # whose places go to tokens in order of the flat batch
        assert torch.allclose(before[:, :10], after[:, :10], atol=1e-5)
    assert not torch.allclose(before[:, 10:], after[:, 10:], atol=1e-5)


def test_verdicts(probe):
    _, study = probe
    table = study.Delta(0.01, 0.0, 0.02)
    assert study.verdict(-0.01, 0.03, table) == "undecided: within noise"
    assert study.verdict(0.005, 0.02, table) == "sign agrees"
    assert study.verdict(0.04, 0.06, table) == "sign agrees, size does not"
    assert study.verdict(-0.02, -0.01, table) == "sign disagrees"
    assert study.verdict(0.01, 0.02, study.DELTAS["noisy_top_k"]) == "table has no sign"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", "1"), "error: --seeds: expected at least 2, since one tells no spread, got 1"),
        (
            ("--out", "/dev/null/x"),
            "error: /dev/null/x: cannot write to this output folder: Not a directory",
        ),
    ],
)
def test_bad_options_are_one_line(arguments, message):
    done = run(*arguments)
    assert (done.returncode, done.stderr.strip()) == (2, message)


@pytest.fixture(scope="module")
def robust():
    """The modules of the second script, on one thread as it is."""
    sys.path.insert(0, str(FOLDER))
    try:
        import model
        import robustness
    finally:
        sys.path.remove(str(FOLDER))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield model, robustness
    torch.set_num_threads(threads)


def test_looking_at_a_model_does_not_change_it(robust):
    model, study = robust
    sizes = model.Probe(hidden_size=32, window=16, batch=4, steps=8, held_out_batches=1)
    for name in ("missing_1/4", "dropout_0.4", "bias_0.1"):
        watch = study.Watch(sizes)
        alone = model.fit(sizes, study.VARIANTS[name], 1)[1]
        assert model.fit(sizes, study.VARIANTS[name], 1, watch)[1] == alone
        assert len(watch.squares) == study.LOOKS
        assert all(0 < entropy <= 1 for entropy in watch.entropy.values())
        # a mean is never longer than what it is the mean of
        assert all(half >= whole > 0 for half, whole in watch.squares.values())


def test_missing_experts_are_not_chosen(robust):
    model, study = robust
    sizes = model.Probe(hidden_size=32, window=16, batch=4)
    batch = model.windows(model.text()[0], sizes, 0)
    for name in ("flat", "temperature", "bias_0.01"):
        language = model.LanguageModel(sizes, study.VARIANTS[name], 0).eval()
        for moe in language.moe:
            moe.missing_E = moe.drawn_missing(0.5)
            assert int(moe.missing_E.sum()) == 8
        with torch.no_grad():
            language(batch[:, :-1])
        for moe in language.moe:
            assert not moe.missing_E[moe.chosen_TK.long()].any()


def test_a_temperature_begins_at_one_and_learns(robust):
    model, study = robust
    sizes = model.Probe(hidden_size=32, window=16, batch=4, steps=8)
    batch = model.windows(model.text()[0], sizes, 0)
    flat, warm = (
        model.LanguageModel(sizes, study.VARIANTS[name], 0) for name in ("flat", "temperature")
    )
    assert torch.equal(flat(batch[:, :-1]), warm(batch[:, :-1]))
    trained = model.fit(sizes, study.VARIANTS["temperature"], 0)[0]
    assert all(float(moe.log_temperature.detach()) != 0 for moe in trained.moe)


def test_information_and_noise(robust):
    _, study = robust
    assert study._information(np.eye(4) / 4) == pytest.approx(1)
    assert study._information(np.full((4, 4), 1 / 16)) == pytest.approx(0, abs=1e-12)
    # |G|^2 = 1 and tr(S) = 12 over batches of 4 and 8
    assert study.noise_scale([(1 + 12 / 4, 1 + 12 / 8)], 8) == pytest.approx(12)
    assert study.noise_scale([(4.0, 1.0)], 8) is None


def test_robustness_is_written(robust, tmp_path):
    _, study = robust
    study.main(tmp_path, quick=True)
    found = rows(tmp_path / "robustness.csv")
    shares = {row["at"] for row in found if row["figure"] == "missing"}
    assert shares == {"0.125", "0.25", "0.5"}
    assert {row["figure"] for row in found} == {
        "loss",
        "missing",
        "imbalance",
        "mapping",
        "router_entropy",
        "noise_scale",
    }
    for row in found:
        if row["figure"] == "loss" and row["variant"] == "flat":
            assert float(row["mean"]) == 0
        if row["low"]:
            assert float(row["low"]) <= float(row["mean"]) <= float(row["high"])


def test_the_run_that_is_kept_is_one_of_these(robust):
    _, study = robust
    kept = rows(FOLDER / "robustness_cpu.csv")
    assert {row["variant"] for row in kept} == set(study.VARIANTS)
    assert {row["evidence"] for row in kept} == {"measured"}
    lost = {
        (row["variant"], row["at"]): float(row["mean"])
        for row in kept
        if row["figure"] == "missing"
    }
    # what experts were missing in training, a model loses less by
    assert lost["missing_1/4", "0.5"] < lost["missing_1/8", "0.5"] < lost["flat", "0.5"]
