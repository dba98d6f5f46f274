"""A design owns its identity: every field is in its table, key and label, and comes back from a
file.
"""

import csv
import io
from dataclasses import dataclass, fields, is_dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import Candidate, DensePart, Gate, MoELayer, Parallelism, Precision, Workload, simulate
from moesim.design import identity
from moesim.design.candidate import DESIGN_COLUMNS, WORKLOAD_COLUMNS
from moesim.design.offload import Offload
from moesim.design.schedule import Schedule
from moesim.errors import ConfigError
from moesim.hardware.exchanges import EXCHANGES
from moesim.limits import MOST_DEVICES, MOST_WIDTH
from moesim.measured.winners import read_winners
from moesim.model.compression import Compression
from moesim.model.precision import FORMATS, RECIPES
from moesim.report import write_csv

COUNTS = st.integers(1, 1 << 40)
DEGREES = st.integers(1, MOST_DEVICES)
WIDTHS = st.integers(1, MOST_WIDTH)
RATES = st.floats(1e-6, 1e6)
FORMS = [
    Compression(),
    Compression(pruned_fraction=0.1234567),
    Compression(cold_fraction=1 / 3, cold_format="float8_e4m3", pruned_fraction=0.5),
    Compression(cold_fraction=1.0, cold_rank_fraction=0.4),
]
GATES = [
    "flat",
    "group_limited:4:2",
    "two_level:2:1+local",
    "product_key:2:64",
    "flat+noisy_top_k:0.1234567",
    "flat+expert_choice",
    "flat+hash+share_tokens:3",
    "flat+sigmoid+bias+temperature:0.3333333333",
    "group_limited:2:2+sigmoid+precision:float32",
    "flat+query_heads:3+query_size:64",
]


@st.composite
def candidates(draw):
    capacity = draw(st.none() | RATES)
    weights, activations = sorted(
        draw(st.tuples(*[st.sampled_from(list(FORMATS))] * 2)), key=lambda name: FORMATS[name].bytes
    )
    precision = Precision(
        weights=weights,
        activations=activations,
        dispatch=draw(st.sampled_from(list(FORMATS))),
        combine=draw(st.sampled_from(list(FORMATS))),
        scale_block=draw(st.integers(0, 256)),
    )
    layer = MoELayer(
        hidden_size=draw(WIDTHS),
        num_experts=16,
        top_k=draw(st.sampled_from([1, 2])),
        expert_intermediate_size=draw(
            WIDTHS | st.lists(st.integers(1, 99), min_size=16, max_size=16).map(tuple)
        ),
        num_shared_experts=draw(st.integers(0, 9)),
        capacity_factor=capacity,
        overflow=draw(st.sampled_from(["drop", "reroute"])) if capacity else "drop",
        padded=draw(st.booleans()) if capacity else False,
        gated=draw(st.booleans()),
        precision=draw(st.sampled_from(list(RECIPES.values())) | st.just(precision)),
        gate=Gate.parse(draw(st.sampled_from(GATES))),
    )
    num_layers = draw(st.integers(1, 99))
    dense = DensePart(
        num_layers=num_layers,
        num_moe_layers=draw(st.integers(1, num_layers)),
        hidden_size=draw(COUNTS),
        vocab_size=draw(COUNTS),
        attention_params_per_layer=draw(COUNTS),
        kv_bytes_per_token_per_layer=draw(RATES),
        dense_intermediate_size=draw(COUNTS),
        tied_embeddings=draw(st.booleans()),
    )
    schedule = Schedule(
        exchange=draw(st.none() | st.sampled_from(list(EXCHANGES))),
        num_comm_sms=draw(st.none() | COUNTS),
        num_micro_batches=draw(COUNTS),
        granularity=draw(st.sampled_from(["device", "pair"])),
        send_order=draw(st.sampled_from(["rotated", "naive"])),
        send_window=draw(st.integers(0, 99)),
    )
    return Candidate(
        layer=layer,
        parallelism=Parallelism(ep=draw(DEGREES), tp=draw(DEGREES)),
        placement=draw(
            st.sampled_from(["contiguous", "eplb/nearest", "random:7", "local_search:20"])
        ),
        num_replicas=draw(st.integers(0, 99)),
        dense_part=draw(st.none() | st.just(dense)),
        schedule=schedule,
        compression=draw(st.sampled_from(FORMS)),
        offload=draw(
            st.builds(
                Offload,
                resident_fraction=st.floats(0, 0.99),
                prefetch_recall=st.floats(0, 1),
            )
            | st.just(Offload())
        ),
    )


