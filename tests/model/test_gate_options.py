"""Options of a gate: text and fields say the same, and what does not go together is refused in one
line.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import ConfigError
from moesim.model import Gate, MoELayer

BASES = ("flat", "group_limited:8:4", "two_level:16:4", "product_key:8:256", "low_rank")


@st.composite
def texts(draw):
    options = draw(
        st.lists(
            st.sampled_from(
                ["sigmoid", "temperature:0.5", "share_tokens:4", "share_layers:2", "bias"]
            ),
            unique=True,
        )
    )
    order = [
        "sigmoid",
        "noisy_top_k:1.5",
        "temperature:0.5",
        "bias",
        "local",
        "share_tokens:4",
        "share_layers:2",
    ]
    base = draw(st.sampled_from(BASES))
    if draw(st.booleans()):
        options.append("noisy_top_k:1.5")
    if base.startswith("two_level") and draw(st.booleans()):
        options.append("local")
    return "+".join([base, *sorted(options, key=order.index)])


@given(text=texts())
def test_gates_print_as_they_are_read(text):
    assert str(Gate.parse(text)) == text
    assert Gate.parse(str(Gate.parse(text))) == Gate.parse(text)


@pytest.mark.parametrize("selection", ["expert_choice", "hash", "sinkhorn"])
def test_selections_of_flat_gates(selection):
    assert Gate.parse(f"flat+{selection}") == Gate(selection=selection)
    with pytest.raises(
        ConfigError,
        match=f"gate.selection: expected top_k or noisy_top_k for a two_level gate, got "
        f"'{selection}'",
    ):
        Gate.parse(f"two_level:4:2+{selection}")
    with pytest.raises(
        ConfigError, match=f"gate.balancing: expected none for selection {selection}, got 'bias'"
    ):
        Gate.parse(f"flat+{selection}+bias")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flat+x", "expected options once each of softmax, sigmoid, .* got 'x' in 'flat[+]x'"),
        ("flat+", "got '' in 'flat[+]'"),
        ("flat+bias+aux_loss", "got 'aux_loss' in"),
        ("flat+share_tokens:2+share_tokens:2", "got 'share_tokens:2' in"),
        ("flat+noisy_top_k", "got 'noisy_top_k' in"),
        ("flat+temperature:x", "got 'temperature:x' in"),
        ("flat+share_tokens:1.5", "got 'share_tokens:1.5' in"),
        ("flat+noisy_top_k:0", "gate.noise_std: expected a number > 0, got 0.0"),
        ("flat+temperature:-1", "gate.temperature: expected a number > 0, got -1.0"),
        ("flat+temperature:nan", "gate.temperature: expected a number > 0, got nan"),
        ("flat+share_tokens:0", "gate.share_tokens: expected an integer >= 1, got 0"),
        ("flat+local", "gate.local_routers: expected a two_level gate, got 'flat'"),
    ],
)
def test_wrong_options(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Gate.parse(text)
    assert "\n" not in str(caught.value)


def layer(**changes):
    return MoELayer(
        **{"hidden_size": 64, "expert_intermediate_size": 64, "num_experts": 16, "top_k": 3}
        | changes
    )


def test_layers_refuse_what_cannot_be():
    with pytest.raises(
        ConfigError, match=r"layer.top_k: expected a multiple of the 2 groups kept, .* got 3"
    ):
        layer(gate=Gate.parse("two_level:4:2+local"))
    for changes in ({"overflow": "reroute"}, {"padded": True}):
        with pytest.raises(
            ConfigError, match=r"layer.capacity_factor: expected a number > 0, .* got None"
        ):
            layer(**changes)
    with pytest.raises(ConfigError, match=r"layer.overflow: expected drop or reroute, got 'spill'"):
        layer(capacity_factor=1.0, overflow="spill")


def test_staleness_and_weights():
    assert Gate().staleness == 0
    assert Gate(share_tokens=4, share_layers=2).staleness == 0.875
    assert layer(gate=Gate(selection="hash")).gate_params == 0
    assert layer(gate=Gate(selection="sinkhorn")).gate_params == 64 * 16
