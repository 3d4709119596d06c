"""Error messages put together by compiled code, and how an op fails with one."""

from __future__ import annotations

import numpy as np
from fastreg_kernels import _shared
from fastreg_kernels.cpu.jit import inner
from numba import carray, types

from fastreg._bridges.native import capi
from fastreg._bridges.native.compiler import callback

_SIZE = 512
NAME = "name_of_table"
"""The attribute of an op that its kernels keep as their state, for messages."""

_name_attribute = capi.text(NAME)
_malloc, _free = _shared.malloc, _shared.free
_gcvt = types.ExternalFunction("gcvt", types.voidptr(types.float64, types.int32, types.voidptr))


def literal(text: str) -> np.ndarray:
    """A piece of text as compiled code takes it."""
    return np.frombuffer(text.encode(), np.uint8)


@callback(types.uintp(types.uintp))
def keep_name(construction):
    """The address of the name, ended by a zero, as a kernel's state; 0 if there is no memory for it."""
    status, sizes = capi.NewStatus(), np.zeros(2, np.int32)
    capi.GetAttrSize(construction, _name_attribute(), capi.memory(sizes[:1]), capi.memory(sizes[1:]), status)
    size = min(np.int64(sizes[1]), _SIZE - 1)
    state = _malloc(np.uintp(size + 1))
    if state != 0:
        capi.GetAttrString(construction, _name_attribute(), capi.pointer(state), np.uintp(size), status)
        carray(capi.pointer(state), size + 1, np.uint8)[size] = 0
    capi.DeleteStatus(status)
    return state


@callback(types.void(types.uintp))
def give_name_back(state):
    """What `keep_name` made is not needed any more."""
    _free(state)


@inner
def message():
    """An empty message, ended by a zero."""
    return np.zeros(_SIZE, np.uint8)


@inner
def add_text(message, text):
    """Append a literal."""
    at = _length(message)
    for i in range(min(text.size, _SIZE - 1 - at)):
        message[at + i] = text[i]


@inner
def add_name(message, state):
    """Append the name that a kernel keeps as its state."""
    if state != 0:
        name = carray(capi.pointer(state), _SIZE, np.uint8)
        add_text(message, name[: _length(name)])


@inner
def add_int(message, number):
    """Append a whole number."""
    digits, count, rest = np.empty(24, np.uint8), 0, abs(number)
    while rest > 0 or count == 0:
        digits[count] = 48 + rest % 10
        rest //= 10
        count += 1
    if number < 0:
        digits[count] = 45
        count += 1
    add_text(message, digits[:count][::-1].copy())


@inner
def add_float(message, number):
    """Append a floating number, with six digits."""
    text = np.zeros(40, np.uint8)
    _gcvt(number, 6, capi.memory(text))
    add_text(message, text[: _length(text)])


@inner
def _length(text):
    at = 0
    while text[at] != 0:
        at += 1
    return at


@inner
def fail(status, message):
    """Have an op fail with `InvalidArgumentError` and this message when it finishes."""
    capi.SetStatus(status, capi.INVALID_ARGUMENT, capi.memory(message))
