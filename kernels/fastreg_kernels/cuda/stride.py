"""How the threads of a grid share the elements of an array: the loops that all kernels have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from fastreg_kernels.cuda.jit import device_function
from fastreg_kernels.cuda.lanes import element, lanes, load, set_element, store


def grid_stride(dtype: str, on_pack: Any, on_element: Any, at_once: int) -> Any:
    """A device function `(state, x, head, packs, out, a, b)` that visits what belongs to the calling thread.

    The threads stride over the packs of 16 bytes in x, and then one by one over the elements before the first multiple
    of 16 bytes and after the last whole pack, the edges.

    Parameters
    ----------
    dtype : str
    on_pack, on_element : device functions
        `on_pack(state, pack, out, i, a, b)` and `on_element(state, v, out, i, a, b)` give the next state, i being the
        index of the first element of the pack, or of the element.
    at_once : {1, 2}
        Packs that a thread loads before it uses the first. Two fit into 32 registers, unless it sums and writes.
    """
    width = lanes(dtype)

    @device_function
    def stride(state, x, head, packs, out, a, b):
        # Indices count elements, not packs: that is one multiplication and two registers less in the loop.
        i, end = head + np.int64(cuda.grid(1)) * width, head + packs * width
        step = np.int64(cuda.gridsize(1)) * width
        if at_once == 2:
            while i + step < end:
                first, second = load(x, i), load(x, i + step)
                state = on_pack(state, first, out, i, a, b)
                state = on_pack(state, second, out, i + step, a, b)
                i += 2 * step
            if i < end:
                state = on_pack(state, load(x, i), out, i, a, b)
        else:
            while i < end:
                state = on_pack(state, load(x, i), out, i, a, b)
                i += step
        edge = np.int64(cuda.grid(1))
        while edge < x.size - packs * width:
            i = edge if edge < head else edge + packs * width
            state = on_element(state, element(x, i), out, i, a, b)
            edge += np.int64(cuda.gridsize(1))
        return state

    return stride


def elementwise(dtype: str, of_pack: Any, of_element: Any) -> Any:
    """A `grid_stride` that writes `of_pack(pack, a, b)` or `of_element(v, a, b)` to the same place in `out`."""

    @device_function
    def on_pack(state, pack, out, i, a, b):
        store(out, i, of_pack(pack, a, b))
        return state

    @device_function
    def on_element(state, v, out, i, a, b):
        set_element(out, i, of_element(v, a, b))
        return state

    return grid_stride(dtype, on_pack, on_element, at_once=2)
