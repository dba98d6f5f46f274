"""Designs of training runs: what follows from a layout, identity, and what does not go together."""

from dataclasses import replace

import pytest

from moesim.design.training.formats import train_formats
from moesim.design.training.layout import TrainLayout
from moesim.design.training.model import TrainedModel
from moesim.design.training.plan import TrainingPlan
from moesim.errors import ConfigError
from moesim.testing.models import DENSE, SPARSE, spec_of

SMALL = spec_of(DENSE, *[SPARSE] * 7)


def trained(layout="pp2 ep4", devices=8, plan=None, **options):
    return TrainedModel(
        name="small",
        spec=SMALL,
        layout=TrainLayout.parse(layout, devices),
        plan=TrainingPlan(**{"global_batch": 32, "sequence": 1024} | (plan or {})),
        **options,
    )


def test_degrees_fold_over_the_same_devices():
    layout = TrainLayout.parse("tp2 cp2 pp4 ep8", 256)
    assert (layout.dp, layout.devices_per_stage, layout.num_devices) == (16, 64, 256)
    assert (layout.dense_copies, layout.expert_copies) == (32, 8)
    assert str(layout) == "dp16 tp2 cp2 ep8 pp4"


def test_a_design_is_its_fields():
    one = trained()
    assert one.key == trained().key
    others = [
        trained("pp2 ep2"),
        trained(plan={"zero": 2}),
        trained(every_choice=True),
        replace(one, capacity_factor=1.25),
        replace(one, placement="eplb"),
    ]
    assert len({one.key, *(other.key for other in others)}) == 6
    assert len({one.label, *(other.label for other in others)}) == 6


def test_stages_share_the_layers():
    even = trained("pp4 ep2").stages
    assert [len(layers) for layers in even] == [2, 2, 2, 2]
    # the ends, with embedding and head, get fewer
    uneven = trained("pp3 ep4", 12, uneven_stages=True).stages
    assert [len(layers) for layers in uneven] == [3, 3, 2]
    assert [kind for layers in uneven for kind in layers] == list(SMALL.blocks)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: trained("pp3 ep4", 12), "pp x vp that divides the 8 layers of small"),
        (lambda: trained("pp16", 16), "pp x vp <= the 8 layers"),
        (lambda: trained("tp3", 3), "tp that divides the 32 heads of small, got tp3"),
        (lambda: trained("ep3", 3, plan={"global_batch": 3}), "ep that divides the 64 experts"),
        (lambda: trained("ep3", 8), "ep x etp that divides dp x tp x cp = 8"),
        (lambda: trained("pp3", 8), "tp x cp x pp that divides 8 devices"),
        (lambda: trained("xp3", 8), "expected degrees such as"),
        (lambda: trained(plan={"global_batch": 30}), "a multiple of dp x micro_batch = 4 x 1"),
        (lambda: trained("cp8", plan={"sequence": 1025}), "a multiple of cp x tp = 8 x 1"),
        (lambda: trained(plan={"shard_group": 3}), "a divisor of dp x cp = 4, got 3"),
        (lambda: trained(plan={"pipeline": "interleaved"}), "layout.vp: expected at least 2"),
        (lambda: trained("pp2 vp2"), "layout.vp: expected 1 unless interleaved, here 1f1b"),
        (
            lambda: trained("pp2 vp2", plan={"pipeline": "interleaved", "global_batch": 12}),
            "micro-batches in multiples of pp = 2 in an interleaved pipeline, got 3",
        ),
        (
            lambda: trained(plan={"pipeline": "dualpipe", "global_batch": 8}),
            "at least 2 pp = 4 micro-batches in DualPipe, got 2",
        ),
        (lambda: trained(plan={"zero": 4}), "plan.zero: expected a stage 0, 1, 2 or 3, got 4"),
        (lambda: trained(plan={"offload": 1.0}), "plan.offload"),
        (lambda: trained(plan={"recompute": "some"}), "none or selective or full, got 'some'"),
        (lambda: train_formats("fp6"), "unknown formats of training 'fp6'"),
    ],
)
def test_what_does_not_go_together_is_one_line(make, said):
    with pytest.raises(ConfigError) as error:
        make()
    assert said in str(error.value)
    assert "\n" not in str(error.value)
