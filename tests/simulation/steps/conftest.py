"""A small model, served on a node or on eight."""

import pytest

from moesim import load_cluster
from moesim.design.schedule import Schedule
from moesim.design.served import ServedModel
from moesim.design.step import Layout
from moesim.model import Precision
from moesim.model.hf_config import load_model
from moesim.testing.models import DENSE, SPARSE, spec_of


@pytest.fixture(scope="session")
def small():
    """Serve a model of given blocks; anything can be said otherwise."""

    def make(*blocks, layout="tp4", **options):
        return ServedModel(
            name="small",
            spec=spec_of(*(blocks or (DENSE, *[SPARSE] * 12))),
            layout=Layout.parse(layout),
            **options,
        )

    return make


@pytest.fixture(scope="session")
def deepseek():
    """DeepSeek-V3 with DeepEP's low-latency mode on 64 devices."""
    model = load_model("deepseek-v3")

    def make(parts=1, exchange="deepep_ll", **options):
        return ServedModel(
            name=model.name,
            spec=model.spec,
            layout=Layout.parse("dp64 ep64"),
            precision=Precision.named("fp8"),
            dense_format="fp8_block",
            placement="eplb",
            num_replicas=64,
            schedule=Schedule(exchange=exchange, num_micro_batches=parts),
            **options,
        )

    return make


@pytest.fixture(scope="session")
def rail(_own_home):
    return load_cluster("h100-rail-8x8")
