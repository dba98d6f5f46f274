"""Traces: every format gives the same counts, wrong ones are refused in one line, and long ones are
read in blocks.
"""

import numpy as np
import pandas as pd
import pytest
import torch

from moesim import Candidate, Parallelism, Workload, simulate
from moesim.errors import ConfigError
from moesim.model import Gate
from moesim.routing import RoutingSpec, open_trace, route, trace_files
from moesim.routing.torchfile import load_torch_file

EXPERTS, TOP_K = 16, 3


@pytest.fixture
def ids_TLK():
    """200 tokens in two layers, as vLLM returns them."""
    rng = np.random.default_rng(1)
    return np.argsort(rng.random((200, 2, EXPERTS)), axis=2)[:, :, :TOP_K].astype(np.int16)


def table_of(ids_TLK):
    return pd.concat(
        [
            pd.DataFrame(ids_TLK[:, layer], columns=[f"expert_{k}" for k in range(TOP_K)]).assign(
                layer=layer
            )
            for layer in range(ids_TLK.shape[1])
        ]
    )


def write(path, ids_TLK):
    """A trace of the format that the path's name says."""
    if path.suffix == ".npy":
        np.save(path, ids_TLK)
    elif path.suffix == ".csv":
        table_of(ids_TLK).to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table_of(ids_TLK).to_parquet(path)
    # SGLang's per_token mode: physical ids, padded tokens, half of the tokens in each of two passes
    else:
        physical_LP = np.stack(
            [np.random.default_rng(layer).permutation(EXPERTS) for layer in range(2)]
        )
        physical = np.stack(
            [np.argsort(physical_LP[layer])[ids_TLK[:, layer]] for layer in range(2)]
        )
        passes = [
            np.pad(part, ((0, 0), (0, 7), (0, 0)), constant_values=-1)
            for part in np.array_split(physical, 2, 1)
        ]
        torch.save(
            {
                "records": [
                    {
                        "forward_pass_id": i,
                        "rank": 0,
                        "gatherer_key": "primary",
                        "input_ids": [1, 2],
                        "topk_ids_of_layer": torch.from_numpy(part).int(),
                        "misc_objects": [],
                    }
                    for i, part in enumerate(passes)
                ],
                "last_physical_to_logical_map": torch.from_numpy(physical_LP),
            },
            path,
        )
    return path


@pytest.mark.parametrize("name", ["t.npy", "t.csv", "t.parquet", "t.pt"])
def test_every_format_gives_the_same_choices(tmp_path, ids_TLK, name, monkeypatch):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    monkeypatch.setattr(trace_files, "BLOCK", 64)
    trace = open_trace(str(write(tmp_path / name, ids_TLK)))
    assert (trace.kind, trace.layers()) == ("ids", [0, 1])
    for layer, counts in trace.counts().items():
        assert counts.tolist() == np.bincount(ids_TLK[:, layer].ravel(), minlength=EXPERTS).tolist()
        assert trace.num_tokens(layer) == 200
    assert trace.window(1, 150, 0).tolist() == ids_TLK[:150, 1].tolist()
    assert trace.window(1, 50, 3).tolist() == ids_TLK[150 % 151 : 150 % 151 + 50, 1].tolist()


