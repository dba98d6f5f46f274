"""``moesim serve`` and what else is said of whole models on the command line."""

import csv

import pytest
from typer.testing import CliRunner

from moesim.cli.root import app
from moesim.errors import MoesimError

RUN = ["serve", "--model", "gpt-oss-120b", "--cluster", "hgx-h100-8", "--engine", "vllm"]
RUN += ["--isl", "512", "--osl", "128"]


def invoke(*words):
    return CliRunner().invoke(app, [*map(str, words)])


def test_every_layout_is_tried_and_the_best_is_told(tmp_path):
    out, requests = tmp_path / "runs.csv", tmp_path / "requests.csv"
    done = invoke(
        *RUN, "--concurrency", 16, "--num-requests", 32, "--out", out, "--out-requests", requests
    )
    assert done.exit_code == 0, done.stderr
    for word in ("TTFT", "TPOT", "throughput", "memory", "energy, cost", "decode step", "Layouts"):
        assert word in done.stdout
    rows = list(csv.DictReader(out.open()))
    rates = [float(row["output_tokens_per_s_per_device"]) for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert len(rows) > 4
    assert len(list(csv.DictReader(requests.open()))) == 32


def test_a_step_has_an_order_and_says_what_its_layers_stand_for(tmp_path):
    out = tmp_path / "runs.csv"
    words = ["--layout", "dp8 ep8", "--schedule", "chunked", "--layer-correlation", ".5"]
    done = invoke(*RUN, *words, "--concurrency", 16, "--num-requests", 16, "--out", out)
    assert done.exit_code == 0, done.stderr
    assert "repeated layers +-" in done.stdout
    row = next(csv.DictReader(out.open()))
    assert row["order"] == "chunked"
    assert float(row["chain_error_ms"]) > 0.0


def test_limits_decide_how_many_clients():
    done = invoke(*RUN, "--layout", "tp4", "--slo", "tpot<=8ms")
    assert done.exit_code == 0, done.stderr
    assert "Layouts" not in done.stdout
    assert "tp4" in done.stdout


def test_other_devices_compute_the_prompts():
    done = invoke(*RUN, "--layout", "tp4", "--prefill-layout", "tp2", "--prefill-copies", 2)
    assert done.exit_code == 0, done.stderr
    assert "prompts by    2 x tp2 moe_tp2, 4 devices" in done.stdout


def test_open_traffic_and_drafts(tmp_path):
    path = tmp_path / "requests.csv"
    path.write_text("isl,osl,arrival_s\n" + "".join(f"300,40,{i * 0.05}\n" for i in range(20)))
    done = invoke(*RUN, "--layout", "tp2", "--requests", path, "--mtp", ".8,.5")
    assert done.exit_code == 0, done.stderr
    assert "open arrivals" in done.stdout


def test_experts_may_be_compressed_and_lie_in_the_memory_of_the_host(tmp_path):
    out = tmp_path / "runs.csv"
    words = ["--layout", "tp2 ep2", "--pruned-fraction", ".25", "--resident-fraction", ".5"]
    words += ["--prefetch-recall", "routing", "--concurrency", 4, "--num-requests", 4]
    done = invoke(*RUN, *words, "--out", out)
    assert done.exit_code == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "pruned_fraction=0.25, resident_fraction=0.5, prefetch_recall=routing" in said
    assert "GiB of a device's experts in the host's" in said
    row = next(csv.DictReader(out.open()))
    assert row["prefetch_recall"] == "routing"
    assert float(row["compression_loss_delta_high"]) > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prefetch-recall", "often"], "expected routing or a share from 0 to 1, got 'often'"),
        (["--resident-fraction", "1.5"], "offload.resident_fraction: expected a share from 0 to 1"),
        (["--layout", "tp3"], "tp that divides the 64 heads"),
        (["--layout", "tp8 ep3"], "layout"),
        (["--layout", "dp16 ep16"], "at most the 8 devices"),
        (["--engine", "fastserve"], "sglang or vllm or trtllm"),
        (["--kv", "int2"], "bfloat16 or fp8"),
        (["--dense-format", "fp3"], "format of a dense GEMM"),
        (["--layout", "tp2", "--kv-blocks", "8"], "blocks"),
        (["--layout", "tp2", "--kv-blocks", "0"], "server.kv_blocks: expected an integer >= 1"),
        (["--layout", "tp2", "--chunk", "0"], "server.chunk"),
        (["--mtp", "much"], "mtp: expected probabilities"),
        (["--mtp", "1.5"], "acceptance"),
        (["--placement", "nowhere"], "unknown placement 'nowhere'"),
        (["--exchange", "pigeon"], "unknown exchange 'pigeon'"),
        (["--isl", "long"], "traffic.isl"),
        (["--schedule", "two_batches"], "unknown schedule of a step 'two_batches'"),
        (
            ["--layout", "tp8", "--schedule", "two_batch"],
            "attention ranks with tokens of their own",
        ),
        (["--schedule", "serial", "--micro-batches", "2"], "expected 1 with serial, got 2"),
        (["--layer-correlation", "2"], "load.correlation"),
        (["--slo", "tpot<=9ms"], "slo: expected neither"),
        (["--cluster", "mixed-h100-b200"], "devices of one kind"),
    ],
)
def test_what_cannot_be_is_one_line(words, said):
    _refused([*RUN, "--concurrency", 4, "--num-requests", 8, *words], said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--slo", "fast"], "ttft<=2s"),
        (["--layout", "tp2", "--slo", "tpot<=1us"], "a single client"),
        (["--concurrency", "0"], "traffic.concurrency"),
        (["--requests", "none.csv"], "none.csv"),
    ],
)
def test_traffic_that_cannot_be_is_one_line(words, said):
    _refused([*RUN, *words], said)


def _refused(words, said):
    done = invoke(*words)
    assert done.exit_code != 0
    assert isinstance(done.exception, MoesimError)
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)


def test_runs_of_a_file_are_predicted(tmp_path):
    rows, out = tmp_path / "rows.csv", tmp_path / "out.csv"
    rows.write_text(
        "row_id,model,system,backend,backend_version,isl,osl,concurrency,tp,pp,attention_dp,"
        "moe_tp,moe_ep,gemm_quant_mode,moe_quant_mode\n"
        "a,gpt-oss-120b,h100_sxm,vllm,0.1,256,64,4,2,1,1,2,1,bfloat16,w4a16_mxfp4\n"
        "b,gpt-oss-120b,moon_sxm,vllm,0.1,256,64,4,2,1,1,2,1,bfloat16,w4a16_mxfp4\n"
    )
    done = invoke("validate", "models", "--rows", rows, "--out", out)
    assert done.exit_code == 0, done.stderr
    assert "1 of 2 runs are covered" in done.stdout
    one, other = csv.DictReader(out.open())
    assert one["status"] == "ok"
    assert float(one["predicted_tpot_ms"]) > 0
    assert other["status"] == "not_covered"
    assert "moon_sxm" in other["reason"]
