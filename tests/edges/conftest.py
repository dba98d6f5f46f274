"""Commands that work, with every kind of file that a command reads."""

import json
import re
from importlib.resources import files as shipped
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

STUDIES = Path(__file__).parents[2] / "studies"
HGX = ("--cluster", "hgx-h100-8")
SIMULATE = ("simulate", "--preset", "qwen3-30b-a3b", "--tokens", "64", "--engine", "bound")
MODEL = {
    "model_type": "mixtral",
    "num_hidden_layers": 4,
    "hidden_size": 1024,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 1000,
    "torch_dtype": "bfloat16",
}
ROWS = {
    "comm": {
        "family": "nccl",
        "system": "h200_sxm",
        "op_name": "alltoall",
        "nccl_dtype": "half",
        "num_gpus": 8,
        "message_size": 1 << 20,
    },
    "kernels": {
        "system": "h100_sxm",
        "dataset": "sglang/0.5.14",
        "kernel_source": "sglang_fused_moe_triton",
        "moe_dtype": "bfloat16",
        "num_tokens": 64,
        "hidden_size": 4096,
        "inter_size": 1536,
        "topk": 8,
        "num_experts": 128,
        "moe_tp_size": 1,
        "moe_ep_size": 1,
        "distribution": "power_law_1.2",
    },
    "dense": {
        "system": "h200_sxm",
        "dataset": "sglang/0.5.14",
        "gemm_dtype": "bfloat16",
        "m": 128,
        "n": 4096,
        "k": 7168,
    },
    "attention": {
        "system": "b200_sxm",
        "framework": "SGLang",
        "version": "0.5.14",
        "op_name": "context_attention",
        "attn_dtype": "bfloat16",
        "kv_cache_dtype": "bfloat16",
        "batch_size": 4,
        "isl": 2048,
        "step": 0,
        "num_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "window_size": 0,
    },
    "models": {
        "row_id": "a",
        "model": "gpt-oss-120b",
        "system": "h100_sxm",
        "backend": "vllm",
        "backend_version": "0.1",
        "isl": 256,
        "osl": 8,
        "concurrency": 2,
        "tp": 2,
        "pp": 1,
        "attention_dp": 1,
        "moe_tp": 2,
        "moe_ep": 1,
        "gemm_quant_mode": "bfloat16",
        "moe_quant_mode": "w4a16_mxfp4",
    },
}
SERVE = (
    "serve",
    "--model",
    "gpt-oss-120b",
    *HGX,
    "--isl",
    "64",
    "--osl",
    "8",
    "--num-requests",
    "8",
)
LAYERS = ("--phase", "decode", "--tokens", "64")
TRAIN = (
    "train",
    "--model",
    "qwen3-30b-a3b",
    *HGX,
    "--global-batch",
    "16",
    "--sequence",
    "512",
    "--layout",
    "ep8",
)


@pytest.fixture(scope="session")
def peak_mib():
    """Return the most memory that this process had, since it was asked `anew`."""

    def read(*, anew=False):
        if anew:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024

    return read


@pytest.fixture(scope="session")
def starts(tmp_path_factory):
    """Commands that work: their words, the files they read by name, and how often to take each."""
    folder = tmp_path_factory.mktemp("starts")
    found = [*of_options(), *of_descriptions(), *of_tables(folder), *of_arrays(folder)]
    return [*found, *of_studies(tmp_path_factory.mktemp("study") / "study")]


def of_options():
    """Commands without files."""
    yield (*SIMULATE, *HGX), {}, 8
    yield (*SIMULATE, "--cluster", "h100-rail-8x8", "--ep", "64", "--engine", "flow"), {}, 4
    yield (*SERVE, "--concurrency", "4"), {}, 6
    yield (*SERVE, "--rate", "2"), {}, 4
    yield TRAIN, {}, 6
    yield ("recommend", "--model", "olmoe-1b-7b", "--cluster", "l40s", *LAYERS), {}, 2
    yield ("bench", "alltoall", *HGX, "--bytes-per-pair", "1e6", "--engine", "bound"), {}, 2
    yield (
        ("placement", "export", "m.json", "--preset", "olmoe-1b-7b", *HGX, "--replicas", "8"),
        {},
        3,
    )
    placed = ("--preset", "olmoe-1b-7b", *HGX, "--engine", "bound")
    yield ("placement", "rebalance", "--before", "zipf:0.8", "--now", "zipf:1", *placed), {}, 2
    yield ("profiles", "show", "hgx-h100-8"), {}, 1
    yield ("profiles", "new", "--like", "h100-sxm", "--out", "mine.toml"), {}, 1
    yield ("models", "show", "olmoe-1b-7b"), {}, 1


