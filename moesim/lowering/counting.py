"""Count the copies of tokens by destination in one pass over the choices.

Shape legend: S sources, T tokens, K choices, W ranks, G domains, P slots.
"""

import numpy as np

from moesim.compiled import compiled


def _count_arrays(slot_TK, rank_P, num_tokens_S, domain_W, num_ranks, num_domains):
    """Do what `count_copies` does on whole arrays."""
    sources = len(num_tokens_S)
    token_C, _ = np.nonzero(slot_TK >= 0)
    slot_C = slot_TK[slot_TK >= 0]
    rank_C = rank_P[slot_C]
    source_T = np.repeat(np.arange(sources), num_tokens_S)
    choices_SW = np.bincount(source_T[token_C] * num_ranks + rank_C, minlength=sources * num_ranks)

    def tokens_by(place_C, places):
        # whether each token has a choice in each place
        seen_TX = np.zeros((len(slot_TK), places), np.bool_)
        seen_TX[token_C, place_C] = True
        token, place = np.nonzero(seen_TX)
        counts = np.bincount(source_T[token] * places + place, minlength=sources * places)
        return counts.reshape(sources, places)

    return (
        tokens_by(rank_C, num_ranks),
        choices_SW.reshape(sources, num_ranks),
        tokens_by(domain_W[rank_C], num_domains),
        np.bincount(slot_C, minlength=len(rank_P)),
    )


def _seconds(slot_TK, rank_P, num_tokens_S, domain_W, num_ranks, num_domains):
    """Return about how long `_count_arrays` takes."""
    return 5e-9 * len(slot_TK) * (8 * slot_TK.shape[1] + num_ranks + num_domains)


@compiled(plain_s=_seconds, plain=_count_arrays)
def count_copies(slot_TK, rank_P, num_tokens_S, domain_W, num_ranks, num_domains):
    """Count tokens by rank, choices by rank and tokens by domain for every source, and rows by
    slot.

    Args:
        slot_TK: ndarray of shape (T, K): slot of every choice, -1 for a dropped one; the tokens are
            in order of their sources.
        rank_P: ndarray of shape (P,): rank of each slot.
        num_tokens_S: ndarray of shape (S,): tokens of each source; they sum to T.
        domain_W: ndarray of shape (W,): domain of each rank.
        num_ranks: Number of ranks, W.
        num_domains: Number of domains, G.

    Returns:
        (copies_SW, choices_SW, domains_SG, rows_P), all int64.
    """
    sources = len(num_tokens_S)
    copies_SW = np.zeros((sources, num_ranks), np.int64)
    choices_SW = np.zeros((sources, num_ranks), np.int64)
    domains_SG = np.zeros((sources, num_domains), np.int64)
    rows_P = np.zeros(len(rank_P), np.int64)
    # the last token that was counted for a rank or a domain: a token counts once for each
    rank_seen, domain_seen = np.full(num_ranks, -1), np.full(num_domains, -1)
    token = 0
    for s in range(sources):
        for _ in range(num_tokens_S[s]):
            for k in range(slot_TK.shape[1]):
                slot = slot_TK[token, k]
                # dropped choices travel nowhere
                if slot < 0:
                    continue
                rows_P[slot] += 1
                rank = rank_P[slot]
                domain = domain_W[rank]
                choices_SW[s, rank] += 1
                # whether it is the token's first choice there is added up, not branched on: no
                # processor can foresee it
                copies_SW[s, rank] += rank_seen[rank] != token
                rank_seen[rank] = token
                domains_SG[s, domain] += domain_seen[domain] != token
                domain_seen[domain] = token
            token += 1
    return copies_SW, choices_SW, domains_SG, rows_P
