"""What `info` reports, and the table that the command line prints of it."""

import argparse
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg
from fastreg import _info, _timings

KEYS = {"versions", "cpu", "cpu_features", "gpus", "threading_layer", "threads", "serial_reason", "bridge", "crossover"}
KEYS |= {"native_obstacle", "gpu_crossover", "xla_obstacle", "gpu_obstacle", "choices", "kernel_calls", "buffer_bytes"}
KEYS.add("kernel_cache")


def test_contents():
    info = fastreg.info()
    assert set(info) == KEYS
    assert json.loads(json.dumps(info)) == info  # plain values only, for bug reports
    assert info["versions"]["fastreg"] == fastreg.__version__
    assert info["versions"]["tensorflow"] == tf.__version__
    assert info["versions"]["keras"] == keras.__version__
    assert info["versions"]["numpy"] == np.__version__
    assert info["threading_layer"] in ("tbb", "omp", "workqueue")
    assert 1 <= info["threads"] <= 1024
    assert info["threads"] == 1 or info["serial_reason"] is None
    assert info["cpu_features"] == sorted(set(info["cpu_features"]))
    assert len(info["gpus"]) == len(tf.config.list_physical_devices("GPU"))


@pytest.mark.parametrize("name", ["native", "py_function"])
def test_kernel_calls_and_choices_count(gradient, name):
    def choices():
        return {(entry["bridge"], entry["reason"]): entry["count"] for entry in fastreg.info()["choices"]}

    fastreg.set_bridge(name)
    calls, before = fastreg.info()["kernel_calls"], choices()
    for _ in range(3):
        gradient(fastreg.L2(), tf.ones(3))
    # At most two gradients of their own; then one read for both.
    assert 3 <= fastreg.info()["kernel_calls"] - calls <= 5
    forced = (name, "set_bridge")
    assert choices()[forced] == before.get(forced, 0) + 3
    traced = tf.function(fastreg.L2())
    calls = fastreg.info()["kernel_calls"]
    for _ in range(3):
        traced(tf.ones(3))
    assert fastreg.info()["kernel_calls"] == calls + 3
    assert choices()[forced] == before.get(forced, 0) + 4  # once for the trace

    fastreg.set_bridge("auto")
    fastreg.set_crossover(1234)
    fastreg.L2()(tf.ones(3))
    assert ("tensorflow", "fewer than 1,234 elements") in choices()
    counts = [entry["count"] for entry in fastreg.info()["choices"]]
    assert counts == sorted(counts, reverse=True)


def test_buffers_are_reported(gradient, forced):
    fastreg.clear_buffers()
    assert fastreg.info()["buffer_bytes"] == 0
    gradient(fastreg.L2(), tf.ones(100_000))
    assert 400_000 <= fastreg.info()["buffer_bytes"] < 1_000_000
    fastreg.clear_buffers()
    assert fastreg.info()["buffer_bytes"] == 0


def test_the_table(capsys):
    fastreg.set_crossover(1_234_567)
    assert _info.run(argparse.Namespace(cuda_audit=False, timings=False)) == 0
    printed = capsys.readouterr().out
    for text in (fastreg.__version__, tf.__version__, "kernel calls", "1,234,567", fastreg.info()["threading_layer"]):
        assert text in printed


def test_timings(capsys, monkeypatch):
    """Of this process, and of new ones: the first with nothing compiled."""
    cold = _timings.FirstUse(0.25, 12.0, {"fastreg_kernels.cpu.penalty.sums": 7.5})
    warm, seen = _timings.FirstUse(0.375, 0.0625, {}), []
    monkeypatch.setattr(_timings.jit, "timings", lambda: {"a.kernel": 1.5, "another.kernel": 2.0})
    monkeypatch.setattr(
        _timings, "first_use", lambda **environment: seen.append(environment) or (warm, cold)[bool(environment)]
    )
    assert _info.run(argparse.Namespace(cuda_audit=False, timings=True)) == 0
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in capsys.readouterr().out.splitlines()]
    for row in (
        ["compiling, in this process", "3.500"],
        ["a.kernel", "1.500"],
        ["import of fastreg, after TensorFlow and Keras", "0.375"],
        ["first penalty and gradient, kernels compiled before", "0.062"],
        ["first penalty and gradient, nothing compiled before", "12.000"],
        ["fastreg_kernels.cpu.penalty.sums", "7.500"],
    ):
        assert row in rows
    assert [set(environment) for environment in seen] == [{"NUMBA_CACHE_DIR"}, set(), set()]


def test_first_uses_are_timed_in_new_processes(tmp_path):
    cold = _timings.first_use(NUMBA_CACHE_DIR=str(tmp_path))
    warm = _timings.first_use(NUMBA_CACHE_DIR=str(tmp_path))
    assert warm.compiled == {}
    assert {
        f"fastreg._bridges.native.{name}" for name in ("shapes.scalar", "penalty_kernels.gradient.<locals>.compute")
    } <= set(cold.compiled)
    assert 0 < sum(cold.compiled.values()) < cold.penalty
    with pytest.raises(RuntimeError, match="FASTREG_BRIDGE"):
        _timings.first_use(FASTREG_BRIDGE="wrong")


