"""The fused kernel of gated attention: one pass over the keys forward, two backward, no atomics.

forward    the running maximum m and denominator l are those of all visible scores, the output is that of open edges:
           out_i = sum_j open_ij exp(s_ij - m_i) v_j / l_i;  kept for the backward pass: lse_i = m_i + log l_i
backward   with p = exp(s - lse), z = gate_logit / t, soft = sigmoid(z + noise), g_ij = dOut_i v_j, o_i = dOut_i out_i
           ds_ij = p_ij ((soft (1 - soft) / t + open_ij) g_ij - o_i) + dExpected sigmoid'(z_ij) / t
           dq_i = scale sum_j ds_ij k_j;  dk_j = scale sum_i ds_ij q_i;  dv_j = sum_i p_ij open_ij dOut_i
Noise is made where it is needed, of two words per row (`noise.uniform_at`), the same in all three kernels.
An edge is open under the noise where sigmoid(z) > 1 - u: no logarithm. Capitals are pointers and constants, as is
Triton's custom.
"""

# pyright: basic
# Triton's language has no types that a checker knows.

from typing import no_type_check  # of functions that are source for a compiler, not Python that runs

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _uniform(word, other, key):
    """As `noise.uniform_at`, in 32 bits."""
    bits = word[:, None] ^ key.to(tl.uint32)[None, :]
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = bits ^ other[:, None]
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    bits = bits ^ (bits >> 16)
    return ((bits >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2**-23


@triton.jit
@no_type_check
def _sigmoid(x):
    return 1 / (1 + tl.exp(-tl.minimum(tl.maximum(x, -80.0), 80.0)))  # beyond, float32 says 0 and 1


@triton.jit
@no_type_check
def _scores(query, key, scale, softcap, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr):
    score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    if HAS_CAP:
        score = softcap * (2 * _sigmoid(2 * score / softcap) - 1)  # tanh
    return score


@triton.jit
@no_type_check
def _is_open(score, prob, uniform, visible, bias, NOISY: tl.constexpr):
    wanted = score + bias > 0
    if NOISY:
        wanted = prob > 1 - uniform
    return visible & wanted


@triton.jit
@no_type_check
def _rows(pointer, row, stride, column, n_rows, HEAD: tl.constexpr):
    """A tile of rows as long as a head; zeros beyond its ends."""
    inside = (row < n_rows)[:, None] & (column < HEAD)[None, :]
    return tl.load(pointer + row.to(tl.int64)[:, None] * stride + column[None, :], mask=inside, other=0.0)


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
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = tl.program_id(1) % HEADS
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    here = row < n_queries
    first = tl.load(FIRST + batch * span_batch + row, mask=here, other=0)
    last = tl.load(LAST + batch * span_batch + row, mask=here, other=0)
    query = _rows(Q + batch * q_batch + head * q_head, row, q_row, column, n_queries, HEAD)
    place = tl.program_id(1).to(tl.int64) * n_queries + row  # of what is kept per query
    if NOISY:
        word = tl.load(WORDS + place, mask=here, other=0).to(tl.uint32, bitcast=True)
        other = tl.load(WORDS + n_words + place, mask=here, other=0).to(tl.uint32, bitcast=True)
    if HAS_SINKS:
        sink = tl.load(SINKS + head).to(tl.float32)
        top = tl.zeros([ROWS], tl.float32) + sink
        total = tl.zeros([ROWS], tl.float32) + 1
    else:
        top = tl.zeros([ROWS], tl.float32) - float("inf")
        total = tl.zeros([ROWS], tl.float32)
    output = tl.zeros([ROWS, WIDTH], tl.float32)
    expected = tl.zeros([ROWS], tl.float32)
    opened = tl.zeros([ROWS], tl.float32)

    start = tl.min(tl.where(first < last, first, n_keys)) // COLUMNS * COLUMNS
    for begin in range(start, tl.max(last), COLUMNS):
        number = begin + tl.arange(0, COLUMNS)
        key = _rows(K + batch * k_batch + head // GROUP * k_head, number, k_row, column, n_keys, HEAD)
        value = _rows(V + batch * v_batch + head // GROUP * v_head, number, v_row, column, n_keys, HEAD)
        score = _scores(query, key, scale, softcap, HAS_CAP, PRECISION)
        visible = (number[None, :] >= first[:, None]) & (number[None, :] < last[:, None])
        prob = tl.where(visible, _sigmoid((score + bias) * slope), 0.0)
        uniform = prob
        if NOISY:
            uniform = _uniform(word, other, number)
        is_open = _is_open(score, prob, uniform, visible, bias, NOISY)
        expected += tl.sum(prob, 1)
        opened += tl.sum(is_open.to(tl.float32), 1)

        score = tl.where(visible, score, -float("inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        base = tl.where(higher == -float("inf"), 0.0, higher)  # a query that has seen no key yet
        weight = tl.exp(score - base[:, None])
        shrink = tl.exp(top - base)
        total = total * shrink + tl.sum(weight, 1)
        weight = tl.where(is_open, weight, 0.0).to(value.dtype)
        output = output * shrink[:, None] + tl.dot(weight, value, input_precision=PRECISION)
        top = higher

    seen = total > 0
    output = output / tl.where(seen, total, 1.0)[:, None]
    lse = tl.where(seen, top + tl.log(tl.where(seen, total, 1.0)), float("inf"))
    inside = here[:, None] & (column < HEAD)[None, :]
    at = OUT + batch * o_batch + head * o_head + row.to(tl.int64)[:, None] * o_row + column[None, :]
    tl.store(at, output.to(OUT.dtype.element_ty), mask=inside)
    tl.store(LSE + place, lse, mask=here)
    tl.store(EXPECTED + place, expected, mask=here)
    tl.store(OPENED + place, opened, mask=here)


@triton.jit
@no_type_check
def _gradient(
    query, key, value, d_output, lse, inner, d_expected, first, last, word, other, number,
    scale, bias, slope, softcap, NOISY: tl.constexpr, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of one tile: the gradient of q . k (but for the scale), and the weights of the open edges."""
    score = _scores(query, key, scale, softcap, HAS_CAP, PRECISION)
    visible = (number[None, :] >= first[:, None]) & (number[None, :] < last[:, None])
    weight = tl.exp(tl.where(visible, score - lse[:, None], -float("inf")))
    prob = tl.where(visible, _sigmoid((score + bias) * slope), 0.0)
    uniform = prob
    if NOISY:
        uniform = _uniform(word, other, number)
    is_open = _is_open(score, prob, uniform, visible, bias, NOISY)
    through = is_open.to(tl.float32)
    if NOISY:
        yes = uniform * prob
        soft = yes / (yes + (1 - uniform) * (1 - prob))
        through += soft * (1 - soft) * slope
    d_weight = tl.dot(d_output, tl.trans(value), input_precision=PRECISION)
    d_score = weight * (through * d_weight - inner[:, None])
    d_score += d_expected * slope * prob * (1 - prob)
    if HAS_CAP:
        d_score *= 1 - (score / softcap) * (score / softcap)
    return d_score, tl.where(is_open, weight, 0.0)


@triton.jit
@no_type_check
def backward_queries(
    Q, K, V, FIRST, LAST, WORDS, D_OUT, LSE, INNER, D_EXPECTED, D_Q,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, o_batch, o_head, o_row, span_batch,
    scale, bias, slope, softcap, n_queries, n_keys, n_words,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    NOISY: tl.constexpr, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of one block of queries of one head. D_Q is laid out (batch, head, query, HEAD)."""
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = tl.program_id(1) % HEADS
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    here = row < n_queries
    first = tl.load(FIRST + batch * span_batch + row, mask=here, other=0)
    last = tl.load(LAST + batch * span_batch + row, mask=here, other=0)
    query = _rows(Q + batch * q_batch + head * q_head, row, q_row, column, n_queries, HEAD)
    d_output = _rows(D_OUT + batch * o_batch + head * o_head, row, o_row, column, n_queries, HEAD)
    place = tl.program_id(1).to(tl.int64) * n_queries + row
    lse = tl.load(LSE + place, mask=here, other=float("inf"))
    inner = tl.load(INNER + place, mask=here, other=0.0)
    d_expected = tl.load(D_EXPECTED + tl.program_id(1))
    word = tl.zeros([ROWS], tl.uint32)
    other = word
    if NOISY:
        word = tl.load(WORDS + place, mask=here, other=0).to(tl.uint32, bitcast=True)
        other = tl.load(WORDS + n_words + place, mask=here, other=0).to(tl.uint32, bitcast=True)
    d_query = tl.zeros([ROWS, WIDTH], tl.float32)
    start = tl.min(tl.where(first < last, first, n_keys)) // COLUMNS * COLUMNS
    for begin in range(start, tl.max(last), COLUMNS):
        number = begin + tl.arange(0, COLUMNS)
        key = _rows(K + batch * k_batch + head // GROUP * k_head, number, k_row, column, n_keys, HEAD)
        value = _rows(V + batch * v_batch + head // GROUP * v_head, number, v_row, column, n_keys, HEAD)
        d_score, _ = _gradient(
            query, key, value, d_output, lse, inner, d_expected, first, last, word, other, number,
            scale, bias, slope, softcap, NOISY, HAS_CAP, PRECISION,
        )  # fmt: skip
        d_query += tl.dot(d_score.to(key.dtype), key, input_precision=PRECISION)
    inside = here[:, None] & (column < HEAD)[None, :]
    tl.store(D_Q + place[:, None] * HEAD + column[None, :], (d_query * scale).to(D_Q.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def backward_keys(
    Q, K, V, FIRST, LAST, WORDS, D_OUT, LSE, INNER, D_EXPECTED, BEGIN, END, D_K, D_V,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, o_batch, o_head, o_row, span_batch,
    scale, bias, slope, softcap, n_queries, n_keys, n_words,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    NOISY: tl.constexpr, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of one block of keys and values: over the heads that share them, and the queries that see them.

    BEGIN and END (span batch, block of keys) say which queries those are. D_K, D_V: (batch, kv_head, key, HEAD).
    """
    KV_HEADS: tl.constexpr = HEADS // GROUP
    batch = (tl.program_id(1) // KV_HEADS).to(tl.int64)
    kv_head = tl.program_id(1) % KV_HEADS
    number = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    column = tl.arange(0, WIDTH)
    key = _rows(K + batch * k_batch + kv_head * k_head, number, k_row, column, n_keys, HEAD)
    value = _rows(V + batch * v_batch + kv_head * v_head, number, v_row, column, n_keys, HEAD)
    span = tl.where(span_batch > 0, batch, 0) * tl.num_programs(0) + tl.program_id(0)
    start = tl.load(BEGIN + span) // ROWS * ROWS
    end = tl.load(END + span)
    d_key = tl.zeros([COLUMNS, WIDTH], tl.float32)
    d_value = tl.zeros([COLUMNS, WIDTH], tl.float32)
    for member in range(GROUP):
        head = kv_head * GROUP + member
        d_expected = tl.load(D_EXPECTED + batch * HEADS + head)
        for begin in range(start, end, ROWS):
            row = begin + tl.arange(0, ROWS)
            here = row < n_queries
            first = tl.load(FIRST + batch * span_batch + row, mask=here, other=0)
            last = tl.load(LAST + batch * span_batch + row, mask=here, other=0)
            query = _rows(Q + batch * q_batch + head * q_head, row, q_row, column, n_queries, HEAD)
            d_output = _rows(D_OUT + batch * o_batch + head * o_head, row, o_row, column, n_queries, HEAD)
            place = (batch * HEADS + head) * n_queries + row
            lse = tl.load(LSE + place, mask=here, other=float("inf"))
            inner = tl.load(INNER + place, mask=here, other=0.0)
            word = tl.zeros([ROWS], tl.uint32)
            other = word
            if NOISY:
                word = tl.load(WORDS + place, mask=here, other=0).to(tl.uint32, bitcast=True)
                other = tl.load(WORDS + n_words + place, mask=here, other=0).to(tl.uint32, bitcast=True)
            d_score, weight = _gradient(
                query, key, value, d_output, lse, inner, d_expected, first, last, word, other, number,
                scale, bias, slope, softcap, NOISY, HAS_CAP, PRECISION,
            )  # fmt: skip
            d_value += tl.dot(tl.trans(weight).to(d_output.dtype), d_output, input_precision=PRECISION)
            d_key += tl.dot(tl.trans(d_score).to(query.dtype), query, input_precision=PRECISION)
    inside = (number < n_keys)[:, None] & (column < HEAD)[None, :]
    place = tl.program_id(1).to(tl.int64) * n_keys + number
    tl.store(D_K + place[:, None] * HEAD + column[None, :], (d_key * scale).to(D_K.dtype.element_ty), mask=inside)
    tl.store(D_V + place[:, None] * HEAD + column[None, :], d_value.to(D_V.dtype.element_ty), mask=inside)
