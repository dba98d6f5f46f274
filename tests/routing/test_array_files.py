"""Traces as .npz and .json: the same choices as .npy, and one-line refusals."""

import json
import zipfile

import numpy as np
import pytest

from moesim import (
    Candidate,
    Parallelism,
    Workload,
    limits,
    load_cluster,
    load_preset,
    simulate,
)
from moesim.errors import CapacityError, ConfigError
from moesim.routing.trace import open_trace

RNG = np.random.default_rng(3)
IDS_TK = np.argsort(RNG.random((64, 16)), axis=1)[:, :4]
IDS_TLK = np.stack([IDS_TK, IDS_TK[::-1]], axis=1)


def counts_of(path, kind=None):
    return {layer: c.tolist() for layer, c in open_trace(str(path), kind).counts().items()}


def saved(tmp_path, name, value):
    path = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, value)
    elif path.suffix == ".npz":
        np.savez(path, **value)
    else:
        path.write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.mark.parametrize("ids", [IDS_TK, IDS_TLK])
def test_all_forms_hold_the_same_choices(ids, tmp_path):
    plain = counts_of(saved(tmp_path, "a.npy", ids))
    layers = {n: ids if ids.ndim == 2 else ids[:, n] for n in range(1 if ids.ndim == 2 else 2)}
    assert counts_of(saved(tmp_path, "b.npz", {"ids": ids})) == plain
    named = {f"layer_{n}": one for n, one in layers.items()}
    assert counts_of(saved(tmp_path, "c.npz", named)) == plain
    assert counts_of(saved(tmp_path, "d.json", {"ids": ids.tolist()})) == plain
    table = {str(n): one.tolist() for n, one in layers.items()}
    assert counts_of(saved(tmp_path, "e.json", {"ids": table})) == plain


def test_counts_are_read_by_layer(tmp_path):
    counts = {"layer_1": np.array([1.0, 2.0]), "layer_10": np.array([3.0, 4.0])}
    assert counts_of(saved(tmp_path, "c.npz", counts)) == {1: [1.0, 2.0], 10: [3.0, 4.0]}
    assert counts_of(saved(tmp_path, "c.json", {"counts": [1, 2]})) == {0: [1, 2]}


def test_a_layer_is_simulated_with_either(tmp_path):
    layer = load_preset("qwen3-30b-a3b").layer
    ids = np.argsort(RNG.random((512, layer.num_experts)), axis=1)[:, : layer.top_k]
    times = []
    for path in (
        saved(tmp_path, "a.npy", ids),
        saved(tmp_path, "a.npz", {"ids": ids}),
        saved(tmp_path, "a.json", {"ids": ids.tolist()}),
    ):
        work = Workload(num_tokens_per_device=64, routing=f"trace:{path}")
        candidate = Candidate(layer=layer, parallelism=Parallelism(ep=8))
        times.append(simulate(candidate, load_cluster("hgx-h100-8"), work).layer_time_s)
    assert len(set(times)) == 1


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("a.npz", {"a": IDS_TK, "b": IDS_TK}, "expected layers named layer_0"),
        ("a.npz", {"1": IDS_TK, "layer_1": IDS_TK}, "expected each layer once"),
        ("a.npz", {"x": np.array([{}], dtype=object)}, "expected a whole .npz file"),
        ("a.npz", {"0": IDS_TK, "1": np.ones(4)}, "expected one array of one kind"),
        ("a.npz", {"0": np.ones(3), "1": np.ones(4)}, "expected as many experts in every layer"),
        ("a.json", [1, 2], "expected a table with either ids or counts"),
        ("a.json", {"ids": [[1]], "counts": [1]}, "expected a table with either ids or counts"),
        ("a.json", {"ids": [[1, 2], [3]]}, "expected lists of equal lengths"),
        ("a.json", {"ids": [["a"]]}, "expected nested lists of numbers"),
        ("a.json", {"ids": {}}, "got no layers"),
        ("a.json", {"ids": [[0.5]]}, "expected integer ids"),
    ],
)
def test_other_files_are_refused_in_one_line(name, value, text, tmp_path):
    with pytest.raises(ConfigError, match=text) as told:
        counts_of(saved(tmp_path, name, value))
    assert "\n" not in str(told.value)


def test_broken_and_huge_files_are_refused(tmp_path, monkeypatch):
    for name in ("a.npz", "a.json"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 nothing")
        with pytest.raises(ConfigError, match="expected a whole"):
            counts_of(tmp_path / name)
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ids.npy", bytes(1 << 20))
    monkeypatch.setattr(limits, "memory_of_machine", lambda: 1e6)
    with pytest.raises(CapacityError, match=r"its arrays would take 0\.0 GiB of memory \(limit"):
        counts_of(bomb)
