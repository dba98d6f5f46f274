"""Orders of a step: what each may move, and what it gains."""

from dataclasses import replace

import pytest

from moesim import load_cluster
from moesim.design.schedule import STEP_ORDERS, Schedule, step_order
from moesim.design.served import ServedModel
from moesim.design.step import ExpertLoad, Layout, Step
from moesim.errors import ConfigError, UnknownNameError
from moesim.simulation.steps.simulate import simulate_every_layer, simulate_step
from moesim.testing.models import DENSE, SPARSE, spec_of

PREFILL = Step(prefills=1, new_tokens=4096)
DECODE = Step(sequences=4, context=2048)


@pytest.fixture(scope="module")
def run(_own_home):
    """Simulate a small model with shared experts on eight devices."""
    assert SPARSE.moe is not None
    shared = replace(SPARSE, moe=replace(SPARSE.moe, num_shared_experts=1, shared_width=4096))
    cluster = load_cluster("hgx-h100-8")

    def simulated(order, step=PREFILL, parts=None, load=None, every=False, **options):
        name, least = step_order(order)
        served = ServedModel(
            name="small",
            spec=spec_of(DENSE, *[shared] * 12),
            layout=Layout.parse("dp8 ep8"),
            schedule=Schedule(num_micro_batches=parts or least),
            order=name,
        )
        simulate = simulate_every_layer if every else simulate_step
        return simulate(served, cluster, step, load=load or ExpertLoad(), **options)

    return simulated


def test_the_usual_orders_need_no_name(run):
    assert run("").time_s == run("shared_under_dispatch").time_s
    assert run("", parts=2).time_s == run("two_batch").time_s


def test_shared_experts_hide_under_a_dispatch(run):
    """Serial pays for both; what is hidden is at most the shorter of them."""
    serial, hidden = run("serial"), run("shared_under_dispatch")
    gain = serial.time_s - hidden.time_s
    assert 0.0 < gain <= serial.phase_time_s["shared"] * (1 + 1e-6)


def test_chunks_gain_with_many_tokens_and_lose_with_few(run):
    """Every chunk reads all experts' weights again, which decides where there are few tokens."""
    assert run("chunked").time_s < run("serial").time_s
    assert run("chunked", DECODE).time_s > run("serial", DECODE).time_s


def test_chunks_leave_attention_whole(run):
    """Micro-batches divide attention, too, whose kernels then run twice as often."""
    chunked, plain = (run(order, DECODE).phase_time_s for order in ("chunked", "serial"))
    for phase in ("attention", "projections", "head"):
        assert chunked[phase] == pytest.approx(plain[phase], rel=0.25)


@pytest.mark.parametrize("order", STEP_ORDERS)
def test_no_order_beats_the_bound(run, order):
    assert run(order, engine="bound").time_s <= run(order).time_s * (1 + 1e-9)


def test_orders_that_do_not_fit_are_one_line():
    spec = spec_of(SPARSE)
    with pytest.raises(ConfigError, match="expected 2 or more with chunked, got 1"):
        ServedModel(name="x", spec=spec, order="chunked")
    with pytest.raises(UnknownNameError, match="schedule of a step"):
        step_order("two_batches")


@pytest.mark.parametrize("order", ["shared_under_dispatch", "two_batch"])
def test_a_few_layers_stand_for_all_within_their_error(run, order):
    """The sample has two repetitions, so that its error is known by order of magnitude."""
    few, all_ = run(order), run(order, every=True)
    assert 0.0 < few.chain_error_s < 0.25 * few.time_s
    assert all_.chain_error_s == 0.0
    assert few.time_s == pytest.approx(all_.time_s, abs=4 * few.chain_error_s, rel=0.02)


def test_layers_with_the_same_hot_experts_are_equally_long(run):
    """Then nothing is left that could differ between repetitions."""
    error = {c: run("", load=ExpertLoad(correlation=c)).chain_error_s for c in (0.0, 1.0)}
    assert error[1.0] < 1e-6 * error[0.0]


def test_correlated_layers_make_steps_more_uneven_between_seeds(run):
    def spread(correlation):
        times = [
            run("", load=ExpertLoad(seed=1000 * s, correlation=correlation)).time_s
            for s in range(8)
        ]
        return max(times) - min(times)

    assert spread(1.0) > spread(0.0)


def test_layers_that_share_their_choices_are_spread_evenly():
    load = ExpertLoad(seed=5, correlation=0.25)
    seeds = [load.of_layer(index, 100 + index).seed for index in range(8)]
    assert [seed == 5 for seed in seeds] == [False, True] * 4
    with pytest.raises(ConfigError, match=r"^load\.correlation: "):
        ExpertLoad(correlation=1.5)
