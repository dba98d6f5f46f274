"""A corpus of hostile inputs: each is refused with exit code 2, in one short line, without a file.

A case has the files that are there, the command, and what its line must say. ``long`` cases are
marked `full`.
"""

import io
import pickle
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from moesim.cli.root import app
from moesim.cli.script import run_command

MOST_CHARACTERS, MOST_S, MOST_MIB = 300, 5.0, 500
#: twenty errors of a file and the number of the others
MOST_LINES = 21
SIMULATE = ("simulate", "--preset", "qwen3-30b-a3b", "--cluster", "hgx-h100-8", "--tokens", "64")
SERVE = ("serve", "--model", "qwen3-30b-a3b", "--cluster", "hgx-h100-8")
PLAN = str(Path(__file__).parents[2] / "studies" / "operate_plan.toml")
STUDY = str(Path(__file__).parents[2] / "studies" / "small_study.toml")
DEEP = "[" * 100_000
HUGE = "9" * 5000
LARGE = "9" * 30


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        name: Its name in the test's id.
        command: Arguments of ``moesim``.
        says: What the line must contain.
        files: Name -> content of the files in the working folder.
        long: Whether it takes seconds.
    """

    name: str
    command: tuple[str, ...]
    says: str
    files: dict[str, bytes | str] = field(default_factory=dict)
    long: bool = False


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def dump(content):
    """A file as torch.save writes it, of containers and numbers without tensors."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
    return file.getvalue()


def parser_cases():
    texts = {
        "deep": DEEP,
        "huge integer": f"a = {HUGE}",
        "integer beyond 64 bits": f"a = {LARGE}",
        "long key": f"{'k' * 3_000_000} = 1",
        "long value": f'schema = "{"v" * 3_000_000}"',
        "not UTF-8": b"\xff\xfe\x00",
    }
    for kind, text in texts.items():
        files = {"x.toml": text}
        yield Case(f"TOML cluster, {kind}", (*SIMULATE, "--cluster", "x.toml"), "x.toml", files)
        yield Case(f"TOML study, {kind}", ("study", "run", "x.toml"), "x.toml", files)
    texts = {
        "deep": DEEP,
        "deep but finite": "[" * 500 + "]" * 500,
        "huge integer": f'{{"model_type": {HUGE}}}',
        "integer beyond 64 bits": f'{{"model_type": "mixtral", "hidden_size": {LARGE}}}',
        "long string": f'{{"model_type": "{"x" * 3_000_000}"}}',
        "number": "5",
        "list": "[]",
        "null": "null",
        "not UTF-8": b"\xff\xfe\x00",
        "empty": "",
    }
    for kind, text in texts.items():
        yield Case(
            f"JSON model, {kind}",
            (*SIMULATE, "--preset", "config.json"),
            "config.json",
            {"config.json": text},
        )
    texts = {
        "field too large": "isl,osl\n" + "1" * 200_000 + ",2\n",
        "zero byte": b"isl,osl\n1,\x00\n",
        "not UTF-8": b"\xff\xfe\x00",
        "long header": "x" * 100_000 + "\n1\n",
        "huge integer": f"isl,osl\n{HUGE},1\n",
        "quoted value": 'isl,osl\n"' + "x" * 100_000 + '",1\n',
    }
    for kind, text in texts.items():
        yield Case(
            f"CSV requests, {kind}", (*SERVE, "--requests", "r.csv"), "r.csv", {"r.csv": text}
        )


