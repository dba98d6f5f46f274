"""What shows of an exchange under passes, and how long gradients travel."""

import pytest

from moesim import load_cluster
from moesim.costs.training.memory import Params
from moesim.design.training.layout import TrainLayout
from moesim.design.training.model import TrainedModel
from moesim.design.training.plan import TrainingPlan
from moesim.simulation.training.parts import sharing_of
from moesim.simulation.training.tail import exposed_s, reduction_s
from moesim.testing.models import SPARSE, spec_of

RAIL = load_cluster("h100-rail-8x8")


def trained(layout, **plan):
    return TrainedModel(
        name="small",
        spec=spec_of(*[SPARSE] * 8),
        layout=TrainLayout.parse(layout, 64),
        plan=TrainingPlan(**{"global_batch": 128} | plan),
    )


@pytest.mark.parametrize(
    ("travel", "under", "overlaps", "shown"),
    [
        # the last of eight layers has nothing to hide under
        (0.8, 8.0, True, 0.1),
        # a long one shows beyond seven eighths of the pass
        (10.0, 8.0, True, 3.0),
        (10.0, 8.0, False, 10.0),
    ],
)
def test_what_shows(travel, under, overlaps, shown):
    assert exposed_s(travel, under, 8, overlaps) == pytest.approx(shown)


def test_dense_parts_and_experts_have_devices_of_their_own():
    dense, experts = sharing_of(trained("tp2 cp2 ep8 pp2"))
    assert (dense.copies, dense.stride, dense.group) == (16, 2, 16)
    assert (experts.copies, experts.stride, experts.group) == (4, 8, 4)
    both = sharing_of(trained("pp2 ep8", pipeline="dualpipe"))
    assert [one.copies for one in both] == [64, 8]
    assert sharing_of(trained("ep8", zero=0))[0].divided == 1


def test_gradients_take_their_bytes():
    """A reduce-scatter of float32 over 64 devices crosses nodes, eight NICs side by side."""
    params = Params(4e9, 0.0)
    reduced, gathered = reduction_s(trained("ep8"), RAIL, params)
    crossing = 4e9 * 4.0 * 63 / 64 / 8 / 50e9
    within = 4e9 * 4.0 * 63 / 64 / 450e9
    assert max(crossing, within) < reduced < 1.6 * (crossing + within)
    assert gathered == pytest.approx(reduced / 2, rel=0.1)
    plain, nothing = reduction_s(trained("ep8", zero=0), RAIL, params)
    assert nothing == 0.0
    assert plain == pytest.approx(2 * reduced, rel=0.2)
    # in groups of a node shards are reduced within, and then cross, one after the other
    grouped, _ = reduction_s(trained("ep8", shard_group=8), RAIL, params)
    assert within < grouped < 1.5 * plain