def of_descriptions():
    """Commands that read TOML and JSON which people write."""
    kinds = {"clusters": ("hgx-h100-8", "h100-rail-8x8"), "devices": ("h100-sxm", "tpu-v5e")}
    profiles = Path(str(shipped("moesim_hw_profiles")))
    for kind, names in kinds.items():
        for name in names:
            content = (profiles / kind / f"{name}.toml").read_bytes()
            yield ("profiles", "show", "x.toml"), {"x.toml": content}, 4
            yield (*SIMULATE, "--cluster", "x.toml"), {"x.toml": content}, 4
    content = (profiles / "economics" / "default.toml").read_bytes()
    yield (
        (
            "recommend",
            "--model",
            "olmoe-1b-7b",
            "--cluster",
            "l40s",
            *LAYERS,
            "--economics",
            "x.toml",
        ),
        {"x.toml": content},
        3,
    )
    for name in ("small_study", "small_serve", "small_train"):
        content = (STUDIES / f"{name}.toml").read_bytes()
        words = ("study", "run", "x.toml", "--trials", "1", "--out", "out", "--workers", "1")
        yield words, {"x.toml": content}, 4
    for name in ("operate_plan", "operate_growth"):
        content = (STUDIES / f"{name}.toml").read_bytes()
        yield ("operate", "--plan", "x.toml", "--out", "out"), {"x.toml": content}, 3
    model = {"config.json": json.dumps(MODEL, indent=1).encode()}
    yield ("models", "show", "config.json"), model, 8
    yield ("simulate", "--preset", "config.json", "--engine", "bound", *HGX), model, 4


def of_tables(folder):
    """Commands that read rows."""
    for what, row in ROWS.items():
        content = pd.DataFrame([row, row]).to_csv(index=False).encode()
        yield ("validate", what, "--rows", "r.csv", "--out", "p.csv"), {"r.csv": content}, 4
    requests = b"arrival_s,isl,osl\n0,64,8\n0.5,128,4\n1,32,8\n"
    serve = (*SERVE[:5], "--requests", "r.csv")
    yield serve, {"r.csv": requests}, 4
    points = "num_experts,top_k,active_params,train_tokens,granularity,loss\n" + "".join(
        f"{8 * k},2,{k}e8,{k}e10,1,{3 - k / 10}\n" for k in range(1, 7)
    )
    yield ("quality", "fit", "p.csv", "--out", "law.toml"), {"p.csv": points.encode()}, 4


def of_arrays(folder):
    """Commands that read recorded traces."""
    ids, counts = np.arange(64).reshape(16, 4) % 8, np.arange(32).reshape(4, 8)
    np.save(folder / "t.npy", ids)
    np.savez(folder / "t.npz", layer_0=ids, layer_1=ids)
    torch.save({"logical_count": torch.tensor(counts)[None]}, folder / "t.pt")
    pd.DataFrame({"expert": range(8), "count": range(8)}).to_csv(folder / "t.csv", index=False)
    pd.DataFrame({"expert": range(8), "count": range(8)}).to_parquet(folder / "t.parquet")
    (folder / "t.json").write_text(json.dumps({"ids": ids.tolist()}))
    for path in sorted(folder.iterdir()):
        files = {path.name: path.read_bytes()}
        kind = () if path.suffix in (".csv", ".parquet", ".pt") else ("--kind", "ids")
        yield ("trace", "describe", path.name, *kind), files, 4
        trace = ("--preset", "config.json", "--trace", path.name)
        files = files | {"config.json": json.dumps(MODEL).encode()}
        yield ("simulate", *trace, *HGX), files, 1


def of_studies(folder):
    """Commands that read what a study left."""
    from moesim.cli.command import run_command
    from moesim.cli.root import app

    small = str(STUDIES / "small_study.toml")
    words = ["study", "run", small, "--trials", "4", "--out", str(folder), "--workers", "1"]
    with pytest.raises(SystemExit):
        run_command(lambda: app(words, standalone_mode=True))
    names = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".html"
    ]
    files = {f"study/{path.relative_to(folder)}": path.read_bytes() for path in names}
    yield ("study", "status", "study"), files, 3
    yield ("report", "study", "--out", "report.html"), files, 2
    yield ("study", "export", "study", "--out", "p.json"), files, 2
    yield ("check", "study/winners.csv", "--sources", "silicon"), files, 2