def trace_cases():
    counts = {
        "text": "expert,count\n0,many\n",
        "NaN": "expert,count\n0,nan\n1,2\n",
        "infinite": "expert,count\n0,inf\n",
        "negative": "expert,count\n0,-1\n",
        "far id": "expert,count\n9000000000,1\n",
        "id beyond 64 bits": f"expert,count\n{LARGE},1\n",
        "layer beyond 64 bits": f"layer,expert,count\n{LARGE},0,1\n",
        "deep layer": "layer,expert,count\n9000000000,0,1\n",
        "zero byte": b"expert,count\n\x00,1\n",
        "header only": "expert,count\n",
        "empty": "",
    }
    found = {f"t.csv {kind}": {"t.csv": text} for kind, text in counts.items()}
    found |= {
        "t.npy NaN": {"t.npy": npy(np.array([1.0, np.nan]))},
        "t.npy infinite": {"t.npy": npy(np.array([1.0, np.inf]))},
        "t.npy overflow": {"t.npy": npy(np.full(4, 1e308))},
        "t.npy negative": {"t.npy": npy(np.array([-1, 2]))},
        "t.npy objects": {"t.npy": npy(np.array(["a"]))},
        "t.npy cut": {"t.npy": npy(np.arange(100))[:-8]},
        "t.npy header": {"t.npy": b"\x93NUMPY\x01\x00\x10\x27" + b"[" * 10_000},
    }
    content = {
        "no map": {"records": [{"global_physical_count": 1}]},
        "records no list": {"records": 5, "last_physical_to_logical_map": 1},
        "records of numbers": {"records": [5], "last_physical_to_logical_map": 1},
        "no records": {"records": []},
        "map no tensor": {"records": [{}], "last_physical_to_logical_map": [[0]]},
        "counts no tensor": {"logical_count": [1, 2]},
        "number": 5,
        "nothing": None,
        "list": [],
    }
    found |= {f"t.pt {kind}": {"t.pt": dump(value)} for kind, value in content.items()}
    found |= {
        "t.pt no archive": {"t.pt": b"PK\x03\x04" + b"\0" * 100},
        "t.pt code": {"t.pt": dump(time.sleep)},
    }
    for kind, files in found.items():
        (name,) = files
        yield Case(f"trace {kind}", ("trace", "describe", name), name, files)


def size_cases():
    """Sizes that are refused before anything of that size is made."""
    large = {
        "--num-experts": ("1000000000", "16777216", LARGE),
        "--routing": ("domains:4:1e308", "domains:1000000000:1", "lognormal:1000", "zipf:1e308"),
        "--cluster": ("star-1000000000", "rail-100000x100000", "torus-100000x100000"),
        "--replicas": ("80000000", LARGE),
        "--tokens": (LARGE, "1000000000000"),
        "--capacity-factor": ("1e308", "inf", "nan"),
        "--micro-batches": ("10000000", LARGE),
        "--top-k": (LARGE,),
        "--expert-intermediate-size": (LARGE, "1000000000000"),
        "--seed": (LARGE,),
    }
    for flag, values in large.items():
        for value in values:
            yield Case(f"{flag} {value[:30]}", (*SIMULATE, flag, value), "")
    for count in ("80000000", LARGE):
        flags = ("--placement", "eplb", "--replicas", count)
        yield Case(f"eplb {count[:12]}", (*SIMULATE, *flags), "num_replicas")
    large = {
        "--isl": (LARGE, "1000000000000", "lognormal:1,1000,2"),
        "--osl": ("1000000000000",),
        "--concurrency": (LARGE, "1000000000000"),
        "--num-requests": (LARGE, "1000000000"),
        "--max-seqs": (LARGE,),
        "--kv-blocks": (LARGE,),
        "--prefill-interval": (LARGE,),
    }
    for flag, values in large.items():
        for value in values:
            loop = () if flag == "--concurrency" else ("--rate", "1")
            yield Case(f"serve {flag} {value[:30]}", (*SERVE, *loop, flag, value), "")
    train = ("train", "--model", "qwen3-30b-a3b", "--cluster", "hgx-h100-8")
    for batch, sequence in (("1000000000", "4096"), (LARGE, "4096"), ("64", LARGE)):
        sizes = ("--global-batch", batch, "--sequence", sequence)
        yield Case(f"train {batch[:12]} x {sequence[:12]}", (*train, *sizes), "")
    config = (
        '{"model_type": "mixtral", "num_hidden_layers": 1000000000, "hidden_size": 1024,'
        '"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 512,'
        '"num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 1000}'
    )
    yield Case(
        "a billion layers",
        (*SIMULATE, "--preset", "config.json"),
        "num_hidden_layers",
        {"config.json": config},
    )


