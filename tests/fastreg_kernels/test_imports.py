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
    import threading
    from pathlib import Path
    import numba
    import fastreg_kernels
    from fastreg_kernels import cpu

    kernels = [value for value in vars(cpu).values() if hasattr(value, "signatures")]
    assert len(kernels) > 10
    print(sum(len(kernel.signatures) for kernel in kernels), threading.active_count())
    try:
        print(numba.threading_layer())
    except ValueError:
        print("no layer")
    """
    assert run_python(code).split("\n")[:2] == ["0 1", "no layer"]


def test_public_names(run_python):
    code = "import fastreg_kernels as k; print(all(hasattr(k, name) for name in k.__all__), *sorted(k.__all__))"
    names = "DTYPES backward forward forward_backward get_num_threads set_num_threads shrink threading_layer"
    assert run_python(code).split() == ["True", *names.split()]


def test_cuda_packages_are_not_needed_and_not_imported(run_python):
    code = """
    import sys
    import fastreg_kernels

    # What starts with Python itself, by a .pth file of NVIDIA's, is the empty namespace `cuda`.
    print([name for name in sys.modules if name.startswith(("numba_cuda", "numba.cuda", "cuda.", "nvidia"))])
    """
    assert run_python(code).strip() == "[]"


def test_cuda_without_numba_cuda_says_what_to_install(run_python):
    code = """
    import importlib.util
    import fastreg_kernels

    find_spec = importlib.util.find_spec
    importlib.util.find_spec = lambda name, package=None: None if name == "numba_cuda" else find_spec(name, package)
    try:
        import fastreg_kernels.cuda
    except ModuleNotFoundError as error:
        print(error.name, error)
    """
    assert run_python(code).startswith("numba_cuda fastreg_kernels.cuda needs numba-cuda: pip install")
