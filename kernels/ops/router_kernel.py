"""Route all tokens in one kernel: scores, group limits, and top-k.

    for each token t:
        logits[t] = sum of their parts, in order
        key = logits[t] x 1/temperature + noise   (or score + bias), as integers in the same order
        if groups: keep the num_limited_groups groups with the best sum of two scores
        repeat K times: take the largest key, lowest id first, and remove it
        weights[t] = scores of the chosen logits / their sum

The rules are those of `moesim_kernels.ops.router`, which launches this kernel and has its
reference. Integer keys make the comparison total: NaN counts as -inf, and -0.0 equals 0.0.
"""

from moesim_kernels.ops.chain import await_inputs
from moesim_kernels.ops.runtime import jit, tl

#: Lanes of one row that a program takes without spilling, without and with bias or noise.
MAX_ROW, MAX_OPTIONS_ROW = 2**14, 2**13


@jit
def order_key(logits):
    """Map float32 to int32 keys in the same order; no float has a key as low as INT_MIN, and NaN
    has the key of -inf.
    """
    logits = tl.where(logits != logits, float("-inf"), logits)
    bits = tl.where(logits == 0.0, 0.0, logits).to(tl.int32, bitcast=True)
    # Negative floats order backwards as integers, so all bits but the sign are flipped.
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@jit
def key_logit(keys):
    """Return the float32 number whose `order_key` this is."""
    return (keys ^ ((keys >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@jit
def score_of(logits, row_max, SIGMOID: tl.constexpr):
    """Return the score that rule 4 of `moesim_kernels.ops.router` divides by the sum, from a logit
    and the largest of the row.
    """
    if SIGMOID:
        return 1.0 / (1.0 + tl.exp(-logits))
    # Comparing first keeps infinity minus infinity from becoming NaN.
    return tl.where(logits == row_max, 1.0, tl.exp(logits - row_max))


@jit
def _hashed(h):
    # The finalizer of MurmurHash3.
    h = h.to(tl.uint32)
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    return h ^ (h >> 16)


@jit
def _load_logits(
    logits_ptr,
    t,
    expert,
    mask,
    num_tokens,
    num_experts,
    inverse_temperature,
    noise_std,
    seed,
    NOISY: tl.constexpr,
    PARTS: tl.constexpr,
):
    # Logits may come in parts, which are added in their order.
    at = logits_ptr + t * num_experts + expert
    logits = tl.load(at, mask=mask, other=0.0)
    for _ in tl.static_range(1, PARTS):
        at += (tl.zeros_like(t) + num_tokens) * num_experts
        logits += tl.load(at, mask=mask, other=0.0)
    logits *= inverse_temperature
    if NOISY:
        # The noise depends on seed, token and expert only, so every block shape gives the same
        # noise.
        state = _hashed(
            _hashed(t.to(tl.uint32) + _hashed(seed)) ^ (expert.to(tl.uint32) * 0x9E3779B9)
        )
        total = tl.zeros_like(logits).to(tl.int32)
        for i in tl.static_range(6):
            word = _hashed(state + (i * 0x2545F491 + 1))
            # The two halves of six words are twelve uniform numbers, whose sum is nearly normal.
            total += ((word & 0xFFFF) + (word >> 16)).to(tl.int32)
        logits += (total - 6 * 65535).to(tl.float32) * (1.0 / 65536) * noise_std
    return logits


@jit
def _route_kernel(
    logits_ptr,
    bias_ptr,
    weights_ptr,
    ids_ptr,
    counts_ptr,
    kept_ptr,
    num_tokens,
    num_experts,
    num_groups,
    num_limited_groups,
    top_k,
    kept_size,
    seed,
    inverse_temperature,
    noise_std,
    SIGMOID: tl.constexpr,
    GROUPED: tl.constexpr,
    ASCENDING: tl.constexpr,
    MAPPED: tl.constexpr,
    BIASED: tl.constexpr,
    NOISY: tl.constexpr,
    COUNTED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    int_min: tl.constexpr = -2147483648
    per_group = num_experts // num_groups
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    # Every group starts a row of BLOCK_S lanes, so lanes keep the order of expert ids and a group
    # is an axis.
    lane = tl.arange(0, BLOCK_G * BLOCK_S)
    group = lane // BLOCK_S
    member = lane % BLOCK_S
    expert = group * per_group + member
    is_expert = (group < num_groups) & (member < per_group)
    exists = (t[:, None] < num_tokens) & is_expert[None, :]
    logits = _load_logits(
        logits_ptr,
        t[:, None],
        expert[None, :],
        exists,
        num_tokens,
        num_experts,
        inverse_temperature,
        noise_std,
        seed,
        NOISY,
        PARTS,
    )
    keys = tl.where(exists, order_key(logits), int_min)
    # The maximum is taken of the keys, which are free of NaN.
    row_max = key_logit(tl.max(keys, axis=1))[:, None]
    if BIASED:
        logits = key_logit(keys)
        score = score_of(logits, row_max, SIGMOID)
        if not SIGMOID:
            score = score / tl.sum(tl.where(exists, score, 0.0), axis=1)[:, None]
        bias = tl.load(bias_ptr + expert, mask=is_expert, other=0.0)[None, :]
        # A bias must not lift a logit of -inf, which marks an expert that may not be chosen.
        keys = tl.where(
            exists, order_key(tl.where(logits == float("-inf"), logits, score + bias)), int_min
        )

    if GROUPED:
        keys_TGS = tl.reshape(keys, (BLOCK_T, BLOCK_G, BLOCK_S))
        # The second best of each group: the best once more, without its lane.
        best, best_at = tl.max(
            keys_TGS, axis=2, return_indices=True, return_indices_tie_break_left=True
        )
        s = tl.arange(0, BLOCK_S)[None, None, :]
        second = tl.max(tl.where(s == best_at[:, :, None], int_min, keys_TGS), axis=2)
        if BIASED:
            group_score = key_logit(best) + tl.where(second == int_min, 0.0, key_logit(second))
        else:
            group_score = score_of(key_logit(best), row_max, SIGMOID)
            group_score += tl.where(
                second == int_min, 0.0, score_of(key_logit(second), row_max, SIGMOID)
            )
        g = tl.arange(0, BLOCK_G)[None, :]
        # A group without any eligible expert gets the lowest key and is never kept.
        open_groups = tl.where(
            (g < num_groups) & (best != int_min), order_key(group_score), int_min
        )
        kept = tl.zeros((BLOCK_T, BLOCK_G), tl.int1)
        # Groups are few, so that repeated argmax is enough.
        for _ in range(num_limited_groups):
            group_at = tl.argmax(open_groups, axis=1, tie_break_left=True)[:, None]
            kept = kept | (g == group_at)
            open_groups = tl.where(g == group_at, int_min, open_groups)
        keys = tl.reshape(
            tl.where(kept[:, :, None], keys_TGS, int_min), (BLOCK_T, BLOCK_G * BLOCK_S)
        )

    slot = tl.arange(0, BLOCK_K)[None, :]
    chosen_key = tl.full((BLOCK_T, BLOCK_K), int_min, tl.int32)
    chosen_id = tl.zeros((BLOCK_T, BLOCK_K), tl.int32)
    for k in range(top_k):
        # Lanes ascend with expert ids, so breaking ties to the left picks the lowest id.
        # Two plain reductions, for the key and for its lowest lane, are faster than one of pairs.
        top = tl.max(keys, axis=1)
        lane_at = tl.min(tl.where(keys == top[:, None], lane[None, :], BLOCK_G * BLOCK_S), axis=1)
        expert_at = (lane_at // BLOCK_S) * per_group + lane_at % BLOCK_S
        chosen_key = tl.where(slot == k, top[:, None], chosen_key)
        chosen_id = tl.where(slot == k, expert_at[:, None], chosen_id)
        keys = tl.where(lane[None, :] == lane_at[:, None], int_min, keys)

    writes = (t[:, None] < num_tokens) & (slot < top_k)
    if BIASED:
        # Selection saw the bias, weights must not: the logits of the chosen experts are read again.
        logits = _load_logits(
            logits_ptr,
            t[:, None],
            chosen_id,
            writes,
            num_tokens,
            num_experts,
            inverse_temperature,
            noise_std,
            seed,
            NOISY,
            PARTS,
        )
        chosen_key = tl.where(writes, order_key(logits), int_min)
    best_logit = key_logit(tl.max(chosen_key, axis=1))[:, None]
    score = tl.where(slot < top_k, score_of(key_logit(chosen_key), best_logit, SIGMOID), 0.0)
    total = tl.sum(score, axis=1)[:, None]
    # A row whose scores are all 0 gets equal weights instead of a division by 0.
    weights = tl.where(total > 0.0, score / total, 1.0 / top_k)
    place = slot
    if ASCENDING:
        # Listed by id: an expert's place is the number of others with a lower id.
        lower = (chosen_id[:, None, :] < chosen_id[:, :, None]) & (slot < top_k)[:, None, :]
        place = tl.sum(lower.to(tl.int32), axis=2)
    if MAPPED:
        # Columns are the experts of groups that were kept before, side by side.
        kept_at = kept_ptr + t[:, None] * (num_experts // kept_size) + chosen_id // kept_size
        chosen_id = tl.load(kept_at, mask=writes, other=0) * kept_size + chosen_id % kept_size
    out = t[:, None] * top_k + place
    tl.store(weights_ptr + out, weights, mask=writes)
    tl.store(ids_ptr + out, chosen_id, mask=writes)
    if COUNTED:
        # Integer additions commute, so the counts do not depend on the order of the programs.
        tl.atomic_add(counts_ptr + chosen_id, 1, mask=writes, sem="relaxed")


def route_warps(row_elements: int) -> int:
    """Return the number of warps for router rows of this many lanes (a power of two): one per 1,024
    lanes, 4 to 16.
    """
    return min(max(row_elements // 1024, 4), 16)
