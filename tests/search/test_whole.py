"""Searches over whole models: the same study, another kind of point."""

import csv
from pathlib import Path

import numpy as np
import pytest

from moesim import Workload
from moesim.errors import CapacityError, ConfigError
from moesim.search import ServingSpace, ServingWorkload, run_study
from moesim.search.points import distinct_points, num_designs
from moesim.search.session.export import winner_of
from moesim.search.session.findings import show_findings
from moesim.search.session.join import load_study, status_rows
from moesim.search.session.studyfile import load_study_file
from moesim.serving.layouts import engine_layouts

STUDIES = Path(__file__).parent.parent.parent / "studies"
SPACE = {
    "model": "gpt-oss-120b",
    "layout": ["tp2", "tp4 ep4", "dp8 ep8"],
    "concurrency": [16, 64, 256],
    "engine": ["vllm"],
    "placement": ["contiguous", "eplb"],
    "redundant_per_rank": [0, 1],
    "num_micro_batches": [1, 2],
    "kv_format": ["bfloat16", "fp8"],
}
OBJECTIVES = ["tokens_per_s_per_device", "tpot_ms"]
WORKLOAD = ServingWorkload(isl=512, osl=128)


@pytest.fixture(scope="module")
def search(hgx):
    def make(storage, **options):
        return run_study(
            ServingSpace(**SPACE),
            hgx,
            WORKLOAD,
            **{
                "objectives": OBJECTIVES,
                "num_trials": 500,
                "constraints": ["ttft_ms <= 1500"],
                "storage": storage,
            }
            | options,
        )

    return make


