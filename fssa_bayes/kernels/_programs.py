r"""The programs of :mod:`fssa_bayes.kernels.triton`, in Triton's language.

Axes of a tile are named by its first letters: s draws, n comparisons, h hidden units or factors, m
items. A program works on one user and reads the user's comparisons up to the last: padding costs
nothing. No sum is made by atomics, so that two runs give the same bits.

A position outside the table makes a margin NaN, and nothing is read there. Minima and maxima keep
NaN, which is not their default, and inequalities are written so that NaN counts as active.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "add_bias",
    "bilinear_backward",
    "bilinear_forward",
    "bilinear_margin",
    "btl_log_prob",
    "btl_slope",
    "exp_minus_abs",
    "gather_backward",
    "gather_forward",
    "load_difference",
    "load_length",
    "load_pairs",
    "load_units",
    "log1p_series",
    "mlp_backward",
    "mlp_forward",
    "segment_sum",
    "store_tile",
]

_KEEP_NAN = tl.constexpr(tl.PropagateNan.ALL)
_LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def exp_minus_abs(margin):
    r"""Evaluates exp(−\|m\|) to two units in the last place."""
    size = tl.abs(margin)
    if margin.dtype == tl.float64:
        decay = tl.exp(-size)
    else:
        # The GPU's exp rounds size·log2(e), which loses as many units as size. Whole powers of two
        # are taken out first, with log(2) in two parts of which the first has nine bits.
        size = tl.minimum(size, 1000.0, propagate_nan=_KEEP_NAN)
        whole = tl.floor(size * 1.4426950408889634 + 0.5)
        rest = (size - whole * 0.693359375) + whole * 2.1219444005469057e-4
        decay = tl.exp2(-whole) * tl.exp(-rest)
    return decay


@triton.jit
def log1p_series(decay):
    """Evaluates log(1 + e) = 2 artanh(e / (2 + e)) for e from 0 to 1, by artanh's series."""
    terms: tl.constexpr = 16 if decay.dtype == tl.float64 else 7
    ratio = decay / (decay + 2.0)
    square = ratio * ratio
    series = square * (1.0 / (2 * terms + 1)) + 1.0 / (2 * terms - 1)
    for k in tl.static_range(1, terms):
        series = series * square + 1.0 / (2 * (terms - k) - 1)
    return 2.0 * ratio * series


@triton.jit
def btl_log_prob(margin, decay, choice):
    """Evaluates y·min(m, 0) − (1 − y)·max(m, 0) − log(1 + exp(−|m|)), where nothing cancels."""
    certain = choice * tl.minimum(margin, 0.0) - (1.0 - choice) * tl.maximum(margin, 0.0)
    return certain - log1p_series(decay)


@triton.jit
def btl_slope(margin, decay, choice):
    """Evaluates y·σ(−m) − (1 − y)·σ(m), the derivative of the log-probability."""
    large = 1.0 / (1.0 + decay)
    small = decay * large
    left = tl.where(margin < 0.0, small, large)
    right = tl.where(margin < 0.0, large, small)
    return choice * right - (1.0 - choice) * left


@triton.jit
def load_length(lengths, user, comparisons):
    """Looks up the number of comparisons up to a user's last."""
    return tl.load(lengths + user) if lengths is not None else comparisons


@triton.jit
def load_pairs(left, right, mask, row, n, end, items):
    """Looks up both positions; returns where there are comparisons, and whose items exist."""
    known = n < end
    if mask is not None:
        known = known & (tl.load(mask + row + n, mask=known, other=0) != 0)
    first = tl.load(left + row + n, mask=known, other=0)
    second = tl.load(right + row + n, mask=known, other=0)
    valid = known & (first >= 0) & (first < items) & (second >= 0) & (second < items)
    return first, second, known, valid


@triton.jit
def add_bias(margin, bias, valid):
    """Adds the position bias; a margin of an item outside the table is NaN."""
    if bias is not None:
        margin = margin + tl.load(bias)
    return tl.where(valid, margin, float("nan"))


@triton.jit
def store_tile(margin, choice, here, at, out, residual, form: tl.constexpr):
    """Stores a tile of margins, log-probabilities or their derivatives; returns it, 0 if masked."""
    value = margin
    if form != "margin":
        decay = exp_minus_abs(margin)
        if residual is not None:
            tl.store(residual + at, btl_slope(margin, decay, choice), mask=here)
        if form != "residual":
            value = btl_log_prob(margin, decay, choice)
    if form == "margin" or form == "each":
        tl.store(out + at, value, mask=here)
    return tl.where(here, value, 0.0)