WORKLOADS = st.builds(
    Workload,
    num_tokens_per_device=COUNTS,
    phase=st.sampled_from(["prefill", "decode"]),
    routing=st.sampled_from(["uniform", "zipf:0.8", "power_law:1.2", "lognormal:0.5"]),
    kv_tokens_per_device=st.none() | st.integers(0, 1 << 40),
    seed=st.integers(0, 1 << 40),
)


def through_csv(row):
    file = io.StringIO()
    writer = csv.DictWriter(file, row)
    writer.writeheader()
    writer.writerow(row)
    file.seek(0)
    return next(csv.DictReader(file))


@settings(max_examples=300, deadline=None)
@given(candidates(), WORKLOADS)
def test_any_design_and_workload_come_back_from_a_csv_file(candidate, workload):
    for value in (candidate, workload):
        row = value.to_dict()
        assert type(value).from_dict(row) == value
        back = type(value).from_dict(through_csv(row))
        assert (back, back.key, back.label) == (value, value.key, value.label)


def leaves_of(value, path=()):
    """(path, value) of every field that is no dataclass itself, found without
    `moesim.design.identity`.
    """
    for field in fields(value):
        inner = getattr(value, field.name)
        if is_dataclass(inner):
            yield from leaves_of(inner, (*path, field.name))
        else:
            yield (*path, field.name), inner


def with_leaf(value, path, new):
    if len(path) > 1:
        new = with_leaf(getattr(value, path[0]), path[1:], new)
    return replace(value, **{path[0]: new})


COLD = Compression(cold_fraction=0.5, cold_format="int4")
OTHERS = {
    "kernels": ["auto:vllm", "sglang-triton"],
    "overflow": ["reroute"],
    "gated": [False],
    "padded": [True],
    "tied_embeddings": [True],
    "kind": ["group_limited"],
    "score": ["sigmoid"],
    "selection": ["hash", "sinkhorn"],
    "balancing": ["bias"],
    "weights": ["float16"],
    "activations": ["float32"],
    "dispatch": ["float32"],
    "exchange": ["deepep_ll", "nccl"],
    "combine": ["float32"],
    "precision": ["float32"],
    "placement": ["eplb"],
    "granularity": ["pair"],
    "send_order": ["naive"],
    "routing": ["zipf:0.9"],
    "phase": ["decode"],
    "capacity_factor": [1.0, 1.25],
    "temperature": [0.5],
    "expert_intermediate_size": [48, (32,) * 15 + (16,)],
    "query_size": [64],
    "num_moe_layers": [5],
    "cold_fraction": [0.25, 1.0],
    "cold_format": ["mxfp4"],
    "cold_rank_fraction": [0.3, 0.6],
    "pruned_fraction": [0.125],
    "resident_fraction": [0.5],
    "prefetch_recall": [0.8],
}
#: fields that may only be set together with another
TOGETHER = {
    "overflow": {"layer.capacity_factor": 1.5},
    "padded": {"layer.capacity_factor": 1.5},
    "num_expert_groups": {"layer.gate.kind": "group_limited"},
    "num_limited_groups": {"layer.gate.kind": "group_limited", "layer.gate.num_expert_groups": 4},
    "noise_std": {"layer.gate": Gate(selection="noisy_top_k", noise_std=1.0)},
    "cold_fraction": {"compression": COLD},
    "cold_format": {"compression": COLD},
    "cold_rank_fraction": {"compression": COLD},
    "prefetch_recall": {"offload": Offload(resident_fraction=0.25)},
    "local_routers": {
        "layer.gate": Gate(kind="two_level", num_expert_groups=2, num_limited_groups=2)
    },
}
BASE = Candidate(
    layer=MoELayer(hidden_size=64, expert_intermediate_size=32, num_experts=16, top_k=2),
    dense_part=DensePart(
        num_layers=7,
        num_moe_layers=3,
        hidden_size=64,
        vocab_size=100,
        attention_params_per_layer=10,
        kv_bytes_per_token_per_layer=4.0,
        dense_intermediate_size=128,
    ),
)
WORK = Workload(num_tokens_per_device=64)