@pytest.fixture(scope="module")
def whole(search, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, search(folder)


def test_every_design_is_tried_once(whole):
    """tp2 has neither placements nor exchanges, and only EPLB places redundant experts."""
    _, study = whole
    per_layout = {"tp2": 1, "tp4 ep4": 3, "dp8 ep8": 6}
    assert len(study.trials) == num_designs(study.space) == 3 * 2 * sum(per_layout.values())
    assert len({t.evaluation.row["design"] for t in study.trials}) == len(study.trials)
    assert len(list(distinct_points(study.space))) == len(study.trials)


def test_rows_say_what_was_found(whole):
    folder, study = whole
    show_findings(study, folder, limit=2, title="test")
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == study.problem.columns
    for row in rows:
        assert row["state"] in ("fits", "over_constraint")
        assert float(row["tpot_ms"]) == float(row["tpot_mean_ms"])
        assert (row["state"] == "fits") == (float(row["ttft_ms"]) <= 1500)
        assert row["precision"] == "mxfp4"
        assert row["limited_by"]
    with (folder / "winners.csv").open() as file:
        winners = list(csv.DictReader(file))
    assert len(winners) == 2
    for row in winners:
        assert row["requests_by"] == "request loop"
        assert float(row["loop_over_search"]) == pytest.approx(1.0, abs=0.1)


def test_the_front_is_not_dominated(whole):
    _, study = whole
    values = np.array(
        [[-t.evaluation.row[OBJECTIVES[0]], t.evaluation.row[OBJECTIVES[1]]] for t in study.trials]
    )
    kept = [t.number for t in study.pareto_trials()]
    feasible = [t.number for t in study.trials if t.feasible]
    for number in kept:
        worse = (values[feasible] <= values[number]).all(axis=1)
        assert (values[feasible][worse] == values[number]).all()
    assert study.groups(study.pareto_trials())[0] == 0


@pytest.fixture(scope="module")
def pools(hgx, tmp_path_factory):
    return run_study(
        ServingSpace(
            model="gpt-oss-120b",
            layout=["tp2"],
            pools=["colocated", "1:3", "1:1"],
            prefill_layout=["same", "tp4 ep4"],
            concurrency=[16, 64],
            engine=["vllm"],
        ),
        hgx,
        WORKLOAD,
        objectives=OBJECTIVES,
        num_trials=50,
        storage=tmp_path_factory.mktemp("pools"),
    )


def test_pools_are_choices(pools):
    """A colocated design has no layout for prompts, and no placement where experts are cut."""
    assert len(pools.trials) == num_designs(pools.space) == 2 * (1 + 2 * 2)
    for trial in pools.trials:
        row, pool = trial.evaluation.row, trial.params["pools"]
        assert trial.state == "fits"
        assert ("prefill_layout" in trial.params) == (pool != "colocated")
        assert ("placement" in trial.params) == (trial.params.get("prefill_layout") == "tp4 ep4")
        if pool == "colocated":
            assert row["prefill_copies"] is None
            assert row["devices"] == 8
            continue
        each = 4 if trial.params["prefill_layout"] == "tp4 ep4" else 2
        prefill = max(round(8 * {"1:3": 0.25, "1:1": 0.5}[pool] / each), 1) * each
        assert row["prefill_copies"] * each == prefill
        assert row["devices"] == prefill + 2 * row["copies"] == 8
        total = row["tokens_per_s_per_device"] * row["devices"]
        assert total == pytest.approx(row["output_tokens_per_s"])


def test_divided_pools_are_confirmed(pools):
    trial = next(t for t in pools.trials if t.params.get("prefill_layout") == "same")
    divided = trial.evaluation.row
    followed = pools.problem.confirm(trial.params)
    assert followed["requests_by"] == "request loop"
    assert followed["tpot_ms"] == pytest.approx(divided["tpot_ms"], rel=0.1)
    # a request loop begins with all clients at once
    assert followed["tokens_per_s_per_device"] == pytest.approx(
        divided["tokens_per_s_per_device"], rel=0.15
    )


def test_it_continues_and_is_loaded_again(whole, search, tmp_path, rows):
    folder, study = whole
    search(tmp_path, num_trials=20, sampler="every")
    assert rows(search(tmp_path)) == rows(study)
    assert rows(load_study(folder)) == rows(study)
    assert {row["what"] for row in status_rows(load_study(folder))} >= {
        "trials",
        "tpot_ms on the front",
    }
    with pytest.raises(ConfigError, match=r"other settings \(workload.isl: 512 there, 1024 now\)"):
        run_study(
            ServingSpace(**SPACE),
            load_study(folder).problem.cluster,
            ServingWorkload(osl=128),
            objectives=OBJECTIVES,
            constraints=["ttft_ms <= 1500"],
            num_trials=1,
            sampler="every",
            storage=folder,
        )


def test_other_samplers_draw_from_it(search, tmp_path):
    found = search(tmp_path, num_trials=30, sampler="nsga2", constraints=[])
    assert len(found.trials) == 30


def test_auto_is_what_engines_run_and_what_fits(hgx):
    space = ServingSpace(model="gpt-oss-120b", concurrency=[1]).on(hgx)
    assert space.precision == ["mxfp4"]
    assert space.layout == [str(layout) for layout in engine_layouts(hgx)]
    assert "dp8 ep8" in space.layout
    with pytest.raises(CapacityError, match=r"does not fit on hgx-h100-8 as .* GiB over"):
        ServingSpace(model="deepseek-v3", concurrency=[1]).on(hgx)


def test_experts_may_be_compressed_and_offloaded(hgx, tmp_path):
    """DeepSeek-V3 fits on a node with experts in int4 or in the memory of the host, and loss, which
    only compression costs, is traded against time."""
    space = ServingSpace(
        model="deepseek-v3",
        concurrency=[4],
        cold_fraction=[0.0, 0.8],
        cold_format=["int4", "same"],
        resident_fraction=[1.0, 0.5],
        prefetch_recall=[0.0, "routing"],
    )
    assert "tp8 ep8" in space.on(hgx).layout
    found = run_study(
        space.model_copy(update={"layout": ["tp8 ep8"]}),
        hgx,
        WORKLOAD,
        objectives=["tpot_ms", "compression_loss_delta"],
        num_trials=50,
        storage=tmp_path,
    )
    # whole or cold in two formats, times resident or with two recalls
    assert len(found.trials) == 3 * 3
    kept = [t.evaluation.row for t in found.trials if t.feasible]
    # nothing that is whole and resident fits, and "same" compresses nothing
    assert len(kept) == 2 + 3
    front = [t.evaluation.row for t in found.pareto_trials()]
    assert {(row["cold_fraction"], row["resident_fraction"]) for row in front} == {
        (0.8, 1.0),
        (0.0, 0.5),
    }
    assert {row["compression_loss_delta"] > 0 for row in front} == {False, True}


def test_what_cannot_be_served_is_a_finding(hgx, tmp_path):
    found = run_study(
        ServingSpace(model="deepseek-v3", concurrency=[1], layout=["tp8"]),
        hgx,
        WORKLOAD,
        objectives=["tpot_ms"],
        num_trials=5,
        storage=tmp_path,
    )
    assert [t.state for t in found.trials] == ["infeasible"]
    assert "does not fit" in found.trials[0].evaluation.reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": ["loss"]}, r"objectives of whole models \(.*\), .* got 'loss', one of MoE"),
        ({"objectives": ["tpot_m"]}, "unknown objective 'tpot_m': did you mean tpot_ms"),
        ({"constraints": ["loss <= 2"]}, "unknown constraint 'loss'"),
        ({"screen": 10}, "expected screen 0"),
    ],
)
def test_options_of_layers_are_refused(search, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        search(tmp_path, **options)


def test_kinds_do_not_mix(hgx, tmp_path, study, whole):
    with pytest.raises(ConfigError, match="got 'tpot_ms', one of whole models"):
        study(tmp_path, objectives=["loss", "tpot_ms"])
    with pytest.raises(ConfigError, match="expected a ServingWorkload with a ServingSpace"):
        run_study(
            ServingSpace(**SPACE),
            hgx,
            Workload(num_tokens_per_device=8),
            objectives=OBJECTIVES,
            num_trials=1,
            storage=tmp_path,
        )
    with pytest.raises(ConfigError, match="expected a search over MoE layers"):
        winner_of(whole[1])


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"concurrency": [0]}, "space: concurrency: expected numbers >= 1, got 0"),
        ({"layout": ["pp"]}, "layout: expected degrees"),
        ({"engine": ["foo"]}, "space: engine: expected sglang or vllm or trtllm, got 'foo'"),
        ({"draft_length": [0, 2], "acceptance": [0.8]}, "space: draft_length: expected at most 1"),
        ({"pools": ["1:0"]}, "pools: expected colocated, or .* such as 1:2, got '1:0'"),
        ({"prefill_layout": ["pp"]}, "layout: expected degrees"),
        ({"kv_format": ["int3"]}, "space: kv_format: expected bfloat16 or fp8, got 'int3'"),
        ({"nodes": [1]}, "space: nodes: no such key"),
    ],
)
def test_a_bad_space_is_one_line(choices, message):
    with pytest.raises(ConfigError, match=message) as caught:
        ServingSpace(**SPACE | choices)
    assert "\n" not in str(caught.value)


