"""The providers: who computes the penalty, in which modes. Command, pytest benchmarks and plots have them from here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import fastreg_kernels
import keras
import numpy as np
import tensorflow as tf

import fastreg
from fastreg._bridges.settings import using
from fastreg_benchmarks.cases import DTYPES, L1, L2, VALUE, Case, Inputs
from fastreg_benchmarks.timing import Run

EAGER, FUNCTION, JIT, DYNAMIC = "eager", "tf.function", "jit", "dynamic"

MODES = (EAGER, FUNCTION, JIT, DYNAMIC)
"""How TensorFlow runs a provider: eagerly, in a `tf.function`, in one that XLA compiles, or in a `tf.function` that is
traced for a tensor of unknown size."""

DEFAULT_MODES = (EAGER, FUNCTION, JIT)

DIRECT = "direct"
"""The mode of a provider that needs no TensorFlow."""

Call = Callable[[], Any]


@dataclass(frozen=True)
class Provider:
    """A way to compute the penalty, and its gradient.

    Attributes
    ----------
    name, description : str
    modes : tuple of str
    build : callable
        `build(inputs, mode)` gives a callable without arguments that computes what the case of the inputs asks for.
    dtypes : tuple of str
    scope : callable
        Gives a context manager in which the callable is to be called.
    read : callable
        What a call returned, as a value and a gradient or None.
    baseline : bool
        Whether others are compared with it.
    accumulates_in_dtype : bool
        Whether its sums are accumulated in the dtype of x, and so are less exact and may overflow.
    """

    name: str
    description: str
    modes: tuple[str, ...]
    build: Callable[[Inputs, str], Call]
    dtypes: tuple[str, ...] = DTYPES
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext
    read: Callable[[Any], tuple[Any, Any]] = lambda result: (result[0], result[1])
    baseline: bool = False
    accumulates_in_dtype: bool = False

    def run(self, inputs: Inputs, mode: str) -> Run:
        """The provider, ready to be timed on these inputs."""
        return Run(self.build(inputs, mode), self.scope)


def _regularized(make: Callable[[float, float], Any], inputs: Inputs, mode: str) -> Call:
    """A training step's part of the work: the penalty of a variable, and its gradient where the case asks for one."""
    regularizer = make(L1, L2)
    differentiate = inputs.case.what != VALUE

    def step(weight: Any, watched: Any) -> tuple[Any, Any]:
        if not differentiate:
            return regularizer(weight), None
        with tf.GradientTape() as tape:
            tape.watch(watched)
            penalty = regularizer(weight)
        return penalty, tape.gradient(penalty, watched)

    variable = inputs.variable
    if mode == DYNAMIC:
        signature = [tf.TensorSpec([None], inputs.case.dtype)]
        function = tf.function(lambda x: step(x, x), input_signature=signature)
        return partial(function, tf.convert_to_tensor(variable))
    if mode == EAGER:
        return lambda: step(variable, variable.value)
    return tf.function(lambda: step(variable, variable.value), jit_compile=mode == JIT)  # type: ignore[no-any-return]


def _kernel(inputs: Inputs, mode: str) -> Call:  # noqa: ARG001
    x = inputs.x
    if inputs.case.what == VALUE:
        return lambda: (fastreg_kernels.forward(x), None)
    out = inputs.out
    return lambda: fastreg_kernels.forward_backward(x, L1, L2, out=out)


def _kernel_result(result: Any) -> tuple[Any, Any]:
    (sum_abs, sum_sq), gradient = result
    return L1 * sum_abs + L2 * sum_sq, gradient


def _numpy(inputs: Inputs, mode: str) -> Call:  # noqa: ARG001
    x, differentiate = inputs.x, inputs.case.what != VALUE
    # In the dtype of x: NumPy would compute with a float64 factor otherwise.
    l1, l2, twice_l2 = (x.dtype.type(factor) for factor in (L1, L2, 2 * L2))

    def penalty() -> tuple[Any, Any]:
        value = l1 * np.abs(x).sum() + l2 * np.square(x).sum()
        return value, l1 * np.sign(x) + twice_l2 * x if differentiate else None

    return penalty


_BUILD_FASTREG = partial(_regularized, fastreg.L1L2)

PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider(
            "keras",
            "keras.regularizers.L1L2",
            MODES,
            partial(_regularized, keras.regularizers.L1L2),
            baseline=True,
            accumulates_in_dtype=True,
        ),
        Provider("fastreg", "fastreg.L1L2", MODES, _BUILD_FASTREG, scope=partial(using, "auto")),
        Provider(
            "fastreg-native",
            "fastreg.L1L2 with the bridge 'native', whatever the size",
            (EAGER, FUNCTION, DYNAMIC),  # XLA has no kernel for native ops
            _BUILD_FASTREG,
            scope=partial(using, "native"),
        ),
        Provider(
            "fastreg-callback",
            "fastreg.L1L2 with the bridge 'py_function', whatever the size",
            (EAGER, FUNCTION, DYNAMIC),  # XLA refuses callbacks
            _BUILD_FASTREG,
            scope=partial(using, "py_function"),
        ),
        Provider(
            "fastreg-ops",
            "fastreg.L1L2 with the bridge 'tensorflow', whatever the size",
            MODES,
            _BUILD_FASTREG,
            scope=partial(using, "tensorflow"),
            accumulates_in_dtype=True,
        ),
        Provider(
            "kernel",
            "the kernels on NumPy arrays, with a gradient buffer that is used again",
            (DIRECT,),
            _kernel,
            dtypes=fastreg_kernels.DTYPES,
            read=_kernel_result,
        ),
        Provider(
            "numpy",
            "the formulas in NumPy",
            (DIRECT,),
            _numpy,
            dtypes=("float32", "float64"),  # NumPy emulates the half types
            accumulates_in_dtype=True,
        ),
    )
}
"""Every provider, by name."""


def plan(case: Case, names: Sequence[str], modes: Sequence[str]) -> list[tuple[Provider, str]]:
    """The providers and modes, of these, that can compute a case."""
    chosen = [PROVIDERS[name] for name in names]
    return [
        (provider, mode)
        for provider in chosen
        if case.dtype in provider.dtypes
        for mode in provider.modes
        if mode in modes or mode == DIRECT
    ]
