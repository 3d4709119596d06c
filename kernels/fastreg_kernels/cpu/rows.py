"""Kernels for tables of which a few rows are touched: lazy lookup, sums of duplicate rows, lazy update in place."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastreg_kernels import _arrays
from fastreg_kernels.cpu.jit import inner, jit
from fastreg_kernels.cpu.launch import run, sharing
from fastreg_kernels.cpu.shrink import shrunk
from fastreg_kernels.cpu.vector import (
    LANES,
    as_if_of,
    in_order,
    load,
    load_first,
    load_part,
    ones,
    prefetch,
    store,
    store_first,
    store_part,
    total,
    where_above,
    widen,
    zeros,
)

_LINE_BYTES = 64
_AHEAD = 8
"""Rows that are asked for before they are needed."""


def lookup_rows(
    x: NDArray[Any],
    stamps: NDArray[np.float32],
    history: NDArray[np.float64],
    now: int,
    ids: NDArray[Any],
    out: NDArray[Any],
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Rows of `x` as they are after the shrinks since they were last written, and the ids without duplicates.

    Row i of `out` becomes `sign(x) * max(0, scale * |x| - threshold)` of row `ids[i]`; for scale, threshold and the
    arguments see `update_rows`. Nothing is written to `x` or `stamps`.

    Parameters
    ----------
    ids : ndarray of int32 or int64, shape (n,)
        From 0 to `count - 1`.
    out : ndarray, shape (n, width)
        Of the dtype of `x`, C-contiguous and apart from it.

    Returns
    -------
    unique : ndarray of the dtype of ids, shape (m,)
        Each id once, in the order of their first occurrence.
    positions : ndarray of int32, shape (n,)
        `unique[positions[i]] == ids[i]`.

    Raises
    ------
    TypeError, ValueError
        As for `sum_rows`.
    """
    flat, width = _rows(x, "x")
    where = _indices(ids, "ids", len(ids), len(x))
    marks = _stamps(stamps, history, now, where, len(x))
    _expect(out, "out", (len(ids), width), x.dtype)
    kind = np.empty(0, _arrays.arithmetic_dtype(x.dtype))  # tells the kernel the dtype of the arithmetic
    run(look_up, out.size, flat, marks, where, _arrays.stored(out.reshape(-1)), kind, width)
    slots = np.full(1 << max(4, (2 * len(ids)).bit_length()), -1, np.int32)
    unique, positions = np.empty_like(where), np.empty(len(ids), np.int32)
    return unique[: unique_ids(where, slots, unique, positions)], positions


