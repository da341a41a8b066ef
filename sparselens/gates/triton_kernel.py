"""The fused kernels of gated attention: one forward, two backward, no atomics.

forward    running maximum m and denominator l are over all visible scores, the output over open edges only:
           out_i = sum_j open_ij exp(s_ij - m_i) v_j / l_i;  saved for the backward pass: lse_i = m_i + log l_i
backward   with p = exp(s - lse), z = gate_logit / t, soft = sigmoid(z + noise), g_ij = dOut_i v_j, o_i = dOut_i out_i
           ds_ij = p_ij ((soft (1 - soft) / t + open_ij) g_ij - o_i) + dExpected sigmoid'(z_ij) / t
           dq_i = scale sum_j ds_ij k_j;  dk_j = scale sum_i ds_ij q_i;  dv_j = sum_i p_ij open_ij dOut_i
Noise is computed where it is needed, from two words x, y per row (`noise.uniform_at`), identically in all three
kernels. WORDS holds them with their first shift done: x ^ x >> 16 and y ^ y >> 15.

Instructions per edge cost more than the matrix products. So the gate is expressed by its odds of being closed,
e = exp(-z), without logarithms and with a single reciprocal, r = 1 / ((1 + e) (u + (1 - u) e)):
           open = (1 - u) e < u;  sigmoid'(z) = e (r (u + (1 - u) e))^2;  soft = u r (1 + e)
Exponentials and lse are to base 2. Tiles that are visible to all their queries come first and need no mask; then those
at the edges of the visible range. Pointers and constants are in capitals, as is usual in Triton.
"""

# pyright: basic
# Type checkers do not know the types of Triton's language.

from typing import no_type_check  # these functions are source for Triton's compiler and never run as Python

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
@no_type_check
def _uniform(word, other, begin, place):
    """As `noise.uniform_at`, in 32 bits, at the keys `begin + place`; `begin` is a multiple of a power of two > place.

    `x ^ x >> n` distributes over exclusive or, so it is done beforehand for words (WORDS), and once per tile for keys.
    The top bits become the mantissa of a float between 1 and 2.
    """
    bits = ((word ^ begin ^ (begin >> 16))[:, None] ^ place.to(tl.uint32)[None, :]) * 0x7FEB352D
    bits = (bits ^ (bits >> 15) ^ other[:, None]) * 0x846CA68B
    bits = ((bits >> 9) ^ (bits >> 25)) | 0x3F800000
    return bits.to(tl.float32, bitcast=True) - 0.999999940395355224609375  # 1 - 2**-24


@triton.jit
@no_type_check
def _inverse(x):
    """1 / x by one instruction and a product; a division takes ten instructions."""
    root = tl.rsqrt(x)
    return root * root


@triton.jit
@no_type_check
def _as_number(condition):
    return tl.where(condition, 1.0, 0.0)


@triton.jit
@no_type_check
def _product(query, key, scale, softcap, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr):
    """The products q . k, to be scaled later; with a soft-cap, the final scores."""
    product = tl.dot(query, tl.trans(key), input_precision=PRECISION)
    if HAS_CAP:
        tanh = 2 * _inverse(1 + tl.exp2(tl.minimum(product * (-2 * LOG2E * scale / softcap), 60.0))) - 1
        product = softcap * tanh
    return product


@triton.jit
@no_type_check
def _visible(product, begin, place, first, last):
    """Sets the products of invisible keys to -inf."""
    number = (begin + place)[None, :]
    return tl.where((number >= first[:, None]) & (number < last[:, None]), product, -float("inf"))


@triton.jit
@no_type_check
def _closed_odds(product, scale, bias, slope):
    """exp(-gate_logit / t), at most 2**60: there the gate is closed in float32, and squares are still finite."""
    return tl.exp2(tl.minimum(product * (-scale * slope * LOG2E) - bias * slope * LOG2E, 60.0))


@triton.jit
@no_type_check
def _rows(pointer, row, stride, column, n_rows, HEAD: tl.constexpr, MASKED: tl.constexpr):
    """A tile of rows of length HEAD; padded with zeros."""
    at = pointer + row.to(tl.int64)[:, None] * stride + column[None, :]
    if MASKED:
        return tl.load(at, mask=(row < n_rows)[:, None] & (column < HEAD)[None, :], other=0.0)
    if column.shape[0] > HEAD:
        return tl.load(at, mask=(column < HEAD)[None, :], other=0.0)
    return tl.load(at)


