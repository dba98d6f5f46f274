"""Measured serving runs are repaired as their names and duplicates say."""

import pytest

from moesim.measured.models.sample import contradicted, model_file, repaired


@pytest.fixture(scope="module")
def runs():
    return repaired()


def test_counts_of_what_is_kept_and_left_out(runs):
    rows, counts = runs
    assert counts == {
        "runs": 5221,
        "dense models": 1071,
        "disaggregated": 1594,
        "ambiguous": 89,
        "duplicates": 486,
        "kept": 1981,
        "repaired layouts": 309,
        "queued": 44,
    }
    assert sum(row.may_fit for row in rows) == 204
    assert len({row.row_id for row in rows}) == len(rows)


def test_attention_and_experts_use_the_same_devices(runs):
    for row in runs[0]:
        assert row.tp * row.attention_dp == row.moe_tp * row.moe_ep, row.row_id


def test_names_keep_the_true_layout(runs):
    """Runs named tpX_epY were repaired to X devices and Y expert ranks."""
    import re

    named = 0
    for row in runs[0]:
        found = re.search(r"_tp(\d+)_ep(\d+)_\d+$", row.row_id)
        if found and row.repaired and int(found[2]) > 1:
            named += 1
            assert row.tp * row.attention_dp == int(found[1]), row.row_id
            assert row.moe_ep == int(found[2]), row.row_id
    assert named > 50


def test_repaired_runs_equal_clean_ones(runs):
    """Where both exist, on the same system and engine, they differ as runs of one layout do."""
    rows = [row for row in runs[0] if not row.queued]
    clean = {}
    for row in rows:
        key = (row.model, row.system, row.backend, row.isl, row.osl, row.concurrency, row.tp,
               row.attention_dp, row.moe_ep, row.moe_format)  # fmt: skip
        clean.setdefault((key, row.repaired), row.tpot_ms)
    pairs = [
        (clean[key, True], clean[key, False])
        for key, changed in clean
        if changed and (key, False) in clean
    ]
    assert len(pairs) == 11
    assert sorted(abs(one / other - 1) for one, other in pairs)[len(pairs) // 2] < 0.01


def test_formats_are_those_that_ran(runs):
    formats = {(row.gemm_format, row.moe_format) for row in runs[0] if "gpt-oss" in row.model}
    assert formats == {("bfloat16", "w4a16_mxfp4"), ("bfloat16", "w4a8_mxfp4_mxfp8")}
    assert not any(row.gemm_format == "fp8" for row in runs[0])


def test_models_have_their_configuration():
    assert model_file("openai/gpt-oss-120b").name == "openai--gpt-oss-120b_config.json"
    assert model_file("zhipuai/GLM-5").name == "zai-org--GLM-5_config.json"
    assert model_file("nobody/nothing") is None


def test_runs_that_contradict_each_other_are_known(runs):
    rows, _ = runs
    doubtful = contradicted(rows)
    assert ("deepseek-ai/DeepSeek-R1", "b200_sxm", "trtllm") in doubtful
    assert len(doubtful) == 4
    # no run that anything was fitted to
    assert not any(run.whose in doubtful for run in rows if run.may_fit)
    agreeing = [run for run in rows if run.whose not in doubtful]
    assert 0.7 < len(agreeing) / len(rows) < 1.0
    assert not contradicted(agreeing)
