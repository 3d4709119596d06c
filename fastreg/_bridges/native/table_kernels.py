"""What TensorFlow calls to look rows of a lazily regularised table up, to update, flush and measure it.

The kernels write to the memory of the table's variables. These come twice: as resources, by which TensorFlow orders the
ops among everything else that uses the variables, and as tensors that share the variables' memory. That is the
variables' own (`fastreg._tables.variable` sees to that), and a mutex in shared memory keeps the ops of several threads
apart. Python, and so no signal and no exception of it, can interrupt an op: it is done whole or not at all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from fastreg_kernels import _shared
from fastreg_kernels.cpu import rows, tables, updates
from fastreg_kernels.cpu.jit import inner
from numba import carray

from fastreg._bridges import counters, support
from fastreg._bridges.native import capi, messages
from fastreg._bridges.native.compiler import callback
from fastreg._bridges.native.penalty_kernels import COMPUTE, weighted
from fastreg._bridges.native.shapes import OF_TABLE
from fastreg._bridges.native.tensors import (
    discard,
    finish,
    handle_of_input,
    kind,
    no_memory,
    output,
    put_first,
    scalar_output,
    shape_of,
)
from fastreg._bridges.state import (
    AGE,
    COUNT,
    EPSILON,
    FRESH,
    LARGEST_NOISE,
    LARGEST_SHARE,
    LARGEST_THRESHOLD,
    MEASURED,
    NOISE,
    NUMBERS,
    OLD,
    PRODUCT,
    SMALLEST_PRODUCT,
    STEP,
    STEPS,
    SUM_ABS,
    SUM_SQUARES,
    TOTAL,
)

_MUTEX_BITS = 8
_MUTEXES = 1 << _MUTEX_BITS
_mutexes = _shared.region("fastreg_tables", _MUTEXES * _shared.MUTEX_WORDS)
_mutexes_address = _shared.address("fastreg_tables")
for _index in range(_MUTEXES):
    _shared.mutex(_mutexes[_index * _shared.MUTEX_WORDS : (_index + 1) * _shared.MUTEX_WORDS])
_lock, _unlock = _shared.lock, _shared.unlock


@inner
def _mutex(data):
    """The mutex of the table whose memory is here. Tables may share one: they then wait for each other, no more."""
    # Large tables begin at the same place of a page; multiplied, all bits of the address count for the upper ones.
    number = (capi.address(data) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - _MUTEX_BITS)
    return capi.pointer(capi.address(_mutexes_address()) + number * np.uintp(8 * _shared.MUTEX_WORDS))


@inner
def _behind(context, i, status):
    """The i-th input behind those of the table that an op begins with."""
    return handle_of_input(context, OF_TABLE + i, status)


@inner
def _open(context, status):
    """The table that an op begins with: handles, to be closed, rows, width, the memory of rows, stamps with their
    history, and state.
    """
    handles = (
        handle_of_input(context, 1, status),
        handle_of_input(context, 3, status),
        handle_of_input(context, 4, status),
        handle_of_input(context, 5, status),
    )
    height, width = capi.Dim(handles[0], 0), capi.Dim(handles[0], 1)
    stamps = carray(capi.TensorData(handles[1]), height, np.float32)
    history = carray(capi.TensorData(handles[2]), (STEPS, 2), np.float64)
    state = carray(capi.TensorData(handles[3]), NUMBERS, np.float64)
    return handles, height, width, capi.TensorData(handles[0]), (stamps, history), state


@inner
def _now(stamps, state):
    """Stamps and history with the number of the present step, as kernels take them."""
    return stamps[0], stamps[1], np.int64(state[STEP])


@inner
def _close(handles):
    for handle in handles:
        capi.DeleteTensor(handle)


_ID, _EQUALS, _NOT_IN, _END, _OF_TABLE = (
    messages.literal(text) for text in ("ids[", "] = ", " is not in [0, ", ")", " for the table ")
)


@inner
def _are_in_range(ids, count, name, status):
    for i in range(ids.size):
        if not 0 <= ids[i] < count:
            message = messages.message()
            messages.add_text(message, _ID)
            messages.add_int(message, i)
            messages.add_text(message, _EQUALS)
            messages.add_int(message, np.int64(ids[i]))
            messages.add_text(message, _NOT_IN)
            messages.add_int(message, count)
            messages.add_text(message, _END)
            messages.add_text(message, _OF_TABLE)
            messages.add_name(message, name)
            messages.fail(status, message)
            return False
    return True


@inner
def _flush(x, stamps, state, kind, width):
    """Write the true weights of all rows. The sums count as old: a run that goes on after saving then has the losses of
    one that loads, to the last bit.
    """
    tables.write(x, _now(stamps, state), x, kind, width)
    stamps[0][:] = 0
    state[PRODUCT], state[TOTAL], state[STEP], state[AGE] = FRESH[0], FRESH[1], 0.0, OLD


@inner
def _advance(stamps, state, scale, threshold):
    """Begin a step that shrinks weights so; one that does not is the one before."""
    if scale != 1.0 or threshold != 0.0:
        state[PRODUCT] *= scale
        state[TOTAL] += threshold / state[PRODUCT]
        state[STEP] += 1.0
        now = np.int64(state[STEP])
        stamps[1][now, 0], stamps[1][now, 1] = state[PRODUCT], state[TOTAL]


@inner
def _is_full(state):
    """Whether a table has to be flushed before another step."""
    product, total = state[PRODUCT], state[TOTAL]
    return product < SMALLEST_PRODUCT or product * total > LARGEST_THRESHOLD or state[STEP] >= STEPS - 1


@inner
def _track(state, scale, threshold, changes):
    """What a step makes of the sums; see `fastreg._bridges.state`."""
    sum_abs, sum_squares, count = state[SUM_ABS], state[SUM_SQUARES], state[COUNT]
    state[SUM_SQUARES] = (
        scale * scale * sum_squares - 2.0 * scale * threshold * sum_abs
    ) + threshold * threshold * count
    state[SUM_ABS] = scale * sum_abs - threshold * count
    state[NOISE] = scale * scale * state[NOISE] + EPSILON * abs(sum_squares)
    for k in range(changes.shape[0]):
        state[SUM_ABS] += changes[k, rows.OF_SUM]
        state[SUM_SQUARES] += changes[k, rows.OF_SQUARES]
        state[COUNT] += changes[k, rows.OF_COUNT]
        state[NOISE] += EPSILON * changes[k, rows.MAGNITUDE]
    state[AGE] += 1.0


@inner
def _measure(x, stamps, state, kind, width):
    """Sum the true weights up."""
    found = tables.measure(x, _now(stamps, state), kind, width)
    state[SUM_ABS], state[SUM_SQUARES], state[COUNT] = found[0], found[1], found[2]
    state[AGE], state[MEASURED], state[NOISE] = 0.0, state[TOTAL], 0.0


@inner
def _are_doubtful(state):
    """Whether the sums may be off by more than they should."""
    since = state[PRODUCT] * (state[TOTAL] - state[MEASURED])
    is_near = since * state[COUNT] <= LARGEST_SHARE * state[SUM_ABS]
    return not (is_near and state[NOISE] <= LARGEST_NOISE * state[SUM_SQUARES])


@inner
def _is_fresh(state):
    return state[STEP] == 0.0


def lookup(dtype: tf.DType, ids_dtype: tf.DType) -> Any:
    """`rows = FastregLookup(table…, ids)`."""
    stored, arithmetic, number = kind(dtype)
    size, ids_kind = dtype.size, np.dtype(ids_dtype.as_numpy_dtype).type

    def compute(kernel, context):
        status = capi.NewStatus()
        table, height, width, data, stamps, state = _open(context, status)
        ids_handle = _behind(context, 0, status)
        count = capi.Dim(ids_handle, 0)
        rows_handle = np.uintp(0)
        try:
            x = carray(data, height * width, stored)
            ids = carray(capi.TensorData(ids_handle), count, ids_kind)
            if _are_in_range(ids, height, kernel, status):
                shape = np.ones(3, np.int64)
                shape[0], shape[1] = count, width
                rows_handle = output(context, 0, number, shape, count * width * size, status)
            if rows_handle != 0:
                out = carray(capi.TensorData(rows_handle), count * width, stored)
                of = np.empty(0, arithmetic)
                _lock(_mutex(data))
                rows.look_up(x, _now(stamps, state), ids, out, of, width)
                _unlock(_mutex(data))
                counters.count_kernel_call()
        except Exception:
            no_memory(status)
        discard(rows_handle)
        _close(table)
        capi.DeleteTensor(ids_handle)
        finish(context, status)

    return callback(COMPUTE)(compute)


_BAD_SPLITS = messages.literal(
    "Invalid splits of bags: expected 0 first, the number of ids last, and none that is less than the one before"
)


@inner
def _are_splits(splits, count, status):
    """Whether bags have all ids, each once and in order."""
    valid = splits.size > 0 and splits[0] == 0 and splits[splits.size - 1] == count
    for bag in range(splits.size - 1):
        valid = valid and splits[bag] <= splits[bag + 1]
    if not valid:
        message = messages.message()
        messages.add_text(message, _BAD_SPLITS)
        messages.fail(status, message)
    return valid


def sum_bags(dtype: tf.DType, ids_dtype: tf.DType) -> Any:
    """`sums = FastregSumBags(table…, ids, splits, weights)`: of the true rows, in the dtype of the arithmetic."""
    stored, arithmetic, _ = kind(dtype)
    ids_kind = np.dtype(ids_dtype.as_numpy_dtype).type
    number, size = kind(support.arithmetic_dtype(dtype)).number, support.arithmetic_dtype(dtype).size

    def compute(kernel, context):
        status = capi.NewStatus()
        table, height, width, data, stamps, state = _open(context, status)
        ids_handle, splits_handle = _behind(context, 0, status), _behind(context, 1, status)
        weights_handle = _behind(context, 2, status)
        count = capi.Dim(ids_handle, 0)
        sums_handle = np.uintp(0)
        try:
            x = carray(data, height * width, stored)
            ids = carray(capi.TensorData(ids_handle), count, ids_kind)
            splits = carray(capi.TensorData(splits_handle), capi.TensorElementCount(splits_handle), np.int64)
            weights = carray(capi.TensorData(weights_handle), capi.TensorElementCount(weights_handle), arithmetic)
            if _are_splits(splits, count, status) and _are_in_range(ids, height, kernel, status):
                bags = splits.size - 1
                shape = np.ones(3, np.int64)
                shape[0], shape[1] = bags, width
                sums_handle = output(context, 0, number, shape, bags * width * size, status)
                if sums_handle != 0:
                    out = carray(capi.TensorData(sums_handle), bags * width, arithmetic)
                    _lock(_mutex(data))
                    rows.sum_bags(x, _now(stamps, state), ids, splits, weights, out, width)
                    _unlock(_mutex(data))
                    counters.count_kernel_call()
        except Exception:
            no_memory(status)
        discard(sums_handle)
        _close(table)
        for handle in (ids_handle, splits_handle, weights_handle):
            capi.DeleteTensor(handle)
        finish(context, status)

    return callback(COMPUTE)(compute)


_TOO_LARGE = messages.literal(
    "Invalid value for learning_rate * l2: expected 2 * learning_rate * l2 < 1. Received: learning_rate="
)
_L2, _IMPLICIT = messages.literal(", l2="), messages.literal(". LazyRegularization(..., implicit=True) takes any")


def update(dtype: tf.DType, ids_dtype: tf.DType, rule: int) -> Any:
    """`FastregUpdate(table…, slot_0…, slot_1…, ids, gradient, rate, scale, factors, settings, step, splits, weights)`.

    Shrinks all rows by one step's penalty, as far as it is kept in mind of them, and updates those of the ids. With
    splits the gradient is that of bags of ids.
    """
    stored, arithmetic, _ = kind(dtype)
    ids_kind = np.dtype(ids_dtype.as_numpy_dtype).type

    def compute(kernel, context):
        status = capi.NewStatus()
        table, height, width, data, stamps, state = _open(context, status)
        first_handle, second_handle = _behind(context, 1, status), _behind(context, 3, status)
        ids_handle, gradient_handle = _behind(context, 4, status), _behind(context, 5, status)
        rate_handle, scale_handle = _behind(context, 6, status), _behind(context, 7, status)
        factors_handle, settings_handle = _behind(context, 8, status), _behind(context, 9, status)
        step_handle = _behind(context, 10, status)
        splits_handle, weights_handle = _behind(context, 11, status), _behind(context, 12, status)
        count = capi.Dim(ids_handle, 0)
        x = carray(data, height * width, stored)
        first = carray(capi.TensorData(first_handle), capi.TensorElementCount(first_handle), arithmetic)
        second = carray(capi.TensorData(second_handle), capi.TensorElementCount(second_handle), arithmetic)
        ids = carray(capi.TensorData(ids_handle), count, ids_kind)
        gradient = carray(capi.TensorData(gradient_handle), capi.TensorElementCount(gradient_handle), arithmetic)
        splits = carray(capi.TensorData(splits_handle), capi.TensorElementCount(splits_handle), np.int64)
        weights = carray(capi.TensorData(weights_handle), capi.TensorElementCount(weights_handle), arithmetic)
        rate = carray(capi.TensorData(rate_handle), 1, np.float64)[0]
        scale = carray(capi.TensorData(scale_handle), 1, np.float64)[0]
        factors = carray(capi.TensorData(factors_handle), 2, np.float64)
        settings = carray(capi.TensorData(settings_handle), capi.TensorElementCount(settings_handle), np.float64)
        step = carray(capi.TensorData(step_handle), 1, np.int64)[0]
        shrink, threshold = 1.0 - 2.0 * rate * factors[1], rate * factors[0]
        if settings[settings.size - 1] != 0.0:
            shrink = 1.0 / (1.0 + 2.0 * rate * factors[1])
            threshold *= shrink
        try:
            if not shrink > 0.0:
                message = messages.message()
                messages.add_text(message, _TOO_LARGE)
                messages.add_float(message, rate)
                messages.add_text(message, _L2)
                messages.add_float(message, factors[1])
                messages.add_text(message, _OF_TABLE)
                messages.add_name(message, kernel)
                messages.add_text(message, _IMPLICIT)
                messages.fail(status, message)
            elif (splits.size == 0 or _are_splits(splits, count, status)) and _are_in_range(
                ids, height, kernel, status
            ):
                # All memory before anything is written, so that without it nothing is done.
                unique, positions = np.empty(count, ids_kind), np.empty(count, np.int32)
                where = updates.distinct(ids, np.full(updates.slots(count), -1, np.int32), unique, positions)
                if splits.size:
                    sums = updates.summed_of_bags(gradient, splits, weights, positions, where.size, scale, width)
                else:
                    sums = updates.summed(gradient, positions, where.size, scale, width)
                changes, of = np.empty((rows.groups(where.size), rows.CHANGES)), np.empty(0, arithmetic)
                _lock(_mutex(data))
                is_measured = state[AGE] < OLD
                if not is_measured:
                    changes = changes[:0]
                _advance(stamps, state, shrink, threshold)
                of_rule = ((first, second), rate, settings, step)
                updates.apply(rule, x, _now(stamps, state), where, sums, of_rule, state[MEASURED], changes, width)
                if is_measured:
                    _track(state, shrink, threshold, changes)
                if _is_full(state):
                    _flush(x, stamps, state, of, width)
                _unlock(_mutex(data))
                counters.count_kernel_call()
        except Exception:
            no_memory(status)
        _close(table)
        for handle in (
            first_handle,
            second_handle,
            ids_handle,
            gradient_handle,
            rate_handle,
            scale_handle,
            factors_handle,
            settings_handle,
            step_handle,
            splits_handle,
            weights_handle,
        ):
            capi.DeleteTensor(handle)
        finish(context, status)

    return callback(COMPUTE)(compute)


_BAD_ROWS = messages.literal("Invalid values: expected a row of the table for each id")


def write_rows(dtype: tf.DType, ids_dtype: tf.DType) -> Any:
    """`FastregWriteRows(table…, ids, values)`: true weights of some rows from now on."""
    stored, _, _ = kind(dtype)
    ids_kind = np.dtype(ids_dtype.as_numpy_dtype).type

    def compute(kernel, context):
        status = capi.NewStatus()
        table, height, width, data, stamps, state = _open(context, status)
        ids_handle, values_handle = _behind(context, 0, status), _behind(context, 1, status)
        x = carray(data, height * width, stored)
        ids = carray(capi.TensorData(ids_handle), capi.Dim(ids_handle, 0), ids_kind)
        values = carray(capi.TensorData(values_handle), capi.TensorElementCount(values_handle), stored)
        if values.size != ids.size * width:
            message = messages.message()
            messages.add_text(message, _BAD_ROWS)
            messages.fail(status, message)
        elif _are_in_range(ids, height, kernel, status):
            _lock(_mutex(data))
            for i in range(ids.size):
                x[ids[i] * width : (ids[i] + 1) * width] = values[i * width : (i + 1) * width]
                stamps[0][ids[i]] = state[STEP]
            state[AGE] = OLD
            _unlock(_mutex(data))
            counters.count_kernel_call()
        _close(table)
        capi.DeleteTensor(ids_handle)
        capi.DeleteTensor(values_handle)
        finish(context, status)

    return callback(COMPUTE)(compute)


def flush(dtype: tf.DType) -> Any:
    """`FastregFlush(table…)`: nothing to do if no shrink is to come."""
    stored, arithmetic, _ = kind(dtype)

    def compute(kernel, context):
        status = capi.NewStatus()
        table, height, width, data, stamps, state = _open(context, status)
        try:
            of = np.empty(0, arithmetic)
            _lock(_mutex(data))
            if not _is_fresh(state):
                _flush(carray(data, height * width, stored), stamps, state, of, width)
                counters.count_kernel_call()
            _unlock(_mutex(data))
        except Exception:
            no_memory(status)
        _close(table)
        finish(context, status)

    return callback(COMPUTE)(compute)


def weights(dtype: tf.DType) -> Any:
    """`weights = FastregWeights(table…)`: a copy of all true rows."""
    stored, arithmetic, number = kind(dtype)
    size = dtype.size

    def compute(kernel, context):
        status = capi.NewStatus()
        table, height, width, data, stamps, state = _open(context, status)
        count = height * width
        weights_handle = np.uintp(0)
        try:
            weights_handle = output(context, 0, number, shape_of(table[0]), count * size, status)
            if weights_handle != 0:
                out, of = carray(capi.TensorData(weights_handle), count, stored), np.empty(0, arithmetic)
                _lock(_mutex(data))
                tables.write(carray(data, count, stored), _now(stamps, state), out, of, width)
                _unlock(_mutex(data))
                counters.count_kernel_call()
        except Exception:
            no_memory(status)
        discard(weights_handle)
        _close(table)
        finish(context, status)

    return callback(COMPUTE)(compute)


def penalty(dtype: tf.DType) -> Any:
    """`penalty = FastregTablePenalty(table…, factors, every)`.

    The sums are measured anew if they may be off and are `every` steps old; with `every` 0, if they are older than this
    step.
    """
    stored, arithmetic, number = kind(dtype)
    size = dtype.size

    def compute(kernel, context):
        status = capi.NewStatus()
        table, height, width, data, stamps, state = _open(context, status)
        factors_handle, every_handle = _behind(context, 0, status), _behind(context, 1, status)
        factors = carray(capi.TensorData(factors_handle), 2, np.float64)
        every = carray(capi.TensorData(every_handle), 1, np.int64)[0]
        penalty_handle = np.uintp(0)
        try:
            penalty_handle = scalar_output(context, 0, number, size, status)
            if penalty_handle != 0:
                value = 0.0
                _lock(_mutex(data))
                try:
                    is_old = state[AGE] >= 1.0 if every == 0 else state[AGE] >= every and _are_doubtful(state)
                    if (factors[0] != 0.0 or factors[1] != 0.0) and (is_old or state[AGE] >= OLD):
                        _measure(carray(data, height * width, stored), stamps, state, np.empty(0, arithmetic), width)
                        counters.count_kernel_call()
                    value = weighted(np.maximum(state[SUM_ABS : SUM_SQUARES + 1], 0.0), factors[0], factors[1])
                except Exception:
                    no_memory(status)
                _unlock(_mutex(data))
                put_first(carray(capi.TensorData(penalty_handle), 1, stored), value)
        except Exception:
            no_memory(status)
        discard(penalty_handle)
        _close(table)
        capi.DeleteTensor(factors_handle)
        capi.DeleteTensor(every_handle)
        finish(context, status)

    return callback(COMPUTE)(compute)


def count_zeros(dtype: tf.DType) -> Any:
    """`count = FastregCountZeros(table…)`: of the true weights."""
    stored, arithmetic, _ = kind(dtype)
    number = tf.int64.as_datatype_enum

    def compute(kernel, context):
        status = capi.NewStatus()
        table, height, width, data, stamps, state = _open(context, status)
        count_handle = np.uintp(0)
        try:
            count_handle = scalar_output(context, 0, number, 8, status)
            if count_handle != 0:
                zeros = 0
                _lock(_mutex(data))
                try:
                    x, of = carray(data, height * width, stored), np.empty(0, arithmetic)
                    found = tables.measure(x, _now(stamps, state), of, width)
                    zeros = height * width - np.int64(found[2])
                except Exception:
                    no_memory(status)
                _unlock(_mutex(data))
                carray(capi.TensorData(count_handle), 1, np.int64)[0] = zeros
                counters.count_kernel_call()
        except Exception:
            no_memory(status)
        discard(count_handle)
        _close(table)
        finish(context, status)

    return callback(COMPUTE)(compute)


def sum_duplicates(dtype: tf.DType, ids_dtype: tf.DType) -> Any:
    """`sums, unique = FastregSumDuplicates(values, ids)`: of the arithmetic's dtype."""
    stored, _, number = kind(dtype)
    size, ids_kind, ids_number = dtype.size, np.dtype(ids_dtype.as_numpy_dtype).type, ids_dtype.as_datatype_enum
    ids_size = ids_dtype.size

    def compute(kernel, context):
        status = capi.NewStatus()
        values_handle, ids_handle = handle_of_input(context, 0, status), handle_of_input(context, 1, status)
        count, width = capi.Dim(ids_handle, 0), capi.Dim(values_handle, 1)
        values = carray(capi.TensorData(values_handle), count * width, stored)
        sums_handle = unique_handle = np.uintp(0)
        try:
            ids = carray(capi.TensorData(ids_handle), count, ids_kind)
            unique, positions = np.empty(count, ids_kind), np.empty(count, np.int32)
            where = updates.distinct(ids, np.full(updates.slots(count), -1, np.int32), unique, positions)
            shape = np.ones(3, np.int64)
            shape[0], shape[1] = where.size, width
            sums = updates.summed(values, positions, where.size, 1.0, width)
            sums_handle = output(context, 0, number, shape, where.size * width * size, status)
            # A call that succeeds clears the status, so nothing may be called after one that failed.
            if sums_handle != 0:
                unique_handle = output(context, 1, ids_number, shape[:2], where.size * ids_size, status)
            if unique_handle != 0:
                carray(capi.TensorData(sums_handle), sums.size, stored)[:] = sums
                carray(capi.TensorData(unique_handle), where.size, ids_kind)[:] = where
                counters.count_kernel_call()
        except Exception:
            no_memory(status)
        discard(sums_handle)
        discard(unique_handle)
        capi.DeleteTensor(values_handle)
        capi.DeleteTensor(ids_handle)
        finish(context, status)

    return callback(COMPUTE)(compute)
