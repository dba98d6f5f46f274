"""Winners of studies of whole models as commands of serving engines."""

import shlex
import subprocess

import pytest

from moesim.cli import main
from moesim.errors import ConfigError
from moesim.search import ServingSpace, ServingWorkload, run_study
from moesim.search.session.export_whole import servers_of, serving_text, training_options

CHOICES = {
    "model": "gpt-oss-120b",
    "concurrency": [64],
    "kv_format": ["fp8"],
    "chunk": [4096],
}


@pytest.fixture
def text(hgx, tmp_path):
    """The script of the only design of a space."""

    def make(**choices):
        study = run_study(
            ServingSpace(**CHOICES | {name: [value] for name, value in choices.items()}),
            hgx,
            ServingWorkload(isl=512, osl=128),
            objectives=["tpot_ms"],
            num_trials=1,
            storage=tmp_path / "study",
        )
        return serving_text(study, model="org/model")

    return make


def commands(text, start):
    """Flags of each command that begins so, as one text."""
    joined = text.replace("\\\n", " ").splitlines()
    return [" ".join(shlex.split(line)) for line in joined if start in line and line[0] != "#"]


def test_sglang_shares_attention_over_ranks(text):
    (found,) = commands(
        text(layout="tp2 dp4 ep8", engine="sglang", num_micro_batches=2), "sglang.launch_server"
    )
    for flags in (
        "--model-path org/model",
        "--tp-size 8",
        "--dp-size 4 --enable-dp-attention",
        "--ep-size 8",
        "--ep-num-redundant-experts 8",
        "--enable-eplb",
        "--enable-two-batch-overlap",
        "--kv-cache-dtype fp8_e4m3",
        "--chunked-prefill-size 4096",
    ):
        assert flags in found
    assert "disaggregation" not in found


def test_both_pools_are_started(text):
    script = text(layout="tp2", engine="sglang", pools="1:1", prefill_layout="tp4 ep4")
    prefill, decode = commands(script, "sglang.launch_server")
    assert "--tp-size 4 --ep-size 4" in prefill
    assert "--disaggregation-mode prefill" in prefill
    assert "--tp-size 2" in decode
    assert "--disaggregation-mode decode" in decode
    assert "# prefill: 1 x tp4 ep4" in script
    assert "# decode: 2 x tp2 moe_tp2, start each on devices of its own" in script
    assert len(commands(script, "sglang_router.launch_router --pd-disaggregation")) == 1


def test_vllm_moves_the_cache_by_nixl(text):
    script = text(layout="dp2 ep2", engine="vllm", pools="1:1", prefill_layout="same")
    found = commands(script, "vllm serve")
    assert len(found) == 2
    for line in found:
        assert "--tensor-parallel-size 1 --data-parallel-size 2 --enable-expert-parallel" in line
        assert '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}' in line
        assert "--kv-cache-dtype fp8 --max-num-batched-tokens 4096" in line


def test_tensorrt_llm_reads_options(text, tmp_path):
    """The script writes the file that its command names."""
    script = text(layout="dp4 ep4", engine="trtllm", pools="1:1")
    assert len(commands(script, "trtllm-serve org/model")) == 2
    files = "\n".join(script.split("\ntrtllm-serve")[0].splitlines()[:11])
    assert "enable_attention_dp: true" in files
    assert "cache_transceiver_config:" in script
    assert "--config decode_config.yaml" in script
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0


def test_the_command_line_writes_it(text, tmp_path, monkeypatch, capsys):
    expected = text(layout="tp2", engine="vllm")
    study, out = tmp_path / "study", tmp_path / "launch.sh"
    options = ["--out", str(out), "--model", "org/model"]
    for extra, code in (([], 0), (["--format", "vllm"], 2)):
        argv = ["moesim", "study", "export", str(study), *options, *extra]
        monkeypatch.setattr("sys.argv", argv)
        with pytest.raises(SystemExit) as stopped:
            main()
        assert (stopped.value.code or 0) == code
    said = capsys.readouterr()
    assert out.read_text().rstrip() == expected == said.out.rstrip()
    assert "format: expected none, since whole models have no map" in said.err


def test_kinds_do_not_mix(hgx, tmp_path):
    study = run_study(
        ServingSpace(model="deepseek-v3", concurrency=[1], layout=["tp8"]),
        hgx,
        ServingWorkload(),
        objectives=["tpot_ms"],
        num_trials=1,
        storage=tmp_path,
    )
    with pytest.raises(ConfigError, match="expected a winner to export, got none"):
        servers_of(study)
    with pytest.raises(ConfigError, match="expected a search over training runs"):
        training_options(study)
