"""The router against its torch twin, and both against the rules they state."""

import pytest
import torch
from moesim_kernels.ops.router import route, route_reference
from moesim_kernels.ops.router_kernel import MAX_ROW
from moesim_kernels.ops.router_options import UNCHECKED, Options, noise

INF, NAN = float("inf"), float("nan")


# The interpreter computes inf - inf in lanes that are then not selected, as a GPU would, but numpy
# says so.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def _awkward_logits(num_tokens, num_experts, seed=0):
    """Random rows; where there is room, rows of ties, infinities and NaNs among them."""
    logits = torch.randn(num_tokens, num_experts, generator=torch.Generator().manual_seed(seed)) * 3
    if num_tokens >= 12:
        logits[0] = 0.0
        logits[1] = -INF
        logits[2] = NAN
        logits[3] = INF
        logits[4, ::2] = INF
        logits[5, ::2] = -INF
        logits[6, ::3] = NAN
        logits[7] = logits[7].round()
        logits[8, ::2], logits[8, 1::2] = -0.0, 0.0
        logits[9] = 1e38 * logits[9]
        logits[10, 0], logits[10, -1] = INF, -INF
    return logits


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "groups", "kept"),
    [
        (0, 8, 2, 1, 1),
        (1, 1, 1, 1, 1),
        (1, 61, 8, 1, 1),
        (255, 61, 1, 1, 1),
        (37, 61, 61, 1, 1),
        (1023, 8, 2, 1, 1),
        (100, 64, 8, 8, 4),
        (100, 60, 6, 5, 2),
        (50, 12, 3, 12, 3),
        (50, 12, 4, 1, 1),
        (40, 1500, 10, 1, 1),
        (40, 61 * 3, 5, 61, 2),
        (30, 24, 24, 4, 4),
        (30, 24, 6, 4, 1),
    ],
)
def test_equals_reference(device, tokens, experts, top_k, groups, kept, score):
    logits_TE = _awkward_logits(tokens, experts).to(device)
    weights_TK, ids_TK = route(logits_TE, top_k, score, groups, kept, UNCHECKED)
    want_weights_TK, want_ids_TK = route_reference(logits_TE, top_k, score, groups, kept, UNCHECKED)
    assert (ids_TK.dtype, weights_TK.dtype) == (torch.int32, torch.float32)
    assert torch.equal(ids_TK, want_ids_TK)
    torch.testing.assert_close(weights_TK, want_weights_TK, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        weights_TK.sum(1), torch.ones(tokens, device=device), rtol=1e-5, atol=0
    )


@pytest.fixture(params=[route, route_reference], ids=["kernel", "reference"])
def router(request, device):
    def call(row, top_k, *args, options=UNCHECKED, **more):
        weights_TK, ids_TK = request.param(
            torch.tensor([row], device=device), top_k, *args, options=options, **more
        )
        return weights_TK[0].tolist(), ids_TK[0].tolist()

    return call


def test_softmax_weights_are_the_softmax_over_the_chosen(router):
    weights, ids = router([0.0, 2.0, -1.0, 1.0], 2)
    assert ids == [1, 3]
    assert weights == pytest.approx(torch.tensor([2.0, 1.0]).softmax(0).tolist(), rel=1e-6)


def test_sigmoid_weights_are_renormalised(router):
    weights, ids = router([0.0, 2.0, -1.0, 1.0], 2, "sigmoid")
    score = torch.tensor([2.0, 1.0]).sigmoid()
    assert ids == [1, 3]
    assert weights == pytest.approx((score / score.sum()).tolist(), rel=1e-6)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_ties_go_to_the_lowest_id(router, score):
    assert router([1.0, 2.0, 2.0, 1.0, 2.0], 4, score)[1] == [1, 2, 4, 0]
    assert router([-0.0, 0.0, -0.0, 0.0], 3, score)[1] == [0, 1, 2]


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_saturated_scores_still_order_by_logit(router, score):
    assert router([-300.0, -200.0, 30.0, 40.0], 4, score)[1] == [3, 2, 1, 0]


@pytest.mark.parametrize("nothing", [-INF, NAN, -NAN])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_rows_without_any_logit_share_equally(router, score, nothing):
    assert router([nothing] * 5, 4, score) == ([0.25] * 4, [0, 1, 2, 3])


def test_nan_ranks_with_minus_infinity(router):
    weights, ids = router([NAN, -INF, 3.0, NAN, -3.0e38], 5)
    assert ids == [2, 4, 0, 1, 3]
    assert weights == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_plus_infinity_takes_all(router):
    assert router([5.0, INF, 4.0, INF], 3) == ([0.5, 0.5, 0.0], [1, 3, 0])
    weights, ids = router([0.0, INF, -INF], 3, "sigmoid")
    assert (weights, ids) == (pytest.approx([2 / 3, 1 / 3, 0.0]), [1, 0, 2])


def test_groups_rank_by_their_two_best(router):
    # Sums of the two best sigmoids: group 0 wins with two good experts over group 1's single best
    # one.
    row = [1.0, 1.0, -9.0, 2.0, -9.0, -9.0, 0.0, 0.0, 0.0]
    assert router(row, 2, "sigmoid", 3, 1)[1] == [0, 1]
    assert router(row, 3, "sigmoid", 3, 2)[1] == [0, 1, 6]


def test_groups_of_one_rank_by_their_expert(router):
    assert router([1.0, 3.0, 2.0, 0.0], 2, "softmax", 4, 2)[1] == [1, 2]


def test_tied_groups_keep_the_lowest(router):
    assert router([1.0, 0.0] * 4, 4, "softmax", 4, 2)[1] == [0, 2, 1, 3]