def together_cases():
    """Sizes that are let through each, and together are more memory or work than anybody has."""
    layer = "simulate --preset qwen3-30b-a3b --layer-only --cluster hgx-h100-8"
    star = "simulate --preset qwen3-30b-a3b --layer-only --cluster star-16384 --num-experts 1048576"
    star_1024 = "simulate --preset qwen3-30b-a3b --layer-only --cluster star-1024"
    simulate, serve = " ".join(SIMULATE), " ".join(SERVE)
    searched = "--placement local_search:100000"
    exchange = "bench alltoall --bytes-per-pair 1e6 --cluster star-1048576"
    taken = " would take "
    for words, says in {
        f"{layer} --tokens 524288 --replicas 8": "contiguous places no replicas",
        f"{layer} --num-experts 1048576 {searched}": taken,
        f"{layer} --num-experts 1048576 --placement affinity": taken,
        f"{layer} {searched} --replicas 800000": taken,
        f"{layer} --num-experts 4194304 --routing domains:1024:1": taken,
        f"{layer} --tokens 524288 --num-experts 65536 --top-k 16384": taken,
        f"{star} --tokens 256 --capacity-factor 1": taken,
        f"{star} --tokens 64 --granularity pair": taken,
        f"{star_1024} --num-experts 1024 --tokens 8192 --micro-batches 8192": taken,
        f"{simulate} --tokens 524288 --micro-batches 100000": "model does not fit",
        f"{exchange} --engine flow": taken,
        f"{exchange} --granularity pair": taken,
        f"placement export m.json --preset qwen3-30b-a3b {searched} --replicas 80000": taken,
        "placement export m.json --preset qwen3-30b-a3b --replicas 4194304 --cluster hgx-h100-8 "
        "--dense-layers 16384": taken,
        f"{serve} --rate 1 --num-requests 4194304": taken,
        f"{serve} --concurrency 262144": taken,
        f"{serve} --rate 1 --isl 300000 --chunk 1": taken,
        f"operate --plan {PLAN} --search 1000000 --seeds 1000": taken,
        f"operate --plan {PLAN} --search 100000000": taken,
        f"study run {STUDY} --trials 1048577": "expected 1 to 1,048,576 trials",
        f"study run {STUDY} --trials {LARGE}": "expected 1 to 1,048,576 trials",
    }.items():
        name = words.replace(PLAN, "plan").replace(STUDY, "study")
        yield Case(f"together: {name}", tuple(words.split()), says)


CORPUS = [*parser_cases(), *trace_cases(), *size_cases(), *together_cases()]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.full] if case.long else [], id=case.name)
        for case in CORPUS
    ],
)
def test_it_is_refused_in_one_line(case, tmp_path, monkeypatch, capsys, peak_mib):
    monkeypatch.chdir(tmp_path)
    for name, content in case.files.items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    held_mib = peak_mib(anew=True)
    began = time.process_time()
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: app(list(case.command), standalone_mode=True))
    took_s = time.process_time() - began
    grown_mib = peak_mib() - held_mib
    said = capsys.readouterr()
    assert ended.value.code == 2, said
    lines = said.err.splitlines()
    # all errors of a TOML file are told at once, a line each
    assert 1 <= len(lines) <= (MOST_LINES if case.name.startswith("TOML") else 1), lines
    assert all(line.isprintable() and len(line) <= MOST_CHARACTERS for line in lines)
    assert lines[0].startswith("error: ")
    assert case.says in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(case.files)
    assert took_s <= MOST_S
    assert grown_mib <= MOST_MIB
