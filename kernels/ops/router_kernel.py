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
from moesim_kernels.ops.watch import LOGITS, note

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
def with_noise(logits, t, expert, inverse_temperature, noise_std, seed, NOISY: tl.constexpr):
    """Return logits over the temperature, with the noise of tokens ``t`` and experts ``expert``."""
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
def _load_logits(logits_ptr, t, expert, mask, num_tokens, num_experts, PARTS: tl.constexpr):
    # Logits may come in parts, which are added in their order.
    at = logits_ptr + t * num_experts + expert
    logits = tl.load(at, mask=mask, other=0.0)
    for _ in tl.static_range(1, PARTS):
        at += (tl.zeros_like(t) + num_tokens) * num_experts
        logits += tl.load(at, mask=mask, other=0.0)
    return logits


@jit
def lanes(num_groups, per_group, BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr):
    """Return the lanes of a row, their experts, and which lanes are experts.

    Every group starts a row of BLOCK_S lanes, so lanes keep the order of expert ids and a group is
    an axis.
    """
    lane = tl.arange(0, BLOCK_G * BLOCK_S)
    group = lane // BLOCK_S
    member = lane % BLOCK_S
    return lane, group * per_group + member, (group < num_groups) & (member < per_group)


@jit
def select(
    logits,
    exists,
    t,
    bias_ptr,
    missing_ptr,
    watch_ptr,
    num_groups,
    num_limited_groups,
    per_group,
    top_k,
    SIGMOID: tl.constexpr,
    GROUPED: tl.constexpr,
    BIASED: tl.constexpr,
    MASKED: tl.constexpr,
    WATCHED: tl.constexpr,
    KEPT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return the keys and ids of the chosen experts, best first, in blocks of BLOCK_K slots.

    The keys are those of the logits, or with a bias and without KEPT those that chose. INT_MIN
    marks slots for which no expert is left.
    """
    int_min: tl.constexpr = -2147483648
    lane, expert, is_expert = lanes(num_groups, per_group, BLOCK_G, BLOCK_S)
    if MASKED:
        # A missing expert is a lane without an expert.
        missing = tl.load(missing_ptr + expert, mask=is_expert, other=1)
        exists = exists & (missing == 0)[None, :]
    if WATCHED:
        # Not below infinity: NaN, too.
        note(watch_ptr, LOGITS, exists & ((tl.abs(logits) < float("inf")) == 0), t)
    keys = tl.where(exists, order_key(logits), int_min)
    # The maximum is taken of the keys, which are free of NaN.
    row_max = key_logit(tl.max(keys, axis=1))[:, None]
    plain_keys = keys
    if BIASED:
        logits = key_logit(keys)
        score = score_of(logits, row_max, SIGMOID)
        if not SIGMOID:
            score = score / tl.sum(tl.where(exists, score, 0.0), axis=1)[:, None]
        bias = tl.load(bias_ptr + expert, mask=is_expert, other=0.0)[None, :]
        if WATCHED:
            note(watch_ptr, LOGITS, exists & ((tl.abs(bias) < float("inf")) == 0), t)
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
        taken = lane[None, :] == lane_at[:, None]
        if BIASED and KEPT:
            # Selection saw the bias, weights must not.
            top = tl.where(
                top == int_min, top, tl.max(tl.where(taken, plain_keys, int_min), axis=1)
            )
        expert_at = (lane_at // BLOCK_S) * per_group + lane_at % BLOCK_S
        chosen_key = tl.where(slot == k, top[:, None], chosen_key)
        chosen_id = tl.where(slot == k, expert_at[:, None], chosen_id)
        keys = tl.where(taken, int_min, keys)
    return chosen_key, chosen_id


@jit
def weights_of(chosen_key, top_k, SIGMOID: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return the weights of the chosen experts from the keys of their logits."""
    int_min: tl.constexpr = -2147483648
    slot = tl.arange(0, BLOCK_K)[None, :]
    best_logit = key_logit(tl.max(chosen_key, axis=1))[:, None]
    score = score_of(key_logit(chosen_key), best_logit, SIGMOID)
    # Slots for which no expert is left weigh nothing.
    score = tl.where((slot < top_k) & (chosen_key != int_min), score, 0.0)
    total = tl.sum(score, axis=1)[:, None]
    # A row whose scores are all 0 gets equal weights instead of a division by 0.
    return tl.where(total > 0.0, score / tl.where(total > 0.0, total, 1.0), 1.0 / top_k)


@jit
def store_histogram(
    table_ptr,
    chosen_id,
    num_tokens,
    top_k,
    BINS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SEGMENT_T: tl.constexpr,
):
    """Store how often each expert was chosen in every segment of SEGMENT_T tokens, as rows of BINS
    numbers: what a plan would count otherwise.
    """
    pairs = tl.reshape(chosen_id, (BLOCK_T * BLOCK_K,))
    at = tl.arange(0, BLOCK_T * BLOCK_K)
    first_t = tl.program_id(0) * BLOCK_T
    token = at // BLOCK_K
    exists = (first_t + token < num_tokens) & (at % BLOCK_K < top_k)
    for s in tl.static_range(BLOCK_T // SEGMENT_T):
        counts = tl.histogram(pairs, BINS, mask=exists & (token // SEGMENT_T == s))
        row = (first_t // SEGMENT_T + s).to(tl.int64)
        tl.store(
            table_ptr + row * BINS + tl.arange(0, BINS),
            counts,
            mask=(tl.arange(0, BINS) >= 0) & (row * SEGMENT_T < num_tokens),
        )


@jit
def _route_kernel(
    logits_ptr,
    bias_ptr,
    missing_ptr,
    weights_ptr,
    ids_ptr,
    counts_ptr,
    table_ptr,
    watch_ptr,
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
    MASKED: tl.constexpr,
    WATCHED: tl.constexpr,
    NOISY: tl.constexpr,
    COUNTED: tl.constexpr,
    BINS: tl.constexpr,
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
    t = (tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T))[:, None]
    _, expert, is_expert = lanes(num_groups, per_group, BLOCK_G, BLOCK_S)
    expert = expert[None, :]
    exists = (t < num_tokens) & is_expert[None, :]
    logits = _load_logits(logits_ptr, t, expert, exists, num_tokens, num_experts, PARTS)
    logits = with_noise(logits, t, expert, inverse_temperature, noise_std, seed, NOISY)
    chosen_key, chosen_id = select(
        logits,
        exists,
        t,
        bias_ptr,
        missing_ptr,
        watch_ptr,
        num_groups,
        num_limited_groups,
        per_group,
        top_k,
        SIGMOID,
        GROUPED,
        BIASED,
        MASKED,
        WATCHED,
        False,
        BLOCK_T,
        BLOCK_G,
        BLOCK_S,
        BLOCK_K,
    )
    slot = tl.arange(0, BLOCK_K)[None, :]
    writes = (t < num_tokens) & (slot < top_k)
    if BIASED:
        # Selection saw the bias, weights must not: the logits of the chosen experts are read again,
        # which costs fewer registers than keeping those of all.
        logits = _load_logits(logits_ptr, t, chosen_id, writes, num_tokens, num_experts, PARTS)
        logits = with_noise(logits, t, chosen_id, inverse_temperature, noise_std, seed, NOISY)
        chosen_key = tl.where(writes & (chosen_key != int_min), order_key(logits), int_min)
    weights = weights_of(chosen_key, top_k, SIGMOID, BLOCK_K)
    place = slot
    if ASCENDING:
        # Listed by id: an expert's place is the number of others with a lower id.
        lower = (chosen_id[:, None, :] < chosen_id[:, :, None]) & (slot < top_k)[:, None, :]
        place = tl.sum(lower.to(tl.int32), axis=2)
    if MAPPED:
        # Columns are the experts of groups that were kept before, side by side.
        kept_at = kept_ptr + t * (num_experts // kept_size) + chosen_id // kept_size
        chosen_id = tl.load(kept_at, mask=writes, other=0) * kept_size + chosen_id % kept_size
    out = t * top_k + place
    tl.store(weights_ptr + out, weights, mask=writes)
    tl.store(ids_ptr + out, chosen_id, mask=writes)
    if COUNTED:
        # Integer additions commute, so the counts do not depend on the order of the programs.
        tl.atomic_add(counts_ptr + chosen_id, 1, mask=writes, sem="relaxed")
    if BINS:
        store_histogram(table_ptr, chosen_id, num_tokens, top_k, BINS, BLOCK_T, BLOCK_K, BLOCK_T)


def route_warps(row_elements: int) -> int:
    """Return the number of warps for router rows of this many lanes (a power of two): one per 1,024
    lanes, 4 to 16.
    """
    return min(max(row_elements // 1024, 4), 16)