@pytest.fixture
def model():
    stack = [
        keras.layers.Dense(8, kernel_regularizer=fastreg.L2(0.1), bias_regularizer=keras.regularizers.L1(0.1)),
        keras.layers.Dense(4, kernel_regularizer=fastreg.L1(0.1), activity_regularizer=fastreg.L2(0.1)),
        keras.layers.Dense(4, kernel_regularizer=fastreg.L1(0.1), name="frozen"),
    ]
    stack[2].trainable = False
    return keras.Sequential([keras.Input((6,)), *stack])


def test_inspect_lists_what_is_penalised(model):
    rows = fastreg.inspect(model)
    first, second = model.layers[:2]
    assert [(row.path, row.kind, row.size, row.dtype) for row in rows] == [
        (first.kernel.path, "weight", 48, "float32"),
        (first.bias.path, "weight", 8, "float32"),
        (second.kernel.path, "weight", 32, "float32"),
        (second.path, "activity", None, "float32"),
    ]
    assert [row.regularizer for row in rows][:2] == [first.kernel_regularizer, first.bias_regularizer]
    assert [row.bridge for row in rows] == ["native", "keras", "native", "native"]
    assert [row.reason for row in rows] == ["any size", "not a regularizer of fastreg", "any size", "any size"]
    fastreg.set_crossover(40)
    rows = fastreg.inspect(model)
    assert [row.bridge for row in rows] == ["native", "keras", "tensorflow", "dynamic"]
    assert [row.reason for row in rows] == [
        "40 elements or more",
        "not a regularizer of fastreg",
        "fewer than 40 elements",
        "decided at run time: native from 40 elements on",
    ]
    fastreg.set_bridge("tensorflow")
    assert [row.bridge for row in fastreg.inspect(model)] == ["tensorflow", "keras", "tensorflow", "tensorflow"]
    model.layers[2].trainable = True
    assert fastreg.inspect(model)[3].path == model.layers[2].kernel.path


@pytest.mark.parametrize("name", ["native", "py_function"])
def test_inspect_foresees_what_fit_does(model, name, request):
    if name == "py_function":
        request.getfixturevalue("without_native_ops")
    fastreg.set_crossover(40)
    model.compile("sgd", "mse", jit_compile=False)
    expected = [row.bridge for row in fastreg.inspect(model)].count(name)
    calls = fastreg.info()["kernel_calls"]
    model.fit(np.ones((4, 6)), np.ones((4, 4)), batch_size=4, verbose=0)
    assert expected == 1
    assert fastreg.info()["kernel_calls"] == calls + 2 * expected  # one value and one gradient; 16 outputs are too few


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"run_eagerly": True}], ids=["xla", "eager"])
def test_inspect_knows_how_the_model_was_compiled(options, without_native_ops):
    """XLA leaves no place for a callback; eagerly, kernels are worth it from another size on."""
    sizes = fastreg.info()["crossover"]
    rows = sizes["graph"] // 8 + (1 if "jit_compile" in options else -1)
    assert sizes["eager"] < 8 * rows
    layer = keras.layers.Embedding(rows, 8, embeddings_regularizer=fastreg.L2(0.1))
    model = keras.Sequential([keras.Input((2,), dtype="int32"), layer, keras.layers.Flatten()])
    model.compile("sgd", "mse", **options)
    (row,) = fastreg.inspect(model)
    calls = fastreg.info()["kernel_calls"]
    model.fit(np.zeros((1, 2), "int32"), np.ones((1, 16)), verbose=0)
    assert (row.bridge == "py_function") == (fastreg.info()["kernel_calls"] > calls)


@pytest.mark.parametrize("jit_compile", [True, False], ids=["xla", "graph"])
def test_inspect_knows_of_native_ops_how_the_model_was_compiled(model, jit_compile):
    """XLA has no kernel for them."""
    model.compile("sgd", "mse", jit_compile=jit_compile)
    calls = fastreg.info()["kernel_calls"]
    served = [row.bridge for row in fastreg.inspect(model) if row.bridge != "keras"]
    model.fit(np.ones((4, 6)), np.ones((4, 4)), verbose=0)
    assert served == (["tensorflow"] * 3 if jit_compile else ["native"] * 3)
    assert (fastreg.info()["kernel_calls"] > calls) == (not jit_compile)


def test_inspect_counts_shared_layers_once():
    x = keras.Input((6,))
    shared = keras.layers.Dense(6, kernel_regularizer=fastreg.L2(0.1))
    assert [row.path for row in fastreg.inspect(keras.Model(x, shared(shared(x))))] == [shared.kernel.path]


def test_inspect_under_a_mixed_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    layer = keras.layers.Dense(2, kernel_regularizer=fastreg.L2(0.1), activity_regularizer=fastreg.L1(0.1))
    weight, activity = fastreg.inspect(keras.Sequential([keras.Input((3,)), layer]))
    assert (weight.dtype, activity.dtype) == ("float32", "bfloat16")
