"""Triton kernels of attention over packed histories: softmax, SiLU and linear weights, with biases, forward and backward.

A program computes one tile of queries (or of keys) of one history and one head. Scores exist only as tiles in registers, so
memory is linear in the number of events. The tiling is that of Dao 2023 (arXiv:2307.08691); pointwise weights need no
normalisation and no saved statistics (Zhai et al. 2024, arXiv:2402.17152, section 3.3).

Every query sees two ranges of keys of its history: the places from `first` to `last`, and those from `oldest` on, before
`shared`. Masks, windows, global events and candidates are such ranges. Gradients of bias tables are added as 64-bit integers:
their sum does not depend on the order of the programs, so runs repeat to the last bit.

This module needs Triton. With TRITON_INTERPRET=1 the kernels run on a CPU, as in the tests.
"""

import triton
import triton.language as tl

SOFTMAX, SILU, LINEAR = 0, 1, 2
LOG2_E = tl.constexpr(1.4426950408889634)
FAR_BELOW = tl.constexpr(-1.0e30)  # a score that no real score reaches; finite, so that differences are no NaN


@triton.jit
def _rows(pointer, rows, heads, head, width: tl.constexpr, wide: tl.constexpr, is_row):
    """Load rows (R, wide) of one head from packed vectors (N, heads, width)."""
    column = tl.arange(0, wide)
    at = (rows[:, None] * heads + head) * width + column[None, :]
    return tl.load(pointer + at, mask=is_row[:, None] & (column < width)[None, :], other=0.0)


@triton.jit
def _store_rows(pointer, values, rows, heads, head, width: tl.constexpr, wide: tl.constexpr, is_row):
    column = tl.arange(0, wide)
    at = (rows[:, None] * heads + head) * width + column[None, :]
    tl.store(pointer + at, values.to(pointer.dtype.element_ty), mask=is_row[:, None] & (column < width)[None, :])


@triton.jit
def _times(times, rows, is_row, TIME: tl.constexpr):
    """Load the times of rows, if there is a bias by time."""
    if TIME > 0:
        return tl.load(times + rows, mask=is_row, other=0)
    return rows


@triton.jit
def _ranges(queries, is_query, first, last, oldest, shared):
    """Load the two ranges of keys that each query of a tile sees. Both are empty for padding."""
    low = tl.load(first + queries, mask=is_query, other=1 << 30)
    high = tl.load(last + queries, mask=is_query, other=-1)
    far_low = tl.load(oldest + queries, mask=is_query, other=1 << 30)
    far_end = tl.load(shared + queries, mask=is_query, other=0)
    return low, high, far_low, far_end


@triton.jit
def _visible(key_place, low, high, far_low, far_end):
    """Return which pairs of queries and keys are visible, (Q, K)."""
    near = (key_place[None, :] >= low[:, None]) & (key_place[None, :] <= high[:, None])
    return near | ((key_place[None, :] >= far_low[:, None]) & (key_place[None, :] < far_end[:, None]))


@triton.jit
def _key_tiles(low, high, far_low, far_end, KEYS: tl.constexpr):
    """Return where tiles of keys begin and how many there are: first the far ones, then the near ones, which do not overlap."""
    stop = tl.maximum(tl.max(high, 0) + 1, tl.max(far_end, 0))
    start = tl.minimum(tl.min(low, 0), stop) // KEYS * KEYS
    far_start = tl.minimum(tl.min(far_low, 0), start) // KEYS * KEYS
    num_far = tl.cdiv(tl.maximum(tl.minimum(tl.max(far_end, 0), start) - far_start, 0), KEYS)
    return far_start, num_far, start, stop, num_far + tl.cdiv(stop - start, KEYS)


