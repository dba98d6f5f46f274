"""Every spelling of interleaved layers gives the same layers, and two that disagree are refused."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesim.errors import ConfigError
from moesim.model.hf_config import read_config

BASE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 1000,
    "tie_word_embeddings": False,
    "scoring_func": "softmax",
}
HYBRID = BASE | {"mamba_d_state": 16, "mamba_dt_rank": 16}
MAMBA2 = {
    "mamba_num_heads": 8,
    "mamba_head_dim": 64,
    "ssm_state_size": 16,
    "n_groups": 1,
    "conv_kernel": 4,
}
QUICK = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LAYERS = st.integers(2, 40)


@pytest.fixture
def blocks(tmp_path):
    """(mixer, dense width, experts) of every layer of a configuration."""

    def read(keys, **options):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(keys))
        return [
            (type(b.mixer).__name__, b.dense and b.dense.width, b.moe and b.moe.num_experts)
            for b in read_config(path, **options).spec.blocks
        ]

    return read


def listed(sparse):
    return {"mlp_layer_types": ["sparse" if flag else "dense" for flag in sparse]}


@QUICK
@given(count=LAYERS, data=st.data())
def test_blocks_by_lists_and_rules(blocks, count, data):
    first = data.draw(st.integers(0, count - 1))
    step = data.draw(st.integers(1, count))
    kind = data.draw(st.sampled_from(["first", "step", "freq", "period", "range", "plain"]))
    base = BASE | {"model_type": "newmoe", "num_hidden_layers": count}
    plain = data.draw(st.lists(st.integers(0, count - 1), max_size=count - 1, unique=True))
    rule, holds = {
        "first": ({"first_k_dense_replace": first}, lambda i: i >= first),
        "step": ({"decoder_sparse_step": step}, lambda i: (i + 1) % step == 0),
        "freq": (
            {"first_k_dense_replace": first, "moe_layer_freq": step},
            lambda i: i >= first and i % step == 0,
        ),
        "period": (
            {"expert_layer_period": step, "expert_layer_offset": first % step},
            lambda i: i % step == first % step,
        ),
        "range": (
            {"moe_layer_start_index": first, "moe_layer_end_index": -1, "moe_layer_interval": 1},
            lambda i: i >= first,
        ),
        "plain": ({"mlp_only_layers": plain}, lambda i: i not in plain),
    }[kind]
    sparse = [holds(i) for i in range(count)]
    if not any(sparse):
        with pytest.raises(ConfigError, match=f"expected some of {count} layers with experts"):
            blocks(base | rule)
        return
    found = blocks(base | rule)
    assert [experts == 8 for _, _, experts in found] == sparse
    assert [width for _, width, _ in found] == [None if flag else 512 for flag in sparse]
    enumerated = [i for i, flag in enumerate(sparse) if flag]
    for spelled in (
        listed(sparse),
        {"is_moe_layer": sparse},
        {"moe_layer_freq": [int(flag) for flag in sparse]},
        {"moe_layers": enumerated},
        {"moe_layers_enum": ",".join(map(str, enumerated))},
        rule | listed(sparse),
    ):
        assert blocks(base | spelled) == found


@QUICK
@given(count=LAYERS, data=st.data())
def test_two_lists_that_disagree_are_refused(blocks, count, data):
    sparse = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    at = data.draw(st.integers(0, count - 1))
    other = [flag != (i == at) for i, flag in enumerate(sparse)]
    if not any(sparse) or not any(other):
        return
    keys = BASE | {"model_type": "newmoe", "num_hidden_layers": count, "is_moe_layer": other}
    with pytest.raises(ConfigError, match=f"is_moe_layer: expected layer {at} ") as caught:
        blocks(keys | listed(sparse))
    assert "\n" not in str(caught.value)
    assert blocks(keys | listed(sparse), lenient=True) == blocks(
        BASE | {"model_type": "newmoe", "num_hidden_layers": count} | listed(sparse)
    )


@QUICK
@given(count=LAYERS, data=st.data())
def test_mixers_by_periods_lists_and_intervals(blocks, count, data):
    period = data.draw(st.integers(1, count))
    offset = data.draw(st.integers(0, period - 1))
    base = HYBRID | {"model_type": "jamba", "num_hidden_layers": count}
    base |= {"expert_layer_period": 1, "expert_layer_offset": 0}
    full = [i % period == offset for i in range(count)]
    words = ["attention" if flag else "mamba" for flag in full]
    found = blocks(base | {"attn_layer_period": period, "attn_layer_offset": offset})
    assert [mixer == "GroupedAttention" for mixer, _, _ in found] == full
    assert blocks(base | {"layers_block_type": words}) == found
    assert blocks(base | {"layer_types": words}) == found
    numbers = [i for i, flag in enumerate(full) if flag]
    if numbers:
        assert blocks(base | {"attn_layer_indices": numbers}) == found
    flags = [int(flag) for flag in full]
    assert blocks(base | {"attn_type_list": flags}) == found
    every = [(i + 1) % period == 0 for i in range(count)]
    found = blocks(base | {"full_attention_interval": period})
    assert [mixer == "GroupedAttention" for mixer, _, _ in found] == every


@QUICK
@given(letters=st.text("ME*-", min_size=1, max_size=40))
def test_patterns_and_lists_of_blocks(blocks, letters):
    words = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
    letters += "E"
    base = BASE | MAMBA2 | {"model_type": "nemotron_h", "num_hidden_layers": len(letters)}
    found = blocks(base | {"hybrid_override_pattern": letters})
    expected = {
        "M": ("Mamba2", None, None),
        "E": ("NoneType", None, 8),
        "*": ("GroupedAttention", None, None),
        "-": ("NoneType", 512, None),
    }
    assert found == [expected[letter] for letter in letters]
    assert blocks(base | {"layers_block_type": [words[letter] for letter in letters]}) == found
    with pytest.raises(ConfigError, match="expected one letter for each of"):
        blocks(base | {"hybrid_override_pattern": letters + "M"})


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            {"layer_types": ["full_attention"] * 3},
            "layer_types: expected one entry for each of 4 layers, got '3 entries'",
        ),
        (
            {"layer_types": ["full_attention"] * 3 + ["swirl"]},
            "layer_types: expected a kind of layer such as full_attention, sliding_attention, "
            "linear_attention or mamba, got 'swirl'",
        ),
        (
            {"layer_types": ["mamba"] + ["full_attention"] * 3},
            "layer_types: expected attention, since the class is not known to have other mixers, "
            "got 'a layer of linear attention, Mamba or convolution'",
        ),
        (
            {"expert_layer_period": 2, "expert_layer_offset": 2},
            "expert_layer_offset: expected less than the period 2, got 2",
        ),
        (
            {"moe_layer_start_index": 3, "moe_layer_end_index": 1},
            "moe_layer_end_index: expected at least the start 3, got 1",
        ),
        ({"moe_layers": [4]}, "moe_layers: expected a list of layer numbers from 0 to 3, got [4]"),
        (
            {"moe_layers_enum": "1,x"},
            "moe_layers_enum: expected numbers with commas, got '1,x'",
        ),
        ({"num_local_experts": 16}, "num_local_experts: expected 8, that of num_experts, got 16"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor of 8 heads, got 3"),
        (
            {"num_experts": 8, "zero_expert_num": 2, "zero_expert_type": "drop"},
            "zero_expert_type: expected identity, got 'drop'",
        ),
        (
            {"num_memory_layers": 3},
            "num_memory_layers: expected a key whose effect on sizes or layers is known "
            "(--lenient ignores it), got 3",
        ),
        (
            {"n_shared_experts": 0, "shared_intermediate_size": 512},
            "shared_intermediate_size: expected 0, since n_shared_experts is 0, got 512",
        ),
        (
            {"num_hidden_layers": 10**12},
            "num_hidden_layers: expected at most 16384 layers, got 1000000000000",
        ),
        (
            {"num_experts": 10**12},
            "num_experts: expected at most 4194304 experts, got 1000000000000",
        ),
        (
            {"hybrid_override_pattern": "MEX*"},
            "hybrid_override_pattern: expected layers of M, *, E, -, got 'X'",
        ),
    ],
)
def test_what_contradicts_itself_is_one_line(blocks, tmp_path, keys, line):
    with pytest.raises(ConfigError) as caught:
        blocks(BASE | {"model_type": "newmoe", "num_hidden_layers": 4} | keys)
    assert str(caught.value) == f"{tmp_path}/config.json: {line}"


def test_what_is_not_understood_is_a_note_if_asked(tmp_path):
    path = tmp_path / "config.json"
    keys = BASE | {"model_type": "mixtral", "num_hidden_layers": 4, "num_memory_layers": 3}
    path.write_text(json.dumps(keys | {"colour": "blue", "rope_theta": 1e6, "use_memory": False}))
    notes = read_config(path, lenient=True).notes
    assert notes == (
        "num_memory_layers = 3 is not understood and ignored",
        "colour is not known, and not taken for a size: ignored",
    )
