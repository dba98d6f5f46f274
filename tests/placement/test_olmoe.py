"""Measured counts of OLMoE (allenai/OLMoE, 15 domain-layers), eight ranks: what planning and
replicas gain.
"""

import numpy as np
import pytest

from moesim.placement import place
from moesim.placement.migration import imbalance
from moesim.routing.measured import counts_NE


def imbalances(strategy, replicas=0):
    return np.array(
        [
            imbalance(place(strategy, load.astype(float), 8, replicas), load)
            for layer in (0, 7, 15)
            for load in counts_NE("olmoe-domains", layer)
        ]
    )


def test_expert_order():
    found = imbalances("contiguous")
    assert len(found) == 15
    assert (found.min(), found.max()) == (
        pytest.approx(1.09, abs=0.005),
        pytest.approx(2.14, abs=0.005),
    )


def test_eplb_without_and_with_a_replica_per_rank():
    found = imbalances("eplb")
    assert (found.min(), found.max()) == (
        pytest.approx(1.002, abs=0.0005),
        pytest.approx(1.27, abs=0.005),
    )
    assert imbalances("eplb", 8).max() == pytest.approx(1.028, abs=0.0005)


def test_local_search_is_never_worse_and_evens_out_replicas():
    assert (imbalances("local_search") <= imbalances("eplb") + 1e-12).all()
    assert imbalances("local_search", 8).max() <= 1.002
