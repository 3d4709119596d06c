"""The kernels stand alone: they need NumPy and Numba."""

WITHOUT = """
import sys

refused = {"tensorflow", "keras", "fastreg", "jax", "torch"}


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Refuse())
try:
    import tensorflow
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("tensorflow was found all the same")

import numpy as np
import fastreg_kernels

x = np.array([[1.0, -2.0], [3.0, 0.0]], np.float32)
sums, gradient = fastreg_kernels.forward_backward(x, 0.5, 0.25)
assert fastreg_kernels.forward(x).tolist() == sums.tolist() == [6.0, 14.0]
assert fastreg_kernels.backward(x, 0.5, 0.25).tolist() == gradient.tolist() == [[1.0, -1.5], [2.0, 0.0]]
assert fastreg_kernels.shrink(x, [1.0, 0.5], 0.5).tolist() == [[0.5, -1.5], [1.0, 0.0]]
print(sorted(refused & {name.partition(".")[0] for name in sys.modules}))
"""


def test_kernels_run_without_any_framework(run_python):
    assert run_python(WITHOUT).strip() == "[]"


def test_importing_compiles_nothing_and_starts_no_threads(run_python):
    code = """
    import sys
    import threading
    from pathlib import Path
    import numba
    import fastreg_kernels

    modules = [module for name, module in sys.modules.items() if name.startswith("fastreg_kernels.cpu.")]
    kernels = [value for module in modules for value in vars(module).values() if hasattr(value, "signatures")]
    assert len(kernels) >= 9
    print(sum(len(kernel.signatures) for kernel in kernels), threading.active_count())
    try:
        print(numba.threading_layer())
    except ValueError:
        print("no layer")
    """
    assert run_python(code).split("\n")[:2] == ["0 1", "no layer"]


def test_public_names(run_python):
    code = "import fastreg_kernels as k; print(all(hasattr(k, name) for name in k.__all__), *sorted(k.__all__))"
    names = "DTYPES backward forward forward_backward get_num_threads lookup_rows set_num_threads shrink sum_rows"
    assert run_python(code).split() == ["True", *names.split(), "threading_layer", "update_dense", "update_rows"]