def test_experts_of_dropped_groups_stay_out_even_at_minus_infinity(router):
    # Group 1 wins; its second expert is -inf, and still comes before group 0's finite experts.
    assert router([0.0, 0.0, 5.0, -INF], 2, "softmax", 2, 1) == ([1.0, 0.0], [2, 3])
    assert router([NAN] * 6, 2, "softmax", 3, 1)[1] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((9,), "top_k: expected 1 to the 8 experts"),
        ((0,), "top_k"),
        ((2, "relu"), "score: expected"),
        ((2, "softmax", 3), "num_expert_groups: expected a divisor of 8"),
        ((2, "softmax", 4, 5), "num_limited_groups"),
        ((3, "softmax", 4, 1), "top_k: expected 1 to the 2 experts"),
    ],
)
@pytest.mark.parametrize("call", [route, route_reference])
def test_refuses(call, arguments, message, device):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 8, device=device), *arguments)


def test_refuses_other_logits(device):
    with pytest.raises(ValueError, match="expected float32 of shape"):
        route(torch.zeros(2, 8, dtype=torch.bfloat16, device=device), 2)
    with pytest.raises(ValueError, match="use the two-level gate"):
        route(torch.zeros(1, MAX_ROW + 1, device=device), 2)


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "groups", "kept"),
    [
        (0, 8, 2, 1, 1),
        (1, 1, 1, 1, 1),
        (37, 61, 8, 1, 1),
        (100, 64, 8, 8, 4),
        (100, 60, 6, 5, 2),
        (50, 12, 12, 1, 1),
    ],
)
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("kind", ["bias", "noise", "both"])
def test_options_equal_reference(device, tokens, experts, top_k, groups, kept, score, kind):
    logits_TE = _awkward_logits(tokens, experts).to(device)
    bias_E = torch.randn(experts, generator=torch.Generator().manual_seed(7)).to(device) * 0.3
    counts_E = torch.full((experts,), 5, dtype=torch.int32, device=device)
    options = (
        {"checked": False, "temperature": 1.7}
        | ({} if kind == "noise" else {"bias_E": bias_E})
        | ({} if kind == "bias" else {"noise_std": 0.8, "seed": 123})
    )
    weights_TK, ids_TK = route(
        logits_TE, top_k, score, groups, kept, Options(counts_E=counts_E, **options)
    )
    want_counts_E = torch.full_like(counts_E, 5)
    want_weights_TK, want_ids_TK = route_reference(
        logits_TE, top_k, score, groups, kept, Options(counts_E=want_counts_E, **options)
    )
    assert torch.equal(ids_TK, want_ids_TK)
    torch.testing.assert_close(weights_TK, want_weights_TK, rtol=1e-5, atol=1e-7)
    assert torch.equal(counts_E, want_counts_E)
    assert torch.equal(counts_E - 5, torch.bincount(ids_TK.flatten(), minlength=experts).int())


def test_bias_chooses_and_does_not_weigh(router, device):
    def biased(*values, score="softmax", **options):
        return {
            "score": score,
            "options": Options(bias_E=torch.tensor(values, device=device), **options),
        }

    weights, ids = router([0.0, 2.0, -1.0, 1.0], 2, **biased(0.0, -9.0, 9.0, 0.0))
    assert ids == [2, 3]
    assert weights == pytest.approx(torch.tensor([-1.0, 1.0]).softmax(0).tolist(), rel=1e-6)
    assert router([5.0, 4.0, -INF], 2, **biased(0.0, 0.0, 99.0))[1] == [0, 1]
    assert router([0.0, 0.0, 0.0], 2, **biased(0.0, 0.2, 0.1, score="sigmoid"))[1] == [1, 2]


def test_bias_moves_groups(router, device):
    row = [1.0, 1.0, 0.0, 0.0]
    for bias, chosen in ((0.0, [0, 1]), (0.5, [2, 3])):
        options = Options(bias_E=torch.tensor([0.0, 0.0, bias, bias], device=device))
        assert router(row, 2, "sigmoid", 2, 1, options=options)[1] == chosen


def test_noise_is_normal_and_follows_from_seed_token_and_expert():
    first = noise(3000, 64, 5)
    assert torch.equal(first, noise(3000, 64, 5))
    assert torch.equal(first[:7, :9], noise(7, 9, 5))
    assert abs(float(first.mean())) < 0.01
    assert abs(float(first.std()) - 1) < 0.01
    sample = first.flatten().sort().values
    rank = (torch.arange(len(sample)) + 0.5) / len(sample)
    assert float((torch.special.ndtr(sample) - rank).abs().max()) < 0.006
    for other in (noise(3000, 64, 6), first.roll(1, 0), first.roll(1, 1)):
        assert abs(float((first * other).mean())) < 0.01


@pytest.mark.parametrize("call", [route, route_reference])
def test_refuses_nan_and_options_that_do_not_fit(call, device):
    logits_TE = torch.zeros(2, 8, device=device)
    bad = logits_TE.clone()
    bad[1, 3] = NAN
    with pytest.raises(ValueError, match="logits_TE: expected numbers, got NaN"):
        call(bad, 2)
    assert call(torch.where(bad.isnan(), INF, bad), 1)[1].tolist() == [[0], [3]]
    for options, message in (
        (
            {"bias_E": torch.zeros(7, device=device)},
            r"bias_E: expected torch.float32 of shape \(8,\)",
        ),
        ({"bias_E": torch.full((8,), NAN, device=device)}, "bias_E: expected finite numbers"),
        ({"counts_E": torch.zeros(8, device=device)}, "counts_E: expected torch.int32"),
        ({"noise_std": -1.0}, "noise_std"),
        ({"temperature": 0.0}, "temperature"),
        ({"seed": 2**31}, "seed: expected an integer from 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call(logits_TE, 2, options=Options(**options))