@triton.jit
@no_type_check
def _ranges(first, last, n_keys, COLUMNS: tl.constexpr):
    """Two ranges of keys, in tiles: those that any row sees, and those that all rows see."""
    start = tl.min(tl.where(first < last, first, n_keys)) // COLUMNS * COLUMNS
    whole = (tl.max(first) + COLUMNS - 1) // COLUMNS * COLUMNS
    whole_end = tl.maximum(tl.min(last) // COLUMNS * COLUMNS, whole)
    return start, tl.max(last), whole, whole_end


@triton.jit
@no_type_check
def _attend(
    begin, K, V, k_row, v_row, query, first, last, word, other, output, top, total, expected, opened,
    scale, bias, slope, softcap, n_keys,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    NOISY: tl.constexpr, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Updates the running results of a block of queries with one tile of keys."""
    place = tl.arange(0, COLUMNS)
    column = tl.arange(0, WIDTH)
    key = _rows(K, begin + place, k_row, column, n_keys, HEAD, MASKED)
    value = _rows(V, begin + place, v_row, column, n_keys, HEAD, MASKED)
    product = _product(query, key, scale, softcap, HAS_CAP, PRECISION)
    scale = 1.0 if HAS_CAP else scale
    if MASKED:
        product = _visible(product, begin, place, first, last)
    odds = _closed_odds(product, scale, bias, slope)
    if NOISY:
        uniform = _uniform(word, other, begin, place)
        is_open = _as_number(odds - uniform * odds < uniform)
    else:
        is_open = _as_number(product * scale + bias > 0)
    expected += tl.sum(_inverse(1 + odds), 1)
    opened += tl.sum(is_open, 1)

    higher = tl.maximum(top, tl.max(product, 1) * (scale * LOG2E))
    base = higher
    if MASKED:
        base = tl.where(higher == -float("inf"), 0.0, higher)  # a query that has seen no key yet
    weight = tl.exp2(product * (scale * LOG2E) - base[:, None])
    shrink = tl.exp2(top - base)
    total = total * shrink + tl.sum(weight, 1)
    output = output * shrink[:, None] + tl.dot((weight * is_open).to(value.dtype), value, input_precision=PRECISION)
    return output, higher, total, expected, opened


@triton.jit
@no_type_check
def forward(
    Q, K, V, FIRST, LAST, WORDS, SINKS, OUT, LSE, EXPECTED, OPENED,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, o_batch, o_head, o_row, span_batch,
    scale, bias, slope, softcap, n_queries, n_keys, n_words,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    NOISY: tl.constexpr, HAS_CAP: tl.constexpr, HAS_SINKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head: output, lse, and each query's expected and open edges."""
    batch = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS
    block = tl.num_programs(1) - 1 - tl.program_id(1)  # later queries mostly see more keys: start with the longest work
    row = block * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    here = row < n_queries
    known = tl.minimum(row, n_queries - 1)  # beyond the end, repeat the last row, without storing it
    place = tl.program_id(0).to(tl.int64) * n_queries + known  # index into values kept per query
    first = tl.load(FIRST + batch * span_batch + known)
    last = tl.load(LAST + batch * span_batch + known)
    query = _rows(Q + batch * q_batch + head * q_head, row, q_row, column, n_queries, HEAD, True)
    K += batch * k_batch + head // GROUP * k_head
    V += batch * v_batch + head // GROUP * v_head
    word = tl.zeros([ROWS], tl.uint32)
    other = word
    if NOISY:
        word = tl.load(WORDS + place).to(tl.uint32, bitcast=True)
        other = tl.load(WORDS + n_words + place).to(tl.uint32, bitcast=True)
    if HAS_SINKS:
        sink = tl.load(SINKS + head).to(tl.float32)
        top = tl.zeros([ROWS], tl.float32) + sink * LOG2E
        total = tl.zeros([ROWS], tl.float32) + 1
    else:
        top = tl.zeros([ROWS], tl.float32) - float("inf")
        total = tl.zeros([ROWS], tl.float32)
    output = tl.zeros([ROWS, WIDTH], tl.float32)
    expected = tl.zeros([ROWS], tl.float32)
    opened = tl.zeros([ROWS], tl.float32)

    start, end, whole, whole_end = _ranges(first, last, n_keys, COLUMNS)
    for begin in range(whole, whole_end, COLUMNS):
        output, top, total, expected, opened = _attend(
            begin, K, V, k_row, v_row, query, first, last, word, other, output, top, total, expected, opened,
            scale, bias, slope, softcap, n_keys, HEAD, WIDTH, COLUMNS, NOISY, HAS_CAP, PRECISION, MASKED=False,
        )  # fmt: skip
    for left in range(start, end - (whole_end - whole), COLUMNS):
        begin = left + tl.where(left < whole, 0, whole_end - whole)
        output, top, total, expected, opened = _attend(
            begin, K, V, k_row, v_row, query, first, last, word, other, output, top, total, expected, opened,
            scale, bias, slope, softcap, n_keys, HEAD, WIDTH, COLUMNS, NOISY, HAS_CAP, PRECISION, MASKED=True,
        )  # fmt: skip

    seen = total > 0
    output = output / tl.where(seen, total, 1.0)[:, None]
    lse = tl.where(seen, top + tl.log2(tl.where(seen, total, 1.0)), float("inf"))
    inside = here[:, None] & (column < HEAD)[None, :]
    at = OUT + batch * o_batch + head * o_head + row.to(tl.int64)[:, None] * o_row + column[None, :]
    tl.store(at, output.to(OUT.dtype.element_ty), mask=inside)
    tl.store(LSE + place, lse, mask=here)
    tl.store(EXPECTED + place, expected, mask=here)
    tl.store(OPENED + place, opened, mask=here)


@triton.jit
@no_type_check
def _gradient(
    query, key, value, d_output, lse, inner, d_expected, first, last, word, other, begin,
    scale, bias, slope, softcap, COLUMNS: tl.constexpr,
    NOISY: tl.constexpr, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """For one tile: the gradient of q . k (without the scale), and the weights of the open edges."""
    place = tl.arange(0, COLUMNS)
    product = _product(query, key, scale, softcap, HAS_CAP, PRECISION)
    if HAS_CAP:
        scale = 1.0
        steepness = 1 - (product / softcap) * (product / softcap)
    if MASKED:
        product = _visible(product, begin, place, first, last)
    odds = _closed_odds(product, scale, bias, slope)
    weight = tl.exp2(product * (scale * LOG2E) - lse[:, None])
    if NOISY:
        uniform = _uniform(word, other, begin, place)
        less = odds - uniform * odds
        either, all_ = uniform + less, 1 + odds
        inverse = _inverse(all_ * either)
        prob, soft = inverse * either, uniform * (inverse * all_)
        is_open = _as_number(less < uniform)
        through = is_open + slope * (soft - soft * soft)
    else:
        prob = _inverse(1 + odds)
        is_open = _as_number(product * scale + bias > 0)
        through = is_open
    d_weight = tl.dot(d_output, tl.trans(value), input_precision=PRECISION)
    d_score = weight * (through * d_weight - inner[:, None]) + d_expected * slope * (odds * prob * prob)
    if HAS_CAP:
        d_score *= steepness
    return d_score, weight * is_open


@triton.jit
@no_type_check
def _d_query_of(
    begin, K, V, k_row, v_row, query, d_output, lse, inner, d_expected, first, last, word, other,
    scale, bias, slope, softcap, n_keys,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    NOISY: tl.constexpr, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The contribution of one tile of keys to the gradient of a block of queries."""
    number = begin + tl.arange(0, COLUMNS)
    column = tl.arange(0, WIDTH)
    key = _rows(K, number, k_row, column, n_keys, HEAD, MASKED)
    value = _rows(V, number, v_row, column, n_keys, HEAD, MASKED)
    d_score, _ = _gradient(
        query, key, value, d_output, lse, inner, d_expected, first, last, word, other, begin,
        scale, bias, slope, softcap, COLUMNS, NOISY, HAS_CAP, PRECISION, MASKED,
    )  # fmt: skip
    return tl.dot(d_score.to(key.dtype), key, input_precision=PRECISION)


@triton.jit
@no_type_check
def backward_queries(
    Q, K, V, FIRST, LAST, WORDS, D_OUT, LSE, INNER, D_EXPECTED, OUT, D_Q,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, o_batch, o_head, o_row, span_batch,
    scale, bias, slope, softcap, n_queries, n_keys, n_words,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    NOISY: tl.constexpr, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of one block of queries of one head, and INNER for `backward_keys`.

    OUT is laid out (batch, query, head, HEAD), D_Q (batch, head, query, HEAD).
    """
    batch = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS
    block = tl.num_programs(1) - 1 - tl.program_id(1)  # later queries mostly see more keys: start with the longest work
    row = block * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    here = row < n_queries
    known = tl.minimum(row, n_queries - 1)
    place = tl.program_id(0).to(tl.int64) * n_queries + known
    first = tl.load(FIRST + batch * span_batch + known)
    last = tl.load(LAST + batch * span_batch + known)
    query = _rows(Q + batch * q_batch + head * q_head, row, q_row, column, n_queries, HEAD, True)
    d_output = _rows(D_OUT + batch * o_batch + head * o_head, row, o_row, column, n_queries, HEAD, True)
    output = _rows(OUT + (batch * n_queries * HEADS + head) * HEAD, row, HEADS * HEAD, column, n_queries, HEAD, True)
    inner = tl.sum(d_output.to(tl.float32) * output.to(tl.float32), 1)
    tl.store(INNER + place, inner, mask=here)
    K += batch * k_batch + head // GROUP * k_head
    V += batch * v_batch + head // GROUP * v_head
    lse = tl.load(LSE + place)
    d_expected = tl.load(D_EXPECTED + tl.program_id(0))
    word = tl.zeros([ROWS], tl.uint32)
    other = word
    if NOISY:
        word = tl.load(WORDS + place).to(tl.uint32, bitcast=True)
        other = tl.load(WORDS + n_words + place).to(tl.uint32, bitcast=True)
    d_query = tl.zeros([ROWS, WIDTH], tl.float32)
    start, end, whole, whole_end = _ranges(first, last, n_keys, COLUMNS)
    for begin in range(whole, whole_end, COLUMNS):
        d_query += _d_query_of(
            begin, K, V, k_row, v_row, query, d_output, lse, inner, d_expected, first, last, word, other,
            scale, bias, slope, softcap, n_keys, HEAD, WIDTH, COLUMNS, NOISY, HAS_CAP, PRECISION, MASKED=False,
        )  # fmt: skip
    for left in range(start, end - (whole_end - whole), COLUMNS):
        begin = left + tl.where(left < whole, 0, whole_end - whole)
        d_query += _d_query_of(
            begin, K, V, k_row, v_row, query, d_output, lse, inner, d_expected, first, last, word, other,
            scale, bias, slope, softcap, n_keys, HEAD, WIDTH, COLUMNS, NOISY, HAS_CAP, PRECISION, MASKED=True,
        )  # fmt: skip
    inside = here[:, None] & (column < HEAD)[None, :]
    tl.store(D_Q + place[:, None] * HEAD + column[None, :], (d_query * scale).to(D_Q.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _d_keys_of(
    begin, Q, D_OUT, FIRST, LAST, WORDS, LSE, INNER, q_row, o_row, key, value, d_expected, block, d_key, d_value,
    scale, bias, slope, softcap, n_queries, n_words,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    NOISY: tl.constexpr, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds one tile of queries to the gradients of a block of keys and values."""
    row = begin + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    query = _rows(Q, row, q_row, column, n_queries, HEAD, MASKED)
    d_output = _rows(D_OUT, row, o_row, column, n_queries, HEAD, MASKED)  # 0 beyond the end, so it adds nothing
    known = row
    first = row
    last = row
    if MASKED:
        known = tl.minimum(row, n_queries - 1)
        first = tl.load(FIRST + known)
        last = tl.load(LAST + known)
    lse = tl.load(LSE + known)
    inner = tl.load(INNER + known)
    word = tl.zeros([ROWS], tl.uint32)
    other = word
    if NOISY:
        word = tl.load(WORDS + known).to(tl.uint32, bitcast=True)
        other = tl.load(WORDS + n_words + known).to(tl.uint32, bitcast=True)
    d_score, weight = _gradient(
        query, key, value, d_output, lse, inner, d_expected, first, last, word, other, block,
        scale, bias, slope, softcap, COLUMNS, NOISY, HAS_CAP, PRECISION, MASKED,
    )  # fmt: skip
    d_value += tl.dot(tl.trans(weight.to(d_output.dtype)), d_output, input_precision=PRECISION)
    d_key += tl.dot(tl.trans(d_score.to(query.dtype)), query, input_precision=PRECISION)
    return d_key, d_value


@triton.jit
@no_type_check
def backward_keys(
    Q, K, V, FIRST, LAST, WORDS, D_OUT, LSE, INNER, D_EXPECTED, SEEING, D_K, D_V,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, o_batch, o_head, o_row, span_batch,
    scale, bias, slope, softcap, n_queries, n_keys, n_words,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, MEMBERS: tl.constexpr,
    NOISY: tl.constexpr, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of one block of keys and values, summed over MEMBERS heads of the GROUP that shares them.

    SEEING (span batch, block of keys, 4): which queries see the block. D_K, D_V: (batch, HEADS / MEMBERS, key, HEAD).
    """
    PARTS: tl.constexpr = HEADS // MEMBERS
    batch = (tl.program_id(0) // PARTS).to(tl.int64)
    first_head = tl.program_id(0) % PARTS * MEMBERS
    kv_head = first_head // GROUP
    block = tl.program_id(1) * COLUMNS
    number = block + tl.arange(0, COLUMNS)
    column = tl.arange(0, WIDTH)
    key = _rows(K + batch * k_batch + kv_head * k_head, number, k_row, column, n_keys, HEAD, True)
    value = _rows(V + batch * v_batch + kv_head * v_head, number, v_row, column, n_keys, HEAD, True)
    SEEING += 4 * (tl.where(span_batch > 0, batch, 0) * tl.num_programs(1) + tl.program_id(1))
    start = tl.load(SEEING) // ROWS * ROWS
    end = tl.load(SEEING + 1)
    whole = (tl.load(SEEING + 2) + ROWS - 1) // ROWS * ROWS
    whole_end = tl.maximum(tl.load(SEEING + 3) // ROWS * ROWS, whole)
    FIRST += batch * span_batch
    LAST += batch * span_batch
    d_key = tl.zeros([COLUMNS, WIDTH], tl.float32)
    d_value = tl.zeros([COLUMNS, WIDTH], tl.float32)
    for head in range(first_head, first_head + MEMBERS):
        d_expected = tl.load(D_EXPECTED + batch * HEADS + head)
        queries = Q + batch * q_batch + head * q_head
        d_outputs = D_OUT + batch * o_batch + head * o_head
        place = (batch * HEADS + head) * n_queries
        for begin in range(whole, whole_end, ROWS):
            d_key, d_value = _d_keys_of(
                begin, queries, d_outputs, FIRST, LAST, WORDS + place, LSE + place, INNER + place, q_row, o_row,
                key, value, d_expected, block, d_key, d_value, scale, bias, slope, softcap, n_queries, n_words,
                HEAD, WIDTH, ROWS, COLUMNS, NOISY, HAS_CAP, PRECISION, MASKED=False,
            )  # fmt: skip
        for left in range(start, end - (whole_end - whole), ROWS):
            begin = left + tl.where(left < whole, 0, whole_end - whole)
            d_key, d_value = _d_keys_of(
                begin, queries, d_outputs, FIRST, LAST, WORDS + place, LSE + place, INNER + place, q_row, o_row,
                key, value, d_expected, block, d_key, d_value, scale, bias, slope, softcap, n_queries, n_words,
                HEAD, WIDTH, ROWS, COLUMNS, NOISY, HAS_CAP, PRECISION, MASKED=True,
            )  # fmt: skip
    inside = (number < n_keys)[:, None] & (column < HEAD)[None, :]
    place = tl.program_id(0).to(tl.int64) * n_keys + number
    tl.store(D_K + place[:, None] * HEAD + column[None, :], (d_key * scale).to(D_K.dtype.element_ty), mask=inside)
    tl.store(D_V + place[:, None] * HEAD + column[None, :], d_value.to(D_V.dtype.element_ty), mask=inside)
