"""Serving runs are predicted or say what is missing; files of runs are read strictly."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.errors import ConfigError, MoesimError
from moesim.hardware.serving_engines import serving_engine
from moesim.measured.models import host
from moesim.measured.models.predict import cluster_of, model_of, predict, served_of
from moesim.measured.models.sample import ServingRow, repaired
from moesim.measured.models.validate import read_serving_rows, scoreboard

pytestmark = pytest.mark.full

ROW = ServingRow(
    row_id="r",
    model="gpt-oss-120b",
    system="h100_sxm",
    backend="vllm",
    backend_version="",
    isl=256,
    osl=64,
    concurrency=4,
    tp=2,
    pp=1,
    attention_dp=1,
    moe_tp=2,
    moe_ep=1,
    gemm_format="bfloat16",
    moe_format="w4a16_mxfp4",
)
HEADER = (
    "row_id,model,system,backend,backend_version,isl,osl,concurrency,batch_size,tp,pp,"
    "attention_dp,moe_tp,moe_ep,gemm_quant_mode,moe_quant_mode\n"
)
LINE = "a,gpt-oss-120b,h100_sxm,vllm,0.1,256,64,{clients},{batch},2,1,1,2,1,bfloat16,w4a16_mxfp4\n"


def test_a_run_is_predicted_with_its_interval():
    (made,) = predict([ROW])
    assert made["status"] == "ok"
    assert made["tpot_low_ms"] < made["predicted_tpot_ms"] < made["tpot_high_ms"]
    assert made["ttft_low_ms"] <= made["ttft_high_ms"]
    assert 1 < made["predicted_tpot_ms"] < 20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"system": "h400_sxm"}, "no cluster has 2 devices of h400_sxm"),
        ({"tp": 16, "moe_tp": 16}, "no cluster has 16 devices of h100_sxm"),
        ({"moe_format": "fp3"}, "moe_quant_mode"),
        ({"gemm_format": "fp3"}, "format of a dense GEMM"),
        ({"model": "nobody/nothing"}, "nobody/nothing"),
        ({"backend": "fastserve"}, "engine"),
        ({"moe_ep": 3}, "layout"),
        ({"tp": 128, "moe_tp": 128}, "tp that divides the 64 heads"),
    ],
)
def test_what_is_not_covered_says_why(change, words):
    system = change.get("tp", 2) == 16
    (made,) = predict([replace(ROW, **change)])
    if system and made["status"] == "ok":  # a cluster of two nodes holds them
        assert cluster_of("h100_sxm", 16).num_devices == 16
        return
    assert made["status"] == "not_covered"
    assert words in made["reason"]
    assert made["predicted_tpot_ms"] is None


def test_published_names_are_found():
    assert model_of("MiniMaxAI/MiniMax-M2.5").spec.num_layers == 62
    assert served_of(replace(ROW, model="openai/gpt-oss-120b")).spec.num_layers == 36


def test_files_are_read_strictly(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(HEADER + LINE.format(clients=8, batch=1) + LINE.format(clients="", batch=3))
    rows, given = read_serving_rows(path)
    assert [row.concurrency for row in rows] == [8, 3]
    assert given[0]["row_id"] == "a"
    path.write_text(HEADER + LINE.format(clients="x", batch=1))
    with pytest.raises(ConfigError, match=r"rows.csv:2: concurrency: expected a whole number"):
        read_serving_rows(path)
    path.write_text(HEADER.replace(",isl", "") + "a\n")
    with pytest.raises(ConfigError, match="expected the columns isl, too"):
        read_serving_rows(path)
    path.write_text(HEADER.replace("concurrency,batch_size,", "") + "a\n")
    with pytest.raises(ConfigError, match="concurrency or batch_size"):
        read_serving_rows(path)
    with pytest.raises(ConfigError):
        read_serving_rows(tmp_path / "none.csv")


def test_scores_leave_out_what_was_fitted():
    rows = [row for row in repaired()[0] if "gpt-oss" in row.model and row.osl == 1024]
    table = scoreboard(rows, most=6)
    everything = next(score for score in table if score["what"] == "all")
    assert everything["rows"] == 6
    assert everything["covered"] == 1.0
    assert 0 < everything["median"] < 60


def test_a_host_that_was_added_is_found_again(monkeypatch):
    """Runs whose times are predictions with a known host are fitted by that host."""
    true = replace(
        serving_engine("vllm"), step_s=2e-3, request_s=0.0, eager_layer_s=2e-4, intervals=()
    )
    rows = [replace(ROW, concurrency=c, isl=i, osl=64) for c in (1, 8) for i in (128, 512)]
    from moesim.measured.models.predict import means_ms, run_of

    timed = []
    for row in rows:
        result, _ = run_of(row, engine=true)
        tpot, ttft = means_ms(result)
        timed.append(replace(row, tpot_ms=tpot, ttft_ms=ttft, system="h100_sxm"))
    monkeypatch.setattr(host, "repaired", lambda: (timed, {}))
    monkeypatch.setattr(ServingRow, "may_fit", True)
    found = host.fit_host("vllm")
    assert found.step_s == pytest.approx(2e-3, rel=0.15)
    low, high = found.interval("tpot")
    assert low == pytest.approx(1.0, abs=0.05)
    assert high == pytest.approx(1.0, abs=0.05)
    assert np.isfinite(found.eager_layer_s)


def test_an_engine_without_runs_is_one_line(monkeypatch):
    monkeypatch.setattr(host, "repaired", lambda: ((), {}))
    with pytest.raises(MoesimError, match="no run of vllm"):
        host.fit_host("vllm")


def test_a_record_is_written_as_it_was_read():
    from moesim.files import toml

    path = toml.find("engines", "sglang")
    text = toml.read_text(path)
    engine = serving_engine("sglang")
    assert host.written(engine, text) == text