def changed(base, path):
    """Designs that differ from one base in a single field: (base, other) pairs."""
    for where, value in TOGETHER.get(path[-1], {}).items():
        base = with_leaf(base, where.split("."), value)
    now = base
    for name in path:
        now = getattr(now, name)
    others = OTHERS.get(path[-1]) or [(now or 0) * 2 + 2 if not isinstance(now, bool) else not now]
    if path[-1] == "num_limited_groups":
        others = [2]
    for other in others:
        yield base, with_leaf(base, path, other)


@pytest.mark.parametrize("base", [BASE, WORK], ids=["design", "workload"])
def test_two_that_differ_in_one_field_have_different_keys_and_labels(base):
    for path, _ in leaves_of(base):
        pairs = list(changed(base, path))
        assert pairs, path
        for one, other in pairs:
            assert one != other, path
            assert one.key != other.key, path
            assert one.label != other.label, path


def test_equal_numbers_of_other_types_are_the_same_design():
    one, other = (
        Candidate(
            layer=MoELayer(
                hidden_size=64,
                expert_intermediate_size=32,
                num_experts=16,
                top_k=2,
                capacity_factor=factor,
            )
        )
        for factor in (1, 1.0)
    )
    assert (one, one.key, one.label) == (other, other.key, other.label)


def test_every_field_is_in_the_table():
    assert len(DESIGN_COLUMNS) == len(set(DESIGN_COLUMNS))
    assert set(DESIGN_COLUMNS) == set(BASE.to_dict())
    assert set(WORKLOAD_COLUMNS) == {field.name for field in fields(Workload)}


def test_a_field_of_a_type_that_cannot_be_written_is_refused():
    @dataclass
    class Odd:
        thing: bytes = b""

    with pytest.raises(
        TypeError, match=r"Odd\.thing: expected a type that moesim\.design\.identity can write, got"
    ):
        identity.leaves(Odd)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": "two"}, "top_k: expected an integer, got 'two'"),
        ({"padded": "maybe"}, "padded: expected True or False, got 'maybe'"),
        ({"capacity_factor": "much"}, "capacity_factor: expected a number, got 'much'"),
        ({"dense_part": "num_layers=3"}, "dense_part: expected num_layers=... num_moe_layers=..."),
        ({"precision": "fp3"}, "precision: expected one of bf16"),
        ({"gate": "flat+precision:float3"}, "gate.precision: expected one of"),
    ],
)
def test_bad_values_are_told_by_column(change, message):
    with pytest.raises(ConfigError) as caught:
        Candidate.from_dict(BASE.to_dict() | change)
    assert str(caught.value).startswith(message)


@pytest.fixture
def winner_row(hgx, make_candidate):
    layer = make_candidate(
        num_experts=16, top_k=2, capacity_factor=1.0, overflow="reroute", padded=True
    )
    return simulate(
        layer, hgx, Workload(num_tokens_per_device=256, routing="zipf:0.9", phase="decode")
    ).row()


def test_a_winner_read_back_is_the_same_design(winner_row, tmp_path):
    """It came back as drop, not padded, prefill: another design under the same label."""
    write_csv(tmp_path / "winners.csv", [winner_row])
    (case,) = read_winners(tmp_path / "winners.csv")
    assert simulate(case.candidate, case.cluster, case.workload).row() == winner_row


@pytest.mark.parametrize(
    "column", ["overflow", "phase", "kv_tokens_per_device", "dense_part", "design"]
)
def test_an_old_table_is_refused_by_its_missing_column(winner_row, tmp_path, column):
    del winner_row[column]
    write_csv(tmp_path / "old.csv", [winner_row])
    with pytest.raises(
        ConfigError, match=rf"^old\.csv: {column}: expected this column, got candidate, "
    ):
        read_winners(tmp_path / "old.csv")


def test_a_row_whose_values_are_not_those_of_its_key_is_refused(winner_row, tmp_path):
    write_csv(tmp_path / "edited.csv", [winner_row | {"top_k": 4}])
    with pytest.raises(
        ConfigError,
        match=r"^edited\.csv: row 0: design: expected [0-9a-f]{16}, the key of this row's",
    ):
        read_winners(tmp_path / "edited.csv")
    write_csv(tmp_path / "edited.csv", [winner_row | {"top_k": 4, "design": ""}])
    assert read_winners(tmp_path / "edited.csv")[0].candidate.layer.top_k == 4