@triton.jit
def _buckets(age, bounds, last: tl.constexpr, log_base: tl.constexpr):
    """Return the buckets of ages by a logarithm, corrected by the exact bounds on either side."""
    guess = (tl.log(tl.maximum(age, 1).to(tl.float32)) / log_base).to(tl.int32)
    guess = tl.minimum(tl.maximum(guess, 0), last)
    above = tl.load(bounds + tl.minimum(guess, last - 1))
    below = tl.load(bounds + tl.maximum(guess - 1, 0))
    return guess + ((guess < last) & (age >= above)).to(tl.int32) - ((guess > 0) & (age < below)).to(tl.int32)


@triton.jit
def _scores(
    query, key, head, query_place, key_place, query_time, key_time, visible, scale,
    by_distance, farthest, num_distances, by_time, bounds,
    HAS_POSITION: tl.constexpr, TIME: tl.constexpr, NUM_BUCKETS: tl.constexpr, LOG_BASE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the scores (Q, K) of a tile, the column of the distance of each pair, and its time bucket or log age."""
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION).to(tl.float32) * scale
    distance = query_place[:, None] - key_place[None, :] + farthest
    bucket = distance
    log_age = scores
    if HAS_POSITION:
        scores += tl.load(by_distance + head * num_distances + distance, mask=visible, other=0.0)
    if TIME > 0:
        age = tl.maximum(query_time[:, None] - key_time[None, :], 0)
        if TIME == 1:
            bucket = _buckets(age, bounds, NUM_BUCKETS - 1, LOG_BASE)
            scores += tl.load(by_time + head * NUM_BUCKETS + bucket, mask=visible, other=0.0)
        else:
            log_age = tl.log(1.0 + age.to(tl.float32))
            scores -= tl.load(by_time + head) * log_age
    return scores, distance, bucket, log_age


@triton.jit
def _weights(scores, visible, log_sum, divisor, FORM: tl.constexpr):
    """Return the weights of a tile and their slope, which multiplies the gradient of the weights (softmax: the weights)."""
    if FORM == 0:
        weights = tl.where(visible, tl.exp2((scores - log_sum[:, None]) * LOG2_E), 0.0)
        slope = weights
    elif FORM == 1:
        gate = 1.0 / (1.0 + tl.exp2(-scores * LOG2_E))
        weights = tl.where(visible, scores * gate / divisor, 0.0)
        slope = tl.where(visible, gate * (1.0 + scores * (1.0 - gate)) / divisor, 0.0)
    else:
        weights = tl.where(visible, scores, 0.0)
        slope = tl.where(visible, 1.0, 0.0)
    return weights, slope


@triton.jit
def attention_forward(
    query, key, value, output, log_sums,
    tile_history, tile_start, query_offsets, key_offsets, first, last, oldest, shared, place, query_times, key_times,
    by_distance, farthest, num_distances, by_time, bounds, scale, divisor,
    heads, key_heads,
    KEY_WIDTH: tl.constexpr, KEY_WIDE: tl.constexpr, VALUE_WIDTH: tl.constexpr, VALUE_WIDE: tl.constexpr,
    FORM: tl.constexpr, HAS_POSITION: tl.constexpr, TIME: tl.constexpr, NUM_BUCKETS: tl.constexpr,
    LOG_BASE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute one tile of queries of one head: the attended values, and for a softmax the logs of the sums."""
    history = tl.load(tile_history + tl.program_id(0))
    head = tl.program_id(1)
    key_head = head // (heads // key_heads)
    queries = tl.load(tile_start + tl.program_id(0)) + tl.arange(0, QUERIES)
    is_query = queries < tl.load(query_offsets + history + 1)
    low, high, far_low, far_end = _ranges(queries, is_query, first, last, oldest, shared)
    query_place = tl.load(place + queries, mask=is_query, other=0)
    query_time = _times(query_times, queries, is_query, TIME)
    query_tile = _rows(query, queries, heads, head, KEY_WIDTH, KEY_WIDE, is_query)
    key_start = tl.load(key_offsets + history)
    far_start, num_far, start, stop, num_tiles = _key_tiles(low, high, far_low, far_end, KEYS)

    highest = tl.full((QUERIES,), FAR_BELOW, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    attended = tl.zeros((QUERIES, VALUE_WIDE), tl.float32)
    for tile in range(num_tiles):
        tile_first = tl.where(tile < num_far, far_start + tile * KEYS, start + (tile - num_far) * KEYS)
        key_place = tile_first + tl.arange(0, KEYS)
        is_key = key_place < stop
        keys = key_start + key_place
        visible = _visible(key_place, low, high, far_low, far_end)
        key_tile = _rows(key, keys, key_heads, key_head, KEY_WIDTH, KEY_WIDE, is_key)
        value_tile = _rows(value, keys, key_heads, key_head, VALUE_WIDTH, VALUE_WIDE, is_key)
        key_time = _times(key_times, keys, is_key, TIME)
        scores, _, _, _ = _scores(
            query_tile, key_tile, head, query_place, key_place, query_time, key_time, visible, scale,
            by_distance, farthest, num_distances, by_time, bounds, HAS_POSITION, TIME, NUM_BUCKETS, LOG_BASE, PRECISION,
        )  # fmt: skip
        if FORM == 0:
            scores = tl.where(visible, scores, FAR_BELOW)
            top = tl.maximum(highest, tl.max(scores, 1))
            weights = tl.where(visible, tl.exp2((scores - top[:, None]) * LOG2_E), 0.0)
            shrink = tl.exp2((highest - top) * LOG2_E)
            total = total * shrink + tl.sum(weights, 1)
            attended = attended * shrink[:, None]
            highest = top
        else:
            weights, _ = _weights(scores, visible, highest, divisor, FORM)
        attended += tl.dot(weights.to(value_tile.dtype), value_tile, input_precision=PRECISION).to(tl.float32)
    if FORM == 0:
        blind = total == 0.0  # a candidate without events: zeros, and weights of zero in the backward pass
        attended = attended / tl.where(blind, 1.0, total)[:, None]
        log_sum = tl.where(blind, -FAR_BELOW, highest + tl.log(tl.where(blind, 1.0, total)))
        tl.store(log_sums + queries * heads + head, log_sum, mask=is_query)
    _store_rows(output, attended, queries, heads, head, VALUE_WIDTH, VALUE_WIDE, is_query)


@triton.jit
def _add_to_tables(
    gradient, visible, distance, bucket, log_age, head,
    position_sums, num_distances, time_sums, fixed,
    HAS_POSITION: tl.constexpr, TIME: tl.constexpr, NUM_BUCKETS: tl.constexpr,
):  # fmt: skip
    """Add the gradient of a tile's scores to the tables of biases, as integers of a fixed unit."""
    if HAS_POSITION:
        at = position_sums + head * num_distances + distance
        tl.atomic_add(at, (gradient * fixed).to(tl.int64), mask=visible)
    if TIME == 1:
        # A tile has few buckets: its ages are of the same magnitude. One addition per bucket, not per pair.
        low = tl.min(tl.min(tl.where(visible, bucket, NUM_BUCKETS), 1), 0)
        high = tl.max(tl.max(tl.where(visible, bucket, -1), 1), 0)
        for number in range(low, high + 1):
            inside = tl.sum(tl.sum(tl.where(visible & (bucket == number), gradient, 0.0), 1), 0)
            tl.atomic_add(time_sums + head * NUM_BUCKETS + number, (inside * fixed).to(tl.int64))
    if TIME == 2:
        slope = -tl.sum(tl.sum(tl.where(visible, gradient * log_age, 0.0), 1), 0)
        tl.atomic_add(time_sums + head, (slope * fixed).to(tl.int64))


@triton.jit
def attention_backward_queries(
    query, key, value, log_sums, grad_output, deltas, grad_query, position_sums, time_sums, fixed_unit,
    tile_history, tile_start, query_offsets, key_offsets, first, last, oldest, shared, place, query_times, key_times,
    by_distance, farthest, num_distances, by_time, bounds, scale, divisor,
    heads, key_heads,
    KEY_WIDTH: tl.constexpr, KEY_WIDE: tl.constexpr, VALUE_WIDTH: tl.constexpr, VALUE_WIDE: tl.constexpr,
    FORM: tl.constexpr, HAS_POSITION: tl.constexpr, TIME: tl.constexpr, NUM_BUCKETS: tl.constexpr,
    LOG_BASE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of one tile of queries of one head, and add that of the biases.

    `deltas` is, per query and head, what a softmax subtracts from the gradient of each weight.
    """
    history = tl.load(tile_history + tl.program_id(0))
    head = tl.program_id(1)
    key_head = head // (heads // key_heads)
    queries = tl.load(tile_start + tl.program_id(0)) + tl.arange(0, QUERIES)
    is_query = queries < tl.load(query_offsets + history + 1)
    low, high, far_low, far_end = _ranges(queries, is_query, first, last, oldest, shared)
    query_place = tl.load(place + queries, mask=is_query, other=0)
    query_time = _times(query_times, queries, is_query, TIME)
    query_tile = _rows(query, queries, heads, head, KEY_WIDTH, KEY_WIDE, is_query)
    grad_tile = _rows(grad_output, queries, heads, head, VALUE_WIDTH, VALUE_WIDE, is_query)
    log_sum = tl.load(log_sums + queries * heads + head, mask=is_query, other=0.0)
    delta = tl.load(deltas + queries * heads + head, mask=is_query, other=0.0)
    fixed = tl.load(fixed_unit)
    key_start = tl.load(key_offsets + history)
    far_start, num_far, start, stop, num_tiles = _key_tiles(low, high, far_low, far_end, KEYS)

    gradient = tl.zeros((QUERIES, KEY_WIDE), tl.float32)
    for tile in range(num_tiles):
        tile_first = tl.where(tile < num_far, far_start + tile * KEYS, start + (tile - num_far) * KEYS)
        key_place = tile_first + tl.arange(0, KEYS)
        is_key = key_place < stop
        keys = key_start + key_place
        visible = _visible(key_place, low, high, far_low, far_end)
        key_tile = _rows(key, keys, key_heads, key_head, KEY_WIDTH, KEY_WIDE, is_key)
        value_tile = _rows(value, keys, key_heads, key_head, VALUE_WIDTH, VALUE_WIDE, is_key)
        key_time = _times(key_times, keys, is_key, TIME)
        scores, distance, bucket, log_age = _scores(
            query_tile, key_tile, head, query_place, key_place, query_time, key_time, visible, scale,
            by_distance, farthest, num_distances, by_time, bounds, HAS_POSITION, TIME, NUM_BUCKETS, LOG_BASE, PRECISION,
        )  # fmt: skip
        _, slope = _weights(scores, visible, log_sum, divisor, FORM)
        of_weights = tl.dot(grad_tile, tl.trans(value_tile), input_precision=PRECISION).to(tl.float32)
        of_scores = slope * (of_weights - delta[:, None])
        _add_to_tables(
            of_scores, visible, distance, bucket, log_age, head,
            position_sums, num_distances, time_sums, fixed, HAS_POSITION, TIME, NUM_BUCKETS,
        )  # fmt: skip
        gradient += tl.dot(of_scores.to(key_tile.dtype), key_tile, input_precision=PRECISION).to(tl.float32)
    _store_rows(grad_query, gradient * scale, queries, heads, head, KEY_WIDTH, KEY_WIDE, is_query)


@triton.jit
def attention_backward_keys(
    query, key, value, log_sums, grad_output, deltas, grad_key, grad_value,
    key_tile_history, key_tile_start, query_offsets, key_offsets, first, last, oldest, shared, place, query_times, key_times,
    by_distance, farthest, num_distances, by_time, bounds, scale, divisor,
    heads, key_heads,
    KEY_WIDTH: tl.constexpr, KEY_WIDE: tl.constexpr, VALUE_WIDTH: tl.constexpr, VALUE_WIDE: tl.constexpr,
    FORM: tl.constexpr, HAS_POSITION: tl.constexpr, TIME: tl.constexpr, NUM_BUCKETS: tl.constexpr,
    LOG_BASE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of one tile of keys and values of one of their heads, from all heads of queries that share it."""
    history = tl.load(key_tile_history + tl.program_id(0))
    key_head = tl.program_id(1)
    keys = tl.load(key_tile_start + tl.program_id(0)) + tl.arange(0, KEYS)
    is_key = keys < tl.load(key_offsets + history + 1)
    key_place = keys - tl.load(key_offsets + history)
    key_first = tl.min(key_place, 0)
    key_tile = _rows(key, keys, key_heads, key_head, KEY_WIDTH, KEY_WIDE, is_key)
    value_tile = _rows(value, keys, key_heads, key_head, VALUE_WIDTH, VALUE_WIDE, is_key)
    key_time = _times(key_times, keys, is_key, TIME)
    of_key = tl.zeros((KEYS, KEY_WIDE), tl.float32)
    of_value = tl.zeros((KEYS, VALUE_WIDE), tl.float32)
    query_start = tl.load(query_offsets + history)
    query_stop = tl.load(query_offsets + history + 1)
    sharing = heads // key_heads
    for tile_start in range(query_start, query_stop, QUERIES):
        queries = tile_start + tl.arange(0, QUERIES)
        is_query = queries < query_stop
        low, high, far_low, far_end = _ranges(queries, is_query, first, last, oldest, shared)
        near = (tl.min(low, 0) < key_first + KEYS) & (tl.max(high, 0) >= key_first)
        if near | ((tl.min(far_low, 0) < key_first + KEYS) & (tl.max(far_end, 0) > key_first)):
            query_place = tl.load(place + queries, mask=is_query, other=0)
            query_time = _times(query_times, queries, is_query, TIME)
            visible = _visible(key_place, low, high, far_low, far_end) & is_key[None, :]
            for number in range(sharing):
                head = key_head * sharing + number
                query_tile = _rows(query, queries, heads, head, KEY_WIDTH, KEY_WIDE, is_query)
                grad_tile = _rows(grad_output, queries, heads, head, VALUE_WIDTH, VALUE_WIDE, is_query)
                log_sum = tl.load(log_sums + queries * heads + head, mask=is_query, other=0.0)
                delta = tl.load(deltas + queries * heads + head, mask=is_query, other=0.0)
                scores, _, _, _ = _scores(
                    query_tile, key_tile, head, query_place, key_place, query_time, key_time, visible, scale,
                    by_distance, farthest, num_distances, by_time, bounds,
                    HAS_POSITION, TIME, NUM_BUCKETS, LOG_BASE, PRECISION,
                )  # fmt: skip
                weights, slope = _weights(scores, visible, log_sum, divisor, FORM)
                of_weights = tl.dot(grad_tile, tl.trans(value_tile), input_precision=PRECISION).to(tl.float32)
                of_scores = slope * (of_weights - delta[:, None])
                turned = tl.trans(weights).to(grad_tile.dtype)
                of_value += tl.dot(turned, grad_tile, input_precision=PRECISION).to(tl.float32)
                turned = tl.trans(of_scores).to(query_tile.dtype)
                of_key += tl.dot(turned, query_tile, input_precision=PRECISION).to(tl.float32)
    _store_rows(grad_key, of_key * scale, keys, key_heads, key_head, KEY_WIDTH, KEY_WIDE, is_key)
    _store_rows(grad_value, of_value, keys, key_heads, key_head, VALUE_WIDTH, VALUE_WIDE, is_key)
