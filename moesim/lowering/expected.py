"""Count the traffic of many devices from a sample of tokens, without drawing every token and
without a matrix of pairs.

Where all sources route alike, the copies from s to d are a product: the tokens of s times the share
of a token that d receives. The shares follow from the loads of the experts, which a distribution
meets exactly however many tokens are drawn (`moesim.routing.systematic`), and from how often the
choices of one token meet on a device or in a domain, which is counted on the sample. Where chance
decides how evenly work spreads it is drawn, in numbers instead of tokens: the rows of an expert in
a micro-batch, and the copies that meet on a relay. What is lost is the chance that one source or
one pair has more than its share.

Shape legend: S sources = D devices, L slots of a device, P slots, E experts, G domains, W ranks,
T tokens of all sources, K choices of a token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.errors import require
from moesim.lowering.counting import count_copies
from moesim.placement import Placement
from moesim.routing import Routing
from moesim.routing.apportion import apportion

Array = np.ndarray
#: number of devices beyond which traffic is expected rather than drawn: the matrices of pairs would
#: take longer than all else
MOST_DRAWN = 1024
#: number of tokens that are drawn for it
SAMPLE = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpectedTraffic:
    """Traffic that is a product of the tokens of each source and the share of each device.

    Attributes:
        num_tokens_S: ndarray of shape (S,): tokens of each source.
        copies_D: ndarray of shape (D,): copies of a token that each device receives, at most one.
        choices_D: ndarray of shape (D,): choices of a token that lie on each device.
        domains_G: ndarray of shape (G,): share of the tokens that have an expert in each domain.
        counts_DL: ndarray of shape (D, L): rows of each expert slot, which sum to all choices.
        relayed_D: ndarray of shape (D,): tokens that the senders of a device's rail have for its
            domain, over the mean of such rails.
        gathered_D: ndarray of shape (D,): copies that a device's domain has for the devices of its
            rail, over their mean.
    """

    num_tokens_S: Array
    copies_D: Array
    choices_D: Array
    domains_G: Array
    counts_DL: Array
    relayed_D: Array
    gathered_D: Array

    @property
    def dropped_fraction(self) -> float:
        """The share of choices that are dropped: none, since experts have no capacity."""
        return 0.0

    @property
    def num_tokens(self) -> float:
        """The tokens of all sources."""
        return float(self.num_tokens_S.sum())

    @property
    def tokens_D(self) -> Array:
        """Distinct tokens on each device: ndarray of shape (D,)."""
        return self.copies_D * self.num_tokens

    @property
    def sent_copies_S(self) -> Array:
        """Copies of each source's tokens, local ones included: ndarray of shape (S,)."""
        return self.num_tokens_S * self.copies_D.sum()

    @property
    def num_copies(self) -> float:
        """Copies of all tokens."""
        return float(self.copies_D.sum() * self.num_tokens)

    @property
    def num_domain_copies(self) -> float:
        """Copies of all tokens, if each domain received a token once."""
        return float(self.domains_G.sum() * self.num_tokens)

    @property
    def num_kept(self) -> float:
        """Copies of all tokens that stay in their source's own domain, one for each token."""
        sources, domains = len(self.num_tokens_S), len(self.domains_G)
        return float(self.num_tokens_S @ self.domains_G[np.arange(sources) * domains // sources])

    @property
    def load_imbalance(self) -> float:
        """Rows of the busiest device over the mean of all devices."""
        rows = self.counts_DL.sum(axis=1)
        return float(rows.max() / rows.mean())


def sampled_tokens(num_tokens: int, num_devices: int) -> int:
    """Return how many of the tokens of each device are drawn: at least one."""
    return min(num_tokens, max(SAMPLE // num_devices, 1))


def expected_traffic(
    sample: Routing,
    load_E: Array,
    placement: Placement,
    num_tokens_S: Array,
    tp: int,
    devices_per_domain: int,
    rng: np.random.Generator,
) -> ExpectedTraffic:
    """Return the traffic of tokens that route like a sample.

    Args:
        sample: Choices of some tokens.
        load_E: ndarray of shape (E,): choices of each expert by all tokens.
        placement: The expert slots.
        num_tokens_S: ndarray of shape (S,): tokens of each source.
        tp: Consecutive devices of a rank, each of which gets a copy of the rank's tokens.
        devices_per_domain: Consecutive devices of a domain.
        rng: Source of the chance with which copies meet on a relay.
    """
    rank_P, ranks = placement.rank_of_slot_P.astype(np.int64), placement.num_ranks
    domain_W = np.arange(ranks) * tp // devices_per_domain
    num_domains = -(-ranks * tp // devices_per_domain)
    # all tokens of the sample as if they were of one source
    copies, choices, domains, _ = count_copies(
        placement.slot_of_choice(sample.expert_ids_TK),
        rank_P,
        np.array([len(sample.expert_ids_TK)]),
        domain_W,
        ranks,
        num_domains,
    )
    rows_P = rows_of_slots(load_E, placement)
    rows_W = np.bincount(rank_P, rows_P, ranks)
    rows_G = np.bincount(domain_W, rows_W, num_domains)
    met_G = np.bincount(domain_W, choices[0], num_domains)
    total = float(num_tokens_S.sum())
    # a device holds the rows of its slots exactly; the sample says how many are of one token
    copies_D = np.repeat(rows_W / total * _ratio(copies[0], choices[0]), tp)
    domains_G = rows_G / total * _ratio(domains[0], met_G)
    sent_GR, share_GR = (a.reshape(num_domains, -1) for a in (num_tokens_S, copies_D))
    return ExpectedTraffic(
        num_tokens_S=num_tokens_S,
        copies_D=copies_D,
        choices_D=np.repeat(rows_W / total, tp),
        domains_G=domains_G,
        counts_DL=np.repeat(placement.by_rank(rows_P), tp, axis=0),
        relayed_D=_by_chance(total * domains_G, sent_GR.sum(axis=0), rng),
        gathered_D=_by_chance(sent_GR.sum(axis=1) * copies_D.sum(), share_GR.sum(axis=0), rng),
    )


def _by_chance(total_G: Array, weight_R: Array, rng: np.random.Generator) -> Array:
    """Draw how totals divide over rails, and return the numbers over their expectation: ndarray of
    shape (D,), domain by domain.
    """
    total_G = np.rint(total_G).astype(np.int64)
    share_R = weight_R / weight_R.sum()
    mean_GR = total_G[:, None] * share_R
    return _ratio(rng.multinomial(total_G, share_R), mean_GR).ravel()


def rows_of_slots(load_E: Array, placement: Placement) -> Array:
    """Return the rows of every slot, ndarray of shape (P,), int64: the replicas of an expert take
    turns, so that theirs differ by one at most.
    """
    expert_P = placement.expert_of_slot_P
    copies_E = np.bincount(expert_P, minlength=placement.num_experts)
    order = np.argsort(expert_P, kind="stable")
    turn_P = np.empty(len(expert_P), dtype=np.int64)
    turn_P[order] = np.arange(len(expert_P)) - (np.cumsum(copies_E) - copies_E)[expert_P[order]]
    return (load_E // copies_E)[expert_P] + (turn_P < (load_E % copies_E)[expert_P])


def loads_like(sample: Routing, num_tokens: int) -> Array:
    """Return the choices of each expert if so many tokens route like a sample: ndarray of shape
    (E,), int64.
    """
    top_k = sample.expert_ids_TK.shape[1]
    return apportion(sample.num_tokens_E().astype(np.float64), num_tokens * top_k, num_tokens)


def loads_of_parts(
    load_E: Array, tokens_M: Sequence[int], rng: np.random.Generator
) -> Iterator[Array]:
    """Yield the choices of each expert in every micro-batch: ndarray of shape (E,), int64.

    The loads hold for the whole batch. Which of its tokens a part gets is chance, so that those of
    a part are uneven as draws without replacement are.

    Args:
        load_E: ndarray of shape (E,): choices of each expert by all tokens; a token chooses an
            expert at most once.
        tokens_M: Tokens of every part.
        rng: Source of randomness.
    """
    left_E, tokens = load_E, sum(tokens_M)
    # NumPy draws from no more
    require(tokens < 10**9, "workload", "fewer than 1000000000 tokens in all", tokens)
    for part in tokens_M:
        taken_E = rng.hypergeometric(left_E, tokens - left_E, part)
        yield taken_E
        left_E, tokens = left_E - taken_E, tokens - part


def _ratio(part: Array, whole: Array) -> Array:
    """Return part / whole, and 1 where there is nothing."""
    return np.divide(part, whole, out=np.ones(np.shape(part)), where=whole > 0)
