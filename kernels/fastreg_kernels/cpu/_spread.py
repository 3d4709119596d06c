"""How compiled code calls compiled code on Numba's threads.

Numba's own `prange` makes a kernel of its own of every loop, which costs half a second of compiling each, and takes the
lock of the interpreter to start it, in vain where another thread computes in Python. Here the entry of the threading
layer behind it, the same in all layers, gets a function that calls a task.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing import signature
from numba.extending import intrinsic

from fastreg_kernels import _threads

_WORD = ir.IntType(types.intp.bitwidth)
_BYTES = ir.IntType(8).as_pointer()
_THREADS, _PIECES, _ARGUMENTS, _FAILED = range(4)
"""What threads know of a call, in this order."""


def spreading(task: Any) -> Any:
    """A function for compiled code, `on_threads(threads, pieces, cells, arguments)`, that calls a compiled function
    `task(first, last, *arguments)` for equal parts of the pieces, one part for each thread.

    It returns whether a part failed. `cells` is what `fastreg_kernels._threads` has published.
    """

    def parts(begin: Any, count: Any, threads: Any, pieces: Any, arguments: Any) -> None:
        for t in range(begin, begin + count):
            task(t * pieces // threads, (t + 1) * pieces // threads, *arguments)

    def worker(context: Any, builder: Any, of_parts: Any, call_type: Any) -> Any:
        """A function as the threading layer calls it, for some of the parts."""
        compiled = context.compile_subroutine(builder, parts, of_parts, caching=False)
        words = _WORD.as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [_BYTES.as_pointer(), words, words, _BYTES])
        function = ir.Function(builder.module, function_type, builder.module.get_unique_name("fastreg_parts"))
        function.linkage = "internal"
        starts, counts, _, data = function.args
        inside = ir.IRBuilder(function.append_basic_block())
        begin, count = inside.ptrtoint(inside.load(starts), _WORD), inside.load(counts)
        call = inside.bitcast(data, call_type.as_pointer())
        known = [inside.load(cgutils.gep_inbounds(inside, call, 0, i)) for i in (_THREADS, _PIECES, _ARGUMENTS)]
        status, _ = context.call_internal_no_propagate(inside, compiled.fndesc, of_parts, [begin, count, *known])
        with cgutils.if_unlikely(inside, status.is_error):
            inside.store(_WORD(1), cgutils.gep_inbounds(inside, call, 0, _FAILED))
        inside.ret_void()
        return function

    @intrinsic  # type: ignore[untyped-decorator]
    def on_threads(typingctx: Any, threads: Any, pieces: Any, cells: Any, arguments: Any) -> Any:
        of_parts = signature(types.none, *[types.intp] * 4, arguments)

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            threads, pieces, cells_value, arguments_value = values
            call_type = ir.LiteralStructType([_WORD, _WORD, arguments_value.type, _WORD])
            call = cgutils.alloca_once(builder, call_type)
            for i, value in enumerate((threads, pieces, arguments_value, _WORD(0))):
                builder.store(value, cgutils.gep_inbounds(builder, call, 0, i))
            published = context.make_array(cells)(context, builder, cells_value).data

            def layer(index: int, result: Any, *arguments: Any) -> Any:
                address = builder.load(builder.gep(published, [_WORD(index)]))
                return builder.inttoptr(address, ir.FunctionType(result, arguments).as_pointer())

            # The layer thinks of one array of bytes, at address 0, of which a thread gets where its part begins.
            starts = cgutils.alloca_once_value(builder, _WORD(0).inttoptr(_BYTES))
            counts, strides = (cgutils.alloca_once_value(builder, n) for n in (threads, _WORD(1)))
            work = (
                worker(context, builder, of_parts, call_type),
                starts,
                counts,
                strides,
                builder.bitcast(call, _BYTES),
            )
            with builder.if_else(builder.icmp_signed("==", threads, _WORD(1))) as (alone, together):
                with alone:
                    builder.call(work[0], work[1:])
                with together:
                    parallel_for = layer(_threads.PARALLEL_FOR, ir.VoidType(), *[_BYTES] * 5, *[_WORD] * 3)
                    own = builder.call(layer(_threads.GET_NUMBER, _WORD), [])
                    pointers = [builder.bitcast(pointer, _BYTES) for pointer in work]
                    builder.call(parallel_for, [*pointers, _WORD(0), _WORD(1), threads])
                    # Some layers leave the calling thread with the number of threads of the loop.
                    builder.call(layer(_threads.SET_NUMBER, ir.VoidType(), _WORD), [own])
            failed = builder.load(cgutils.gep_inbounds(builder, call, 0, _FAILED))
            return builder.icmp_signed("!=", failed, _WORD(0))

        return types.boolean(types.intp, types.intp, cells, arguments), codegen

    return on_threads
