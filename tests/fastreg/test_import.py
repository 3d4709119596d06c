"""Importing the package: what it offers, what it needs, and what it refuses."""

import importlib.metadata
import re

import fastreg


def test_public_names():
    assert len(set(fastreg.__all__)) == len(fastreg.__all__)  # ruff keeps them in its order
    for name in fastreg.__all__:
        assert getattr(fastreg, name) is not None
    functions = ("l1", "l2", "l1_l2", "l1_l2_penalty", "accelerate", "to_keras", "inspect", "info")
    for name in ("L1", "L2", "L1L2", "Embedding", "LazyRegularization", *functions):
        assert name in fastreg.__all__
        assert getattr(fastreg, name).__doc__


def test_version():
    assert fastreg.__version__ == importlib.metadata.version("fastreg-keras")
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", fastreg.__version__)


def test_another_backend_is_refused_first(run_python, tmp_path):
    """Keras on JAX or PyTorch has no TensorFlow tensors to hand over; the error says what to do instead."""
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "__init__.py").write_text("from keras import backend\n")
    (tmp_path / "keras" / "backend.py").write_text("def backend():\n    return 'jax'\n")
    program = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        try:
            import fastreg
        except ImportError as error:
            print(type(error).__name__, error, [name in sys.modules for name in ("tensorflow", "numba")])
    """
    printed = run_python(program, fresh=True)
    assert "ImportError fastreg supports Keras's TensorFlow backend only" in printed
    assert "KERAS_BACKEND=tensorflow" in printed
    assert "'jax'" in printed
    assert "[False, False]" in printed


def test_importing_has_no_side_effects(run_python):
    """No output, no kernel compiled or run, no change to TensorFlow's or NumPy's settings, no GPU touched."""
    printed = run_python(
        """
        import sys, warnings
        warnings.simplefilter("error", append=True)
        import keras, numpy as np, tensorflow as tf
        before = (np.geterr(), tf.config.get_soft_device_placement(), keras.config.dtype_policy().name,
                  tf.config.threading.get_intra_op_parallelism_threads(), sorted(keras.saving.get_custom_objects()))
        warnings.filterwarnings("error", module="fastreg")
        import fastreg
        after = (np.geterr(), tf.config.get_soft_device_placement(), keras.config.dtype_policy().name,
                 tf.config.threading.get_intra_op_parallelism_threads(),
                 sorted(name for name in keras.saving.get_custom_objects() if not name.startswith("fastreg>")))
        assert before == after
        from fastreg_kernels.cpu import jit
        assert jit.timings() == {}
        from numba.core.dispatcher import Dispatcher
        import gc
        ours = [d for d in gc.get_objects() if isinstance(d, Dispatcher) and d.py_func.__module__.startswith("fastreg")]
        assert len(ours) >= 10
        assert not [d.py_func.__name__ for d in ours if d.signatures], "compiled or loaded"
        from llvmlite import binding
        assert binding.address_of_symbol("fastreg_let_go") is None
        assert "numba.np.ufunc.tbbpool" not in sys.modules  # no threads
        assert fastreg.info()["kernel_calls"] == 0
        assert "fastreg.cli" not in sys.modules
        print("done")
        """,
        fresh=True,
    )
    assert printed == "done\n"