def test_points_are_checked(hgx):
    space = ServingSpace(**SPACE).on(hgx)
    point = space.decode({"layout": "dp8 ep8", "placement": "eplb", "redundant_per_rank": 1})
    assert point.served.num_replicas == 8
    with pytest.raises(ConfigError, match="unknown parameter 'tp'"):
        space.check_point({"tp": 8})
    with pytest.raises(ConfigError, match="space: concurrency: expected one of 16, 64, 256, got 3"):
        space.check_point({"concurrency": 3})


def test_a_study_file_of_a_whole_model(tmp_path):
    written = STUDIES / "small_serve.toml"
    described = load_study_file(written, seed=3)
    assert described.workload == ServingWorkload(isl=2048, osl=512, seed=3)
    assert described.space.concurrency == [8 * 2**n for n in range(8)]
    assert described.objectives == ["tokens_per_s_per_device", "tokens_per_s_per_user"]
    path = tmp_path / "bad.toml"
    for old, new, message in (
        ("isl = 2048", "tokens = 4", "bad.toml: workload.tokens: no such key"),
        ('"sglang"', '"foo"', "bad.toml: space: engine: expected sglang or vllm or trtllm"),
    ):
        path.write_text(written.read_text().replace(old, new))
        with pytest.raises(ConfigError, match=message):
            load_study_file(path, seed=0)