def sum_rows(
    values: NDArray[Any], positions: NDArray[Any], count: int, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Sums of the rows of `values` that have the same position.

    Parameters
    ----------
    values : ndarray of float32, float64, float16 or bfloat16, shape (n, width)
        C-contiguous.
    positions : ndarray of int32 or int64, shape (n,)
        From 0 to `count - 1`.
    count : int
        Rows of the result.
    out : ndarray, optional
        Of the result's shape and dtype, C-contiguous; a new array if not given.

    Returns
    -------
    ndarray of shape (count, width)
        `out[p] = sum of values[i] with positions[i] == p`, zero where there are none. Added in the order of i, in the
        dtype of `values`, or in float32 for the half types; the bits do not depend on the number of threads.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, dtype, shape, layout or range.
    """
    flat, width = _rows(values, "values")
    dtype = _arrays.arithmetic_dtype(values.dtype)
    result = np.empty((count, width), dtype) if out is None else out
    _expect(result, "out", (count, width), dtype)
    where = _indices(positions, "positions", len(values), count)
    result.fill(0)
    run(_sum_duplicates, flat.size, flat, where, result.reshape(-1), width)
    return result


def update_rows(
    x: NDArray[Any],
    stamps: NDArray[np.float32],
    history: NDArray[np.float64],
    now: int,
    rows: NDArray[Any],
    step: NDArray[Any],
    sums: bool,
) -> float:
    """Shrink some rows of `x` for the steps since they were last written, subtract a step, and stamp them; in place.

    Row r becomes `sign(x) * max(0, scale * |x| - threshold) - step` with `scale = P / P0` and
    `threshold = P * (S - S0)`, where `(P, S) = history[now]` and `(P0, S0) = history[stamps[r]]`, and `stamps[r]`
    becomes `now`.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16, shape (count, width)
        C-contiguous and writable.
    stamps : ndarray of float32, shape (count,)
        Of each row the number of the step in which it was last written, at most `now`; C-contiguous and writable.
    history : ndarray of float64, shape (steps, 2)
        Of each step the running product of scales, and the running sum of thresholds over it; C-contiguous.
    now : int
        The number of the present step.
    rows : ndarray of int32 or int64, shape (n,)
        From 0 to `count - 1`, each at most once.
    step : ndarray, shape (n, width)
        Of the dtype of the arithmetic, which is that of `x`, or float32 for the half types; C-contiguous. Scale and
        threshold are computed in float64 and rounded once to that dtype.
    sums : bool
        Whether the change of the sum of squares is wanted.

    Returns
    -------
    float
        The sum of the squares of the new rows minus that of the shrunk ones, both in float64; 0 if not wanted.

    Raises
    ------
    TypeError, ValueError
        As for `sum_rows`.
    """
    _, width = _rows(x, "x")
    dtype = _arrays.arithmetic_dtype(x.dtype)
    flat_step, _ = _rows(step, "step")
    _expect(step, "step", (len(rows), width), dtype)
    where = _indices(rows, "rows", len(rows), len(x))
    marks = _stamps(stamps, history, now, where, len(x))
    for name, array in (("x", x), ("stamps", stamps)):
        _arrays.check_writable(array, name)
    changes = np.empty((groups(len(rows)), CHANGES)) if sums else None
    flat, total = _arrays.stored(x.reshape(-1)), float(history[now, 1])
    run(_update_all, flat_step.size, flat, marks, where, flat_step, total, changes, width)
    return 0.0 if changes is None else float(changes[:, OF_SQUARES].sum())


def _expect(array: NDArray[Any], name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        raise ValueError(
            f"Invalid value for argument {name}: expected a C-contiguous array of shape {shape} and dtype {dtype}. "
            f"Received: shape {array.shape}, dtype {array.dtype}"
        )


def _stamps(stamps: Any, history: Any, now: int, rows: NDArray[Any], count: int) -> tuple[Any, ...]:
    """Stamps as kernels take them, if those of these rows are numbers of steps in the history."""
    _expect(stamps, "stamps", (count,), np.dtype(np.float32))
    _expect(history, "history", (len(history), 2), np.dtype(np.float64))
    if not 0 <= now < len(history):
        raise ValueError(f"Invalid value for argument now: expected 0 to {len(history) - 1}. Received: {now}")
    used = stamps[rows]
    if used.size and not (used.min() >= 0 and used.max() <= now):
        raise ValueError(
            f"Invalid value for argument stamps: expected 0 to {now}. Received: {used.min()} to {used.max()}"
        )
    return stamps, history, int(now)


def _rows(x: Any, name: str) -> tuple[NDArray[Any], int]:
    flat = _arrays.flat_input(x)
    if x.ndim != 2 or not x.flags.c_contiguous:
        raise ValueError(
            f"Invalid value for argument {name}: expected two dimensions in C order. Received: shape {x.shape}"
        )
    return flat, x.shape[1]


def _indices(indices: Any, name: str, size: int, count: int) -> NDArray[Any]:
    if not isinstance(indices, np.ndarray) or indices.dtype not in (np.int32, np.int64):
        raise TypeError(f"Invalid type for argument {name}: expected an array of int32 or int64.")
    if indices.shape != (size,):
        raise ValueError(f"Invalid value for argument {name}: expected shape {(size,)}. Received: {indices.shape}")
    if size and not (indices.min() >= 0 and indices.max() < count):
        raise ValueError(
            f"Invalid value for argument {name}: expected 0 to {count - 1}. "
            f"Received: {indices.min()} to {indices.max()}"
        )
    view = np.ascontiguousarray(indices).view()
    view.flags.writeable = False
    return view


@jit
def unique_ids(ids, slots, unique, positions):
    """Number of distinct ids, by a hash table with linear probing that is at most half full."""
    count, mask = 0, slots.size - 1
    for i in range(ids.size):
        slot = (ids[i] * 2654435769 >> 7) & mask  # Knuth's multiplicative hash: neighbours go apart
        while slots[slot] >= 0 and unique[slots[slot]] != ids[i]:
            slot = (slot + 1) & mask
        if slots[slot] < 0:
            slots[slot] = count
            unique[count] = ids[i]
            count += 1
        positions[i] = slots[slot]
    return count


@inner
def shrink_of(stamps, row):
    """Scale and threshold of what a row has to come, of float64; see `update_rows`.

    `stamps` are the stamps of all rows, the history and the number of the present step.
    """
    written, history, now = stamps
    stamp = np.int64(written[row])
    scale = history[now, 0] / history[stamp, 0]
    return scale, history[now, 0] * (history[now, 1] - history[stamp, 1])


@inner
def _prefetch(x, stamps, row, width):
    """Rows lie all over the memory, where the processor does not see them coming."""
    prefetch(stamps[0], row)
    for i in range(row * width, (row + 1) * width, _LINE_BYTES // x.itemsize):
        prefetch(x, i)


@jit
def look_up(x, stamps, ids, out, kind, width):
    """Write the true rows of the ids to `out`; see `lookup_rows`."""
    _share_look_up(ids.size, out.size, (x, stamps, ids, out, kind, width))


@inner
def _look_up(first, last, x, stamps, ids, out, kind, width):
    for k in range(first, last):
        if k + _AHEAD < last:
            _prefetch(x, stamps, ids[k + _AHEAD], width)
        true_row(ids[k], x, stamps, out, k * width, kind, width)


_share_look_up = sharing(_look_up)


@inner
def true_row(row, x, stamps, out, target, kind, width):
    """Write the true values of a row to `out`, from its element `target` on; `out` may be the memory of `x`.

    `kind` is any array of the dtype of the arithmetic.
    """
    start, tail = row * width, width - width % LANES
    scale, threshold = shrink_of(stamps, row)
    scale, threshold = kind.dtype.type(scale), kind.dtype.type(threshold)
    for i in range(0, tail, LANES):
        store(out, target + i, shrunk(load(x, start + i), scale, threshold))
    if tail < width:
        rest = shrunk(load_first(x, start + tail, width - tail), scale, threshold)
        store_first(out, target + tail, rest, width - tail)


@inner
def sum_bags(x, stamps, ids, splits, weights, out, width):
    """Write the sum of the true rows of each bag of ids, times their weights, to `out`, in whose dtype it is computed.

    Bag b has the ids from `splits[b]` to before `splits[b + 1]`; without weights these are ones. The rows themselves
    are written nowhere.
    """
    _share_sum_bags(splits.size - 1, ids.size * width, (x, stamps, ids, splits, weights, out, width))


@inner
def _sum_bags(first, last, x, stamps, ids, splits, weights, out, width):
    kind = out.dtype.type
    for bag in range(first, last):
        target = bag * width
        for column in range(width):
            out[target + column] = kind(0)
        for i in range(splits[bag], splits[bag + 1]):
            if i + _AHEAD < splits[last]:
                _prefetch(x, stamps, ids[i + _AHEAD], width)
            row = ids[i]
            start = row * width
            scale, threshold = shrink_of(stamps, row)
            a, b = kind(scale), kind(threshold)
            weight = weights[i] if weights.size else kind(1)
            for column in range(0, width, LANES):
                count = min(LANES, width - column)
                v = weight * in_order(x, shrunk(load_part(x, start + column, count), a, b))
                store_part(out, target + column, load_part(out, target + column, count) + v, count)


_share_sum_bags = sharing(_sum_bags)


@jit
def _sum_duplicates(values, positions, out, width):
    # Threads share the columns, not the rows: each position is then one thread's, however uneven positions are.
    _share_sum_columns(-(-width // LANES), values.size, (values, positions, out, width))


@inner
def _sum_columns(first, last, values, positions, out, width):
    """Add up the values of each position, of the blocks of columns from `first` to before `last`."""
    for i in range(positions.size):
        source, target = i * width, positions[i] * width
        for block in range(first, last):
            column = block * LANES
            count = min(LANES, width - column)
            added = in_order(values, load_part(values, source + column, count))
            store_part(out, target + column, load_part(out, target + column, count) + added, count)


_share_sum_columns = sharing(_sum_columns)


CHANGES, OF_SUM, OF_SQUARES, OF_COUNT, MAGNITUDE = 4, 0, 1, 2, 3
"""What is known of a group of rows that was updated: how the sums of |w|, of w² and of w ≠ 0 changed, and of which
magnitude the squares are whose difference this is.
"""

GROUP = 16
"""Rows that are updated together: they stay in the nearest cache, and their changes are one sum."""


@inner
def groups(count):
    """How many groups so many rows have."""
    return -(-count // GROUP)


@inner
def _tally(tallies, old, new, scale, threshold, alive):
    """Add what changed from the shrunk to the new values of some weights of a row.

    Weights are shrunk as the sums are: without stopping at zero, but for those that were zero when these were measured.
    """
    of_sum, before_squared, after_squared, of_count = tallies
    stored, after = abs(widen(old)), abs(widen(new))
    before = where_above(stored, alive, scale * stored - threshold)
    of_count = of_count + (where_above(after, 0.0, ones()) - where_above(stored, alive, ones()))
    return of_sum + (after - before), before_squared + before * before, after_squared + after * after, of_count


@jit
def _update_all(x, stamps, rows, step, measured, changes, width):
    _share_update(groups(rows.size), step.size, (x, stamps, rows, step, measured, changes, width))


@inner
def _update(first, last, x, stamps, rows, step, measured, changes, width):
    for group in range(first, last):
        update(group, x, stamps, rows, step, measured, changes, width)


@inner
def update(group, x, stamps, rows, step, measured, changes, width):
    """Shrink, step and stamp the rows of a group; see `update_rows` and `shrink_of`.

    `changes`, of shape (groups, `CHANGES`), may be None; `measured` is the total threshold when the sums were measured,
    whose changes they are.
    """
    tail = width - width % LANES
    written, history, now = stamps
    tallies = (zeros(), zeros(), zeros(), zeros())
    for k in range(group * GROUP, min((group + 1) * GROUP, rows.size)):
        if k + _AHEAD < rows.size:
            _prefetch(x, stamps, rows[k + _AHEAD], width)
        row = rows[k]
        start, source = row * width, k * width
        scale, threshold = shrink_of(stamps, row)
        stamp = np.int64(written[row])
        alive = history[stamp, 0] * max(0.0, measured - history[stamp, 1])
        written[row] = now
        a, b = step.dtype.type(scale), step.dtype.type(threshold)
        for i in range(0, tail, LANES):
            old = load(x, start + i)
            store(x, start + i, shrunk(old, a, b) - as_if_of(x, load(step, source + i)))
            if changes is not None:  # what was stored, after its rounding
                tallies = _tally(tallies, old, load(x, start + i), scale, threshold, alive)
        if tail < width:
            count = width - tail
            old = load_first(x, start + tail, count)
            taken = as_if_of(x, load_first(step, source + tail, count))
            store_first(x, start + tail, shrunk(old, a, b) - taken, count)
            if changes is not None:
                tallies = _tally(tallies, old, load_first(x, start + tail, count), scale, threshold, alive)
    if changes is not None:
        before, after = total(tallies[1]), total(tallies[2])
        changes[group, OF_SUM], changes[group, OF_COUNT] = total(tallies[0]), total(tallies[3])
        changes[group, OF_SQUARES], changes[group, MAGNITUDE] = after - before, after + before


_share_update = sharing(_update)