@pytest.mark.parametrize("name", ["loads.npy", "t.csv", "stat.pt", "per_pass.pt", "vllm.pt"])
def test_counts_by_layer(tmp_path, name):
    counts = np.random.default_rng(0).integers(1, 1000, (3, EXPERTS))
    path = tmp_path / name
    if name == "loads.npy":
        np.save(path, counts)
    elif name == "t.csv":
        pd.DataFrame(
            [(layer, e, counts[layer, e]) for layer in range(3) for e in range(EXPERTS)],
            columns=["layer", "expert", "count"],
        ).to_csv(path, index=False)
    elif name == "stat.pt":
        torch.save(
            {
                "rank": 0,
                "logical_count": torch.from_numpy(np.stack([counts - 1, np.ones_like(counts)])),
                "average_utilization_rate_over_window": None,
            },
            path,
        )
    elif name == "vllm.pt":
        torch.save({"model": torch.from_numpy(counts).float()}, path)
    else:
        maps = torch.stack([torch.randperm(EXPERTS) for _ in range(3)])
        physical = torch.from_numpy(counts).gather(1, maps).int()
        torch.save(
            {
                "records": [
                    {"rank": r, "global_physical_count": physical // 2 + r * (physical % 2)}
                    for r in range(2)
                ],
                "last_physical_to_logical_map": maps,
            },
            path,
        )
    trace = open_trace(str(path))
    assert trace.kind == "counts"
    assert [c.tolist() for c in trace.counts().values()] == counts.tolist()
    loads = route(
        RoutingSpec.parse(f"trace:{path}#2"),
        Gate(),
        num_experts=EXPERTS,
        top_k=2,
        seed=0,
        num_tokens_S=np.array([counts[2].sum() // 2]),
    ).num_tokens_E()
    assert np.abs(loads - counts[2]).max() <= 2


def test_a_layer_simulates_from_a_trace(tmp_path, ids_TLK, make_candidate, hgx):
    path = write(tmp_path / "t.npy", ids_TLK)
    candidate = make_candidate(num_experts=EXPERTS, top_k=TOP_K)
    assert isinstance(candidate, Candidate)
    assert candidate.parallelism == Parallelism(ep=8)
    work = Workload(num_tokens_per_device=25, routing=f"trace:{path}#1")
    rows = np.bincount(ids_TLK[:, 1].ravel() // 2, minlength=8)
    assert simulate(candidate, hgx, work).load_imbalance == pytest.approx(rows.max() / rows.mean())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda ids: ids.__setitem__((70, 1, 2), 16),
            "layer 1, token 70: expected expert ids from 0 to 15, got 16",
        ),
        (
            lambda ids: ids.__setitem__((5, 0, 0), -1),
            "layer 0, token 5: expected expert ids from 0 to 15, got -1",
        ),
        (
            lambda ids: ids.__setitem__((9, 0), 4),
            r"layer 0, token 9: expected 3 different experts, got \[4, 4, 4\]",
        ),
    ],
)
def test_wrong_ids_say_which_token(tmp_path, ids_TLK, change, message, monkeypatch):
    monkeypatch.setattr(trace_files, "BLOCK", 64)
    change(ids_TLK)
    path = write(tmp_path / "t.npy", ids_TLK)
    with pytest.raises(ConfigError, match=message):
        open_trace(str(path), num_experts=EXPERTS).counts()


def test_another_model_s_trace_is_refused(tmp_path, ids_TLK):
    path = write(tmp_path / "t.npy", ids_TLK)

    def drawn(experts=EXPERTS, top_k=TOP_K, tokens=10, gate="flat", layer="", left=None):
        return route(
            RoutingSpec.parse(f"trace:{path}{layer}"),
            Gate.parse(gate),
            num_experts=experts,
            top_k=top_k,
            num_tokens_S=np.array([tokens]),
            seed=0,
            left_E=left,
        )

    assert drawn().expert_ids_TK.shape == (10, TOP_K)
    left = np.ones(EXPERTS, dtype=bool)
    left[ids_TLK[0, 0, 0]] = False
    for changes, message in (
        ({"experts": 8}, r"expected expert ids below layer.num_experts = 8, got 1\d"),
        ({"top_k": 2}, r"expected 2 experts a token \(layer.top_k\), got 3"),
        ({"tokens": 300}, "expected at least the 300 tokens of the workload in layer 0, got 200"),
        ({"layer": "#2"}, "expected one of its 2 layers, 0 to 1, got 2"),
        ({"left": left}, f"expected experts that are not pruned, got {ids_TLK[0, 0, 0]}"),
        (
            {"gate": "group_limited:8:2"},
            r"expected tokens in at most 2 groups \(layer.gate\), token \d+ uses 3",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            drawn(**changes)


def test_broken_files_are_one_line(tmp_path, ids_TLK):
    whole = {
        name: write(tmp_path / name, ids_TLK).read_bytes() for name in ("t.npy", "t.pt", "t.csv")
    }
    cases = [
        ("cut.npy", whole["t.npy"][:-100]),
        ("cut.pt", whole["t.pt"][:-100]),
        ("empty.npy", b""),
        ("cut.csv", whole["t.csv"].rstrip()[: whole["t.csv"].rstrip().rfind(b",")]),
        ("no.txt", b"x"),
        ("no.csv", b"a,b\n1,2\n"),
        ("gap.csv", b"expert_0,expert_2\n1,2\n"),
        ("text.csv", b"expert_0\nx\n"),
    ]
    for name, content in cases:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            open_trace(str(tmp_path / name)).counts()
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot read this file: No such file"):
        open_trace(str(tmp_path / "absent.npy"))


def test_a_torch_file_runs_nothing(tmp_path):
    torch.save({"logical_count": print}, tmp_path / "t.pt")
    with pytest.raises(
        ConfigError,
        match=r"expected tensors, numbers, text, lists and dicts only, got \w+[.]print$",
    ):
        load_torch_file(tmp_path / "t.pt")


def test_torch_files_as_torch_reads_them(tmp_path):
    whole = torch.arange(60).view(3, 4, 5)
    saved = {
        "a": whole.transpose(0, 2),
        "b": [whole[1:, ::2].half(), torch.tensor(3.5)],
        "c": torch.zeros(0, 2),
    }
    torch.save(saved, tmp_path / "t.pt")
    found = load_torch_file(tmp_path / "t.pt")
    assert found["a"].tolist() == saved["a"].tolist()
    assert found["b"][0].tolist() == saved["b"][0].tolist()
    assert (float(found["b"][1]), found["c"].shape) == (3.5, (0, 2))


def test_rows_of_minus_one_are_padding(tmp_path, ids_TLK):
    """As serving engines fill a batch up; a row that mixes them with experts is a mistake."""
    padded = np.insert(ids_TLK, [0, 50, 200], -1, axis=0)
    np.save(tmp_path / "padded.npy", padded)
    np.save(tmp_path / "plain.npy", ids_TLK)
    found, plain = (open_trace(str(tmp_path / f"{name}.npy")) for name in ("padded", "plain"))
    assert found.num_padding() == 3 * 2
    assert [found.num_tokens(layer) for layer in (0, 1)] == [200, 200]
    for layer, count_E in plain.counts().items():
        assert (found.counts()[layer] == count_E).all()
        assert (found.window(layer, 100, 7) == plain.window(layer, 100, 7)).all()
    padded[3, 1, 0] = -1
    np.save(tmp_path / "mixed.npy", padded)
    with pytest.raises(ConfigError, match="layer 1, token 3: expected expert ids from 0"):
        open_trace(str(tmp_path / "mixed.npy")).counts()


def test_recorders_tables_lack_experts_that_got_nothing(tmp_path):
    path = tmp_path / "recorded.csv"
    path.write_text("layer_id,expert_id,count\n1,2,7\n1,4,9\n3,0,5\n")
    trace = open_trace(str(path), num_experts=8)
    assert {layer: count_E.tolist() for layer, count_E in trace.counts().items()} == {
        1: [0, 0, 7, 0, 9, 0, 0, 0],
        3: [5, 0, 0, 0, 0, 0, 0, 0],
    }
    assert trace.weights_NE(None, 8).tolist() == [[0, 0, 7, 0, 9, 0, 0, 0]]


def test_layers_without_choices_are_passed_over_and_named(tmp_path):
    """Such as the dense ones that a model begins with."""
    counts_LE = np.zeros((3, 8), dtype=np.int64)
    counts_LE[1] = 5
    np.save(tmp_path / "counts.npy", counts_LE)
    trace = open_trace(str(tmp_path / "counts.npy"))
    assert trace.chosen_layer(None) == 1
    with pytest.raises(ConfigError, match="expected counts above 0 in layer 0"):
        trace.weights_NE(0, 8)
