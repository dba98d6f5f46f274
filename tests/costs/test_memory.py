"""Memory: every byte by hand, and an error that names the device and what is missing."""

import pytest

from moesim import Workload, load_preset, simulate
from moesim.costs.phases.memory import MemoryNeed, check_memory, memory_need
from moesim.errors import CapacityError
from moesim.model import DensePart, Gate, MoELayer, Precision
from moesim.simulation.memory import memory_of
from moesim.simulation.prepare import prepare
from moesim.units import GIB

LAYER = MoELayer(
    hidden_size=64, expert_intermediate_size=32, num_experts=8, top_k=2, num_shared_experts=1
)
DENSE = DensePart(
    num_layers=4,
    num_moe_layers=3,
    hidden_size=64,
    vocab_size=100,
    attention_params_per_layer=10,
    kv_bytes_per_token_per_layer=8.0,
    dense_intermediate_size=128,
)


def need(layer=LAYER, **other):
    return memory_need(
        layer,
        DENSE,
        **{
            "held_width": 64,
            "kv_tokens": 1000,
            "rows": 50.0,
            "row_widths": 50.0 * 32,
            "tokens": 30.0,
        }
        | other,
    )


def test_by_hand():
    expert = 3 * 64 * 32 * 2
    assert need().experts_bytes == 3 * 2 * expert
    assert need().kv_bytes == 1000 * 4 * 8
    assert need().dense_bytes == 2 * DENSE.params + 3 * (2 * 64 * 8 + expert)
    assert need().buffer_bytes == 2 * (2 * 30 * 64 + 50 * (3 * 32 + 64))
    assert (
        need().total_bytes
        == need().experts_bytes + need().kv_bytes + need().dense_bytes + need().buffer_bytes
    )


def test_a_device_holds_the_widths_of_its_experts():
    assert need(held_width=32).experts_bytes == need().experts_bytes / 2
    assert need(held_width=32).dense_bytes == need().dense_bytes
    assert need(held_width=0).experts_bytes == 0
    assert need(row_widths=0.0).buffer_bytes == need().buffer_bytes - 2 * 50 * 3 * 32


def test_eight_bit_weights_count_their_scales():
    fp8 = MoELayer(
        hidden_size=64,
        expert_intermediate_size=32,
        num_experts=8,
        top_k=2,
        precision=Precision.named("fp8"),
    )
    assert need(fp8).experts_bytes == pytest.approx(3 * 2 * 3 * 64 * 32 * (1 + 4 / 128**2))


def test_a_two_level_gate_is_larger():
    two_level = MoELayer(
        hidden_size=64,
        expert_intermediate_size=32,
        num_experts=8,
        top_k=2,
        num_shared_experts=1,
        gate=Gate.parse("two_level:4:2"),
    )
    assert need(two_level).dense_bytes - need().dense_bytes == 3 * 2 * 64 * 4


def test_the_error_names_the_device_and_how_much_is_missing():
    tight = MemoryNeed(
        experts_bytes=60 * GIB, dense_bytes=20 * GIB, kv_bytes=5 * GIB, buffer_bytes=1.25 * GIB
    )
    check_memory(tight, 86.25 * GIB, 3)
    with pytest.raises(CapacityError) as caught:
        check_memory(tight, 80 * GIB, 3)
    assert str(caught.value) == (
        "model does not fit: device 3 needs 86.2 GiB of 80.0 usable, 6.2 GiB over "
        "(experts 60.0, dense part 20.0, KV cache 5.0, buffers 1.2)"
    )


def test_simulate_refuses_what_does_not_fit_unless_told(hgx, make_candidate):
    deepseek = load_preset("deepseek-v3")
    candidate = make_candidate(
        hidden_size=7168,
        expert_intermediate_size=2048,
        num_experts=256,
        top_k=8,
        num_shared_experts=1,
        dense_part=deepseek.dense_part,
    )
    workload = Workload(num_tokens_per_device=64)
    with pytest.raises(
        CapacityError,
        match=r"^model does not fit: a device needs on average at least \d+\.\d GiB of .* over ",
    ):
        simulate(candidate, hgx, workload)
    result = simulate(candidate, hgx, workload, must_fit=False)
    assert result.peak_memory_bytes > hgx.profile.usable_bytes
    # 58 layers x 32 experts of a device alone: 58 * 32 * 3 * 7168 * 2048 * 2 bytes
    assert result.peak_memory_bytes > 58 * 32 * 3 * 7168 * 2048 * 2


@pytest.mark.parametrize("routing", ["uniform", "power_law:1.2", "power_law:0.6"])
@pytest.mark.parametrize("seed", range(4))
def test_the_device_named_is_the_fullest(hgx, make_candidate, routing, seed):
    """All devices hold equally many experts, so buffers decide: rows computed and tokens received,
    together.
    """
    preset = load_preset("qwen3-30b-a3b")
    candidate = make_candidate(
        hidden_size=2048,
        expert_intermediate_size=64,
        num_experts=64,
        top_k=4,
        dense_part=preset.dense_part,
    )
    workload = Workload(num_tokens_per_device=512, routing=routing, seed=seed)
    prepared = prepare(candidate, hgx, workload)
    found, placement, traffic = memory_of(prepared), prepared.placement, prepared.traffic
    needs = [
        memory_need(
            candidate.layer,
            preset.dense_part,
            held_width=64 * placement.num_slots // 8,
            rows=float(rows),
            kv_tokens=workload.kv_tokens,
            row_widths=64.0 * rows,
            tokens=float(tokens),
        ).total_bytes
        for rows, tokens in zip(traffic.counts_DL.sum(axis=1), traffic.tokens_D, strict=True)
    ]
    assert found.total_bytes == max(needs)
    assert needs[found.device] == max(needs)