@triton.jit
def gather_forward(
    utility,
    left,
    right,
    choice,
    mask,
    lengths,
    bias,
    out,
    residual,
    draws,
    users,
    comparisons,
    items,
    utility_s,
    utility_u,
    form: tl.constexpr,
    tile_s: tl.constexpr,
    tile_n: tl.constexpr,
):
    blocks = tl.cdiv(draws, tile_s)
    user = (tl.program_id(0) // blocks).to(tl.int64)
    s = (tl.program_id(0) % blocks) * tile_s + tl.arange(0, tile_s)
    row, drawn = user * comparisons, (s < draws)[:, None]
    end = load_length(lengths, user, comparisons)
    table = utility + user * utility_u + s.to(tl.int64)[:, None] * utility_s
    total = tl.zeros([tile_s], dtype=utility.dtype.element_ty)
    for start in range(0, end, tile_n):
        n = start + tl.arange(0, tile_n)
        first, second, known, valid = load_pairs(left, right, mask, row, n, end, items)
        inside = drawn & valid[None, :]
        margin = tl.load(table + first[None, :], mask=inside, other=0.0)
        margin -= tl.load(table + second[None, :], mask=inside, other=0.0)
        margin = add_bias(margin, bias, valid[None, :])
        y = margin
        if choice is not None:
            y = tl.load(choice + row + n, mask=known, other=0.0)[None, :]
        at = (row + n)[None, :] * draws + s[:, None]
        value = store_tile(margin, y, drawn & known[None, :], at, out, residual, form)
        total += tl.sum(value, 1)
    if form == "sum":
        tl.store(out + s.to(tl.int64) * users + user, total, mask=s < draws)


@triton.jit
def gather_backward(
    utility,
    grad,
    left,
    right,
    choice,
    mask,
    lengths,
    bias,
    grad_utility,
    grad_bias,
    draws,
    users,
    comparisons,
    items,
    columns,
    utility_s,
    utility_u,
    grad_s,
    grad_u,
    grad_n,
    form: tl.constexpr,
    tile_s: tl.constexpr,
    tile_n: tl.constexpr,
    tile_m: tl.constexpr,
):
    blocks = tl.cdiv(draws, tile_s)
    column, rest = tl.program_id(0) % columns, tl.program_id(0) // columns
    user = (rest // blocks).to(tl.int64)
    s = (rest % blocks) * tile_s + tl.arange(0, tile_s)
    row, drawn = user * comparisons, (s < draws)[:, None]
    end = load_length(lengths, user, comparisons)
    m = column * tile_m + tl.arange(0, tile_m)
    table = utility + user * utility_u + s.to(tl.int64)[:, None] * utility_s
    given = grad + user * grad_u + s.to(tl.int64)[:, None] * grad_s
    total = tl.zeros([tile_s, tile_m], dtype=utility.dtype.element_ty)
    of_bias = tl.zeros([tile_s], dtype=utility.dtype.element_ty)
    for start in range(0, end, tile_n):
        n = start + tl.arange(0, tile_n)
        first, second, known, valid = load_pairs(left, right, mask, row, n, end, items)
        here = drawn & known[None, :]
        g = tl.load(given + n.to(tl.int64)[None, :] * grad_n, mask=here, other=0.0)
        if form != "margin":
            inside = drawn & valid[None, :]
            margin = tl.load(table + first[None, :], mask=inside, other=0.0)
            margin -= tl.load(table + second[None, :], mask=inside, other=0.0)
            margin = add_bias(margin, bias, valid[None, :])
            y = tl.load(choice + row + n, mask=known, other=0.0)[None, :]
            g = tl.where(here, g * btl_slope(margin, exp_minus_abs(margin), y), 0.0)
        of_bias += tl.sum(g, 1)
        first, second = tl.where(valid, first, -1), tl.where(valid, second, -1)
        plus = (first[:, None] == m[None, :]).to(g.dtype)
        minus = (second[:, None] == m[None, :]).to(g.dtype)
        total += tl.dot(g, plus - minus, input_precision="ieee", out_dtype=g.dtype)
    if grad_utility is not None:
        at = (s.to(tl.int64) * users + user)[:, None] * items + m[None, :]
        tl.store(grad_utility + at, total, mask=drawn & (m < items)[None, :])
    if grad_bias is not None:
        tl.store(grad_bias + rest, tl.sum(of_bias, 0), mask=column == 0)


@triton.jit
def load_difference(item, first, second, valid, k, factors, item_m):
    """Looks up φ(left) − φ(right) as a tile (n, k), 0 for padding."""
    inside = valid[:, None] & (k < factors)[None, :]
    column = item + k[None, :]
    value = tl.load(column + first[:, None] * item_m, mask=inside, other=0.0)
    return value - tl.load(column + second[:, None] * item_m, mask=inside, other=0.0)


@triton.jit
def bilinear_margin(
    item, table, first, second, valid, drawn, factors, item_m, tile_k: tl.constexpr
):
    """Multiplies user factors at `table` (s, 1) by differences of item factors, to (s, n)."""
    margin = tl.zeros([table.shape[0], first.shape[0]], dtype=item.dtype.element_ty)
    for start in range(0, factors, tile_k):
        k = start + tl.arange(0, tile_k)
        inside = drawn & (k < factors)[None, :]
        user = tl.load(table + k[None, :], mask=inside, other=0.0)
        difference = load_difference(item, first, second, valid, k, factors, item_m)
        margin += tl.dot(user, tl.trans(difference), input_precision="ieee", out_dtype=margin.dtype)
    return margin


@triton.jit
def bilinear_forward(
    item,
    user_factors,
    left,
    right,
    choice,
    mask,
    lengths,
    bias,
    out,
    draws,
    users,
    comparisons,
    items,
    factors,
    item_m,
    user_s,
    user_u,
    form: tl.constexpr,
    tile_s: tl.constexpr,
    tile_n: tl.constexpr,
    tile_k: tl.constexpr,
):
    blocks = tl.cdiv(draws, tile_s)
    user = (tl.program_id(0) // blocks).to(tl.int64)
    s = (tl.program_id(0) % blocks) * tile_s + tl.arange(0, tile_s)
    row, drawn = user * comparisons, (s < draws)[:, None]
    end = load_length(lengths, user, comparisons)
    table = user_factors + user * user_u + s.to(tl.int64)[:, None] * user_s
    total = tl.zeros([tile_s], dtype=item.dtype.element_ty)
    for start in range(0, end, tile_n):
        n = start + tl.arange(0, tile_n)
        first, second, known, valid = load_pairs(left, right, mask, row, n, end, items)
        margin = bilinear_margin(item, table, first, second, valid, drawn, factors, item_m, tile_k)
        margin = add_bias(margin, bias, valid[None, :])
        y = margin
        if choice is not None:
            y = tl.load(choice + row + n, mask=known, other=0.0)[None, :]
        at = (row + n)[None, :] * draws + s[:, None]
        value = store_tile(margin, y, drawn & known[None, :], at, out, None, form)
        total += tl.sum(value, 1)
    if form == "sum":
        tl.store(out + s.to(tl.int64) * users + user, total, mask=s < draws)


@triton.jit
def bilinear_backward(
    item,
    user_factors,
    grad,
    left,
    right,
    choice,
    mask,
    lengths,
    bias,
    grad_user,
    rows,
    grad_bias,
    draws,
    users,
    comparisons,
    items,
    factors,
    item_m,
    user_s,
    user_u,
    grad_s,
    grad_u,
    grad_n,
    first_user,
    form: tl.constexpr,
    tile_s: tl.constexpr,
    tile_n: tl.constexpr,
    tile_k: tl.constexpr,
):
    columns = tl.maximum(tl.cdiv(factors, tile_k), 1)
    column, local = tl.program_id(0) % columns, (tl.program_id(0) // columns).to(tl.int64)
    user = local + first_user
    row = user * comparisons
    end = load_length(lengths, user, comparisons)
    k = column * tile_k + tl.arange(0, tile_k)
    of_bias = tl.zeros([tile_s], dtype=item.dtype.element_ty)
    for start_s in range(0, draws, tile_s):
        s = start_s + tl.arange(0, tile_s)
        drawn, draw = (s < draws)[:, None], s.to(tl.int64)[:, None]
        table = user_factors + user * user_u + draw * user_s
        given = grad + user * grad_u + draw * grad_s
        inside = drawn & (k < factors)[None, :]
        own = tl.load(table + k[None, :], mask=inside, other=0.0)
        of_user = tl.zeros([tile_s, tile_k], dtype=item.dtype.element_ty)
        for start in range(0, end, tile_n):
            n = start + tl.arange(0, tile_n)
            first, second, known, valid = load_pairs(left, right, mask, row, n, end, items)
            here = drawn & known[None, :]
            g = tl.load(given + n.to(tl.int64)[None, :] * grad_n, mask=here, other=0.0)
            if form != "margin":
                margin = bilinear_margin(
                    item, table, first, second, valid, drawn, factors, item_m, tile_k
                )
                margin = add_bias(margin, bias, valid[None, :])
                y = tl.load(choice + row + n, mask=known, other=0.0)[None, :]
                g = tl.where(here, g * btl_slope(margin, exp_minus_abs(margin), y), 0.0)
            of_bias += tl.sum(g, 1)
            if grad_user is not None:
                difference = load_difference(item, first, second, valid, k, factors, item_m)
                of_user += tl.dot(g, difference, input_precision="ieee", out_dtype=g.dtype)
            if rows is not None:
                at = (local * comparisons + n)[:, None] * factors + k[None, :]
                filled = known[:, None] & (k < factors)[None, :]
                part = tl.dot(tl.trans(g), own, input_precision="ieee", out_dtype=g.dtype)
                again = known[:, None] & (k < tl.where(start_s > 0, factors, 0))[None, :]
                part += tl.load(rows + at, mask=again, other=0.0)
                tl.store(rows + at, part, mask=filled)
        if grad_user is not None:
            at = (draw * users + user) * factors + k[None, :]
            tl.store(grad_user + at, of_user, mask=inside)
        tl.debug_barrier()  # The next draws add to rows that other threads have stored.
    if grad_bias is not None:
        tl.store(grad_bias + user, tl.sum(of_bias, 0), mask=column == 0)


@triton.jit
def load_units(pointer, h, width, even: tl.constexpr):
    """Looks up hidden units, 0 beyond the width; nothing is beyond if tiles divide it evenly."""
    return tl.load(pointer + h) if even else tl.load(pointer + h, mask=h < width, other=0.0)


@triton.jit
def mlp_forward(
    item,
    user_hidden,
    weight,
    left,
    right,
    choice,
    mask,
    lengths,
    bias,
    out,
    residual,
    draws,
    users,
    comparisons,
    items,
    width,
    item_m,
    user_s,
    user_u,
    form: tl.constexpr,
    even: tl.constexpr,
    tile_s: tl.constexpr,
    tile_n: tl.constexpr,
    tile_h: tl.constexpr,
):
    blocks = tl.cdiv(draws, tile_s)
    user = (tl.program_id(0) // blocks).to(tl.int64)
    s = ((tl.program_id(0) % blocks) * tile_s + tl.arange(0, tile_s))[None, :]
    row, drawn = user * comparisons, s < draws
    end = load_length(lengths, user, comparisons)
    # Comparisons come first, so that a thread holds all of a tile's and reads B once for them. The
    # last draw and item 0 are read in place of padding: a mask would cost every fourth cycle.
    drawing = tl.minimum(s, draws - 1).to(tl.int64)
    table = (user_hidden + user * user_u + drawing * user_s)[:, :, None]
    units = tl.arange(0, tile_h)[None, None, :]
    # B = ∞ is the difference of two infinities, which relu(A + B) = max(A, −B) + B would hide.
    spoilt = tl.zeros([1, tile_s, tile_h], dtype=item.dtype.element_ty)
    for start_h in range(0, width, tile_h):
        b = load_units(table, start_h + units, width, even)
        spoilt += tl.where(b == float("inf"), float("nan"), 0.0)
    spoil = tl.sum(spoilt, 2)
    total = tl.zeros([tile_s], dtype=item.dtype.element_ty)
    for start in range(0, end, tile_n):
        n = start + tl.arange(0, tile_n)
        first, second, known, valid = load_pairs(left, right, mask, row, n, end, items)
        first_row = (item + tl.where(valid, first, 0) * item_m)[:, None, None]
        second_row = (item + tl.where(valid, second, 0) * item_m)[:, None, None]
        sums = tl.zeros([tile_n, tile_s, tile_h], dtype=item.dtype.element_ty)
        for start_h in range(0, width, tile_h):
            h = start_h + units
            b = load_units(table, h, width, even)
            # Finite, so that B = −∞ is the difference of two zeros.
            threshold = tl.minimum(-b, _LARGEST, propagate_nan=_KEEP_NAN)
            a = load_units(first_row, h, width, even)
            high = tl.maximum(a, threshold, propagate_nan=_KEEP_NAN)
            a = load_units(second_row, h, width, even)
            high -= tl.maximum(a, threshold, propagate_nan=_KEEP_NAN)
            sums += load_units(weight, h, width, even) * high
        margin = add_bias(tl.sum(sums, 2) + spoil, bias, valid[:, None])
        y = margin
        if choice is not None:
            y = tl.load(choice + row + n, mask=known, other=0.0)[:, None]
        at = (row + n)[:, None] * draws + s
        value = store_tile(margin, y, drawn & known[:, None], at, out, residual, form)
        total += tl.sum(value, 0)
    if form == "sum":
        s = (tl.program_id(0) % blocks) * tile_s + tl.arange(0, tile_s)
        tl.store(out + s.to(tl.int64) * users + user, total, mask=s < draws)


@triton.jit
def mlp_backward(
    item,
    user_hidden,
    weight,
    slope,
    left,
    right,
    mask,
    lengths,
    grad_user,
    rows,
    grad_weight,
    draws,
    users,
    comparisons,
    items,
    width,
    item_m,
    user_s,
    user_u,
    first_user,
    side,
    tile_s: tl.constexpr,
    tile_h: tl.constexpr,
):
    columns = tl.cdiv(width, tile_h)
    local = (tl.program_id(0) // columns).to(tl.int64)
    user = local + first_user
    row = user * comparisons
    end = load_length(lengths, user, comparisons)
    h = (tl.program_id(0) % columns) * tile_h + tl.arange(0, tile_h)
    wide = h < width
    w = tl.load(weight + h, mask=wide, other=0.0)
    of_weight = tl.zeros([tile_h], dtype=item.dtype.element_ty)
    for start_s in range(0, draws, tile_s):
        s = start_s + tl.arange(0, tile_s)
        draw = s.to(tl.int64)[:, None]
        inside = (s < draws)[:, None] & wide[None, :]
        b = tl.load(
            user_hidden + user * user_u + draw * user_s + h[None, :],
            mask=inside,
            other=0.0,
        )
        of_user = tl.zeros([tile_s, tile_h], dtype=item.dtype.element_ty)
        for n in range(0, end):
            first, second, _known, valid = load_pairs(left, right, mask, row, n, n + 1, items)
            # An item outside the table is NaN; under the mask its gradient is 0.
            reach = tl.where(valid, width, 0)
            g = tl.load(slope + (row + n) * draws + s, mask=s < draws, other=0.0)[:, None]
            a = tl.load(item + first * item_m + h, mask=h < reach, other=float("nan"))
            # Written as the units that are not active, so that NaN is active.
            active = tl.where(a[None, :] <= -b, 0.0, g)
            left_part = tl.sum(active, 0)
            of_user += active
            of_weight += tl.where(left_part == 0.0, 0.0, a * left_part)
            a = tl.load(item + second * item_m + h, mask=h < reach, other=float("nan"))
            active = tl.where(a[None, :] <= -b, 0.0, g)
            right_part = tl.sum(active, 0)
            of_user -= active
            of_weight -= tl.where(right_part == 0.0, 0.0, a * right_part)
            if rows is not None:
                at = rows + (local * comparisons + n) * width + h
                again = h < tl.where(start_s > 0, width, 0)
                left_part = left_part * w + tl.load(at, mask=again, other=0.0)
                right_part = right_part * w + tl.load(at + side, mask=again, other=0.0)
                tl.store(at, left_part, mask=wide)
                tl.store(at + side, right_part, mask=wide)
        of_weight += tl.sum(tl.where(of_user == 0.0, 0.0, of_user * b), 0)
        if grad_user is not None:
            at = (draw * users + user) * width + h[None, :]
            tl.store(grad_user + at, of_user * w[None, :], mask=inside)
        tl.debug_barrier()  # The next draws add to rows that other threads have stored.
    if grad_weight is not None:
        tl.store(grad_weight + user * width + h, of_weight, mask=wide)


@triton.jit
def segment_sum(
    rows,
    order,
    starts,
    ends,
    out,
    num_rows,
    half,
    width,
    tile_e: tl.constexpr,
    tile_h: tl.constexpr,
):
    """Adds the rows of each segment to `out`; entries of `order` from `half` on count negative."""
    columns = tl.cdiv(width, tile_h)
    segment = (tl.program_id(0) // columns).to(tl.int64)
    h = (tl.program_id(0) % columns) * tile_h + tl.arange(0, tile_h)
    wide = h < width
    begin, end = tl.load(starts + segment), tl.load(ends + segment)
    total = tl.zeros([tile_h], dtype=rows.dtype.element_ty)
    for start in range(begin, end, tile_e):
        e = start + tl.arange(0, tile_e)
        entry = e
        if order is not None:
            entry = tl.load(order + e, mask=e < end, other=0)
        inside = (e < end)[:, None] & wide[None, :]
        at = (entry % num_rows)[:, None] * width + h[None, :]
        part = tl.load(rows + at, mask=inside, other=0.0)
        if order is not None:
            part = tl.where((entry < half)[:, None], part, -part)
        total += tl.sum(part, 0)
    if begin < end:  # Items of a large table may be in no comparison.
        at = out + segment * width + h
        tl.store(at, total + tl.load(at, mask=wide, other=0.0), mask=wide)
