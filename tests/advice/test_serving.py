"""Recommendations for whole models."""

from dataclasses import replace

import pytest

from moesim.advice.answer import advice_answer
from moesim.advice.serving import ServingTask, recommend_serving
from moesim.advice.serving_text import lines_of_advice
from moesim.design.served import ServedModel
from moesim.design.step import Layout
from moesim.errors import ConfigError
from moesim.hardware.economics import load_economics
from moesim.model import Precision
from moesim.model.hf_config import load_model
from moesim.serving.limits import parse_limits
from moesim.serving.loop import RequestTraffic


@pytest.fixture(scope="module")
def task(hgx):
    model = load_model("gpt-oss-120b")
    return ServingTask(
        served=ServedModel(name=model.name, spec=model.spec, precision=Precision.named("mxfp4")),
        cluster=hgx,
        traffic=RequestTraffic(concurrency=1, isl=512, osl=128),
        limits=parse_limits("ttft<=1s,tpot<=12ms"),
        engines=("vllm",),
        economics=load_economics("default"),
    )


@pytest.fixture(scope="module")
def found(task):
    return recommend_serving(task)


def test_it_keeps_the_limits_and_beats_the_others(task, found):
    row = found.best.row(task.economics)
    assert row["ttft_p90_ms"] <= 1000
    assert row["tpot_p90_ms"] <= 12
    assert row["requests_by"] == "request loop"
    rates = [other["output_tokens_per_s_per_device"] for other in found.others]
    assert rates == sorted(rates, reverse=True)
    best = found.estimated.row(task.economics)
    assert best["output_tokens_per_s_per_device"] >= max(rates)
    assert found.estimated.loop.tpot_s * 1e3 == pytest.approx(row["tpot_mean_ms"], rel=0.1)


def test_the_front_is_not_dominated(found):
    names = ("output_tokens_per_s_per_device", "output_tokens_per_s_per_user")
    rates = [tuple(row[name] for name in names) for row in found.front]
    assert len(rates) > 5
    assert rates == sorted(rates, reverse=True)
    assert [user for _, user in rates] == sorted(user for _, user in rates)


def test_text_names_everything(task, found):
    text = list(lines_of_advice(found))
    subjects = [line[:14].strip() for line in text[1:]]
    assert subjects[-5:] == ["intervals", "experts", "schedule", "limited by", "looked at"]
    assert " allowed; decode steps by " in text[-2]


def test_divided_pools_are_tried_beside(task, found):
    """Whichever is better wins, and the other is told beside it."""
    assert found.num_divided >= 6
    text = next(line for line in lines_of_advice(found) if line.startswith("pools "))
    assert ("colocated" if len(found.best.pools) == 1 else "divided") == text.split()[1].strip(";")
    rates = [row["output_tokens_per_s_per_device"] for row in found.divided]
    assert rates == sorted(rates, reverse=True)
    if found.rival is not None and found.rival.loop.requests:
        best = found.best.row(task.economics)["output_tokens_per_s_per_device"]
        assert best >= found.rival.row()["output_tokens_per_s_per_device"]


def test_prompts_that_disturb_decoding_divide_pools(task):
    """Under a tight TPOT devices that compute no prompts decode larger batches."""
    asked = replace(
        task,
        traffic=replace(task.traffic, isl=2048, osl=512),
        limits=parse_limits("ttft_mean<=20s,tpot_mean<=10ms"),
    )
    found = recommend_serving(asked)
    assert len(found.best.pools) == 2
    assert found.rival is not None
    rates = [one.row()["output_tokens_per_s_per_device"] for one in (found.rival, found.best)]
    assert rates[0] < rates[1]
    text = next(line for line in lines_of_advice(found) if line.startswith("pools"))
    assert "pools         divided; the best colocated design" in text


def test_clients_that_are_given(task):
    asked = replace(task, clients=True, limits=(), traffic=replace(task.traffic, concurrency=40))
    found = recommend_serving(asked)
    assert found.best.traffic.concurrency == 40
    assert "clients asked for" in list(lines_of_advice(found))[-2]
    cheap = recommend_serving(replace(asked, objective="cost"))
    assert cheap.best.served == found.best.served


def test_limits_that_nothing_keeps(task):
    with pytest.raises(ConfigError, match=r"slo: expected limits that a design keeps; the nearest"):
        recommend_serving(replace(task, limits=parse_limits("tpot<=10us")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "speed"}, "objective: expected throughput or cost or energy"),
        ({"engines": ("foo",)}, "engine: expected sglang or vllm or trtllm"),
    ],
)
def test_names_are_checked(task, changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(task, **changes)


def test_a_layout_that_the_engine_may_not_load_is_recommended_with_a_word(found):
    """Nothing else may be left; its 2,880 neurons are no whole number of blocks for any tp."""
    assert found.doubt == ""
    pool = found.best.pools[0]
    cut = replace(pool.served, precision=Precision.named("fp8"), layout=Layout.parse("tp4 moe_tp4"))
    doubted = replace(found, best=replace(found.best, pools=(replace(pool, served=cut),)))
    assert doubted.doubt.startswith("experts of 2880 over tp 4 are 720 wide")
    assert advice_answer(doubted).confidence.endswith(f" {doubted.doubt}.")
    assert any(line.startswith("may not load  experts of") for line in lines_of_advice(doubted))
