"""Files hold true weights; whoever goes on from one, in this process or another, goes on with the same bits."""

import copy
import json
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

import fastreg
from fastreg._tables.table import LazyTable

OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 20, 0.9)),
    "adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "adam": lambda: keras.optimizers.Adam(0.01),
}


def compiled(lazy, name):
    optimizer = fastreg.LazyRegularization(OPTIMIZERS[name](), rowwise=name == "adagrad")
    return lazy.compiled(fastreg.L1L2(1e-3, 0.01), optimizer)


def fit(model, data, **options):
    x, y = data
    return model.fit(x, y, batch_size=8, shuffle=False, verbose=0, **options).history["loss"]


def state(model):
    return [*model.get_weights(), *(np.array(variable) for variable in model.optimizer.variables)]


def assert_equal_bits(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


ELSEWHERE = """
    import sys
    import keras, numpy as np
    import fastreg
    folder = sys.argv[1]
    data = np.load(folder + "/data.npz")
    for name in sys.argv[2:]:
        model = keras.models.load_model(f"{folder}/{name}.keras")
        losses = model.fit(data["x"], data["y"], batch_size=8, shuffle=False, verbose=0, epochs=3).history["loss"]
        values = [*model.get_weights(), *(np.array(variable) for variable in model.optimizer.variables)]
        np.savez(f"{folder}/{name}.npz", *values, losses=losses)
"""


def test_going_on_after_saving_and_in_another_process(lazy, tmp_path, run_python):
    data = lazy.data()
    np.savez(tmp_path / "data.npz", x=data[0], y=data[1])
    here = {}
    for name in OPTIMIZERS:
        never, saved = compiled(lazy, name), compiled(lazy, name)
        for model in (never, saved):
            fit(model, data, epochs=2)
        saved.save(tmp_path / f"{name}.keras")
        losses = fit(saved, data, epochs=3)
        fit(never, data, epochs=3)
        for ours, theirs in zip(saved.get_weights(), never.get_weights(), strict=True):
            assert lazy.error(ours, theirs) < 1e-6
        here[name] = state(saved), losses
    run_python(ELSEWHERE, tmp_path, *OPTIMIZERS, FASTREG_BRIDGE=fastreg.get_bridge())
    for name, (values, losses) in here.items():
        with np.load(tmp_path / f"{name}.npz") as result:
            assert_equal_bits([result[f"arr_{index}"] for index in range(len(result.files) - 1)], values)
            assert result["losses"].tolist() == losses


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_files_and_checkpoints(lazy, name, tmp_path):
    data = lazy.data()
    model = compiled(lazy, name)
    fit(model, data)
    model.save_weights(tmp_path / "w.weights.h5")
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "checkpoint"))
    fit(model, data)
    for load in (
        lambda other: other.load_weights(tmp_path / "w.weights.h5"),
        lambda other: tf.train.Checkpoint(model=other, optimizer=other.optimizer).restore(path).assert_consumed(),
    ):
        other = compiled(lazy, name)
        other.set_weights([weight + 1 for weight in other.get_weights()])
        fit(other, data)  # so that there is something to be forgotten
        load(other)
        fit(other, data)
        assert_equal_bits(state(other), state(model))


def test_h5_models(lazy, tmp_path):
    """Such a file does not say, in Keras, which variables the optimizer had; compiled again, the model trains on."""
    data = lazy.data()
    optimizer = lambda: fastreg.LazyRegularization("sgd")  # noqa: E731 - one for each model
    model = lazy.compiled(fastreg.L2(0.01), optimizer())
    model.compile(model.optimizer, keras.losses.MeanSquaredError())  # of "mse" Keras cannot load such a file
    fit(model, data)
    model.save(tmp_path / "model.h5")
    again = keras.models.load_model(tmp_path / "model.h5")
    assert_equal_bits(again.get_weights(), model.get_weights())
    assert isinstance(again.layers[1].embeddings, LazyTable)
    assert isinstance(again.optimizer, fastreg.LazyRegularization)
    np.testing.assert_allclose(again.evaluate(*data, verbose=0), model.evaluate(*data, verbose=0), rtol=1e-6)
    again.compile(optimizer(), keras.losses.MeanSquaredError())
    np.testing.assert_allclose(fit(again, data), fit(model, data), rtol=1e-6)
    for ours, theirs in zip(again.get_weights(), model.get_weights(), strict=True):
        assert lazy.error(ours, theirs) < 1e-6  # this format reads true weights, and flushes nothing


def by_json(model):
    return keras.models.model_from_json(model.to_json())  # compiled, as with Keras's layers


def by_config(model):
    copied = type(model).from_config(model.get_config())
    copied.compile_from_config(model.get_compile_config())
    return copied


def by_clone(model):
    copied = keras.models.clone_model(model)
    copied.compile_from_config(model.get_compile_config())
    return copied


COPIES = {
    "pickle": (lambda model: pickle.loads(pickle.dumps(model)), True),
    "deepcopy": (copy.deepcopy, True),
    "json": (by_json, False),
    "config": (by_config, False),
    "clone": (by_clone, False),
}


@pytest.mark.parametrize("way", ["auto"], indirect=True)
def test_copies_train_on(lazy):
    """Of all, state included, or of what a configuration says: that has new weights, and the optimizer starts anew."""
    data = lazy.data()
    never, model, new = (compiled(lazy, "adagrad") for _ in range(3))
    for each in (never, model):
        fit(each, data)
    before = state(model)
    copies = {how: make(model) for how, (make, _) in COPIES.items()}
    for how, copied in copies.items():
        assert copied.layers[1].embeddings is not model.layers[1].embeddings
        assert isinstance(copied.layers[1].embeddings, LazyTable)
        if COPIES[how][1]:
            assert_equal_bits(state(copied), before)
        else:
            assert int(copied.optimizer.iterations) == 0
            copied.set_weights(before[: len(copied.weights)])
    new.set_weights(model.get_weights())
    expected = {True: (fit(model, data), state(model)), False: (fit(new, data), state(new))}
    fit(never, data)
    for ours, theirs in zip(model.get_weights(), never.get_weights(), strict=True):
        assert lazy.error(ours, theirs) < 1e-6
    for how, copied in copies.items():
        losses, values = expected[COPIES[how][1]]
        assert fit(copied, data) == losses
        assert_equal_bits(state(copied), values)


@pytest.mark.parametrize("way", ["auto"], indirect=True)
def test_a_model_that_is_not_built_is_saved(lazy, tmp_path):
    layers = [fastreg.Embedding(23, 5, embeddings_regularizer="l2"), keras.layers.Flatten(), keras.layers.Dense(1)]
    with pytest.warns(UserWarning, match="not yet been built"):  # Keras's own
        keras.Sequential(layers).save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    model.compile(fastreg.LazyRegularization("sgd"), "mse")
    fit(model, lazy.data())
    assert isinstance(model.layers[0].embeddings, LazyTable)


class CrashError(Exception):
    pass


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_backup_and_restore(lazy, name, tmp_path):
    """A run that crashed and was restored is the run that was backed up all along."""

    def backup(folder):
        return keras.callbacks.BackupAndRestore(tmp_path / folder, delete_checkpoint=False)

    def crash(epoch, logs):
        if epoch == 1:
            raise CrashError

    data = lazy.data()
    whole, crashed, restored = (compiled(lazy, name) for _ in range(3))
    fit(whole, data, epochs=4, callbacks=[backup("whole")])
    with pytest.raises(CrashError):
        fit(crashed, data, epochs=4, callbacks=[backup("b"), keras.callbacks.LambdaCallback(on_epoch_begin=crash)])
    fit(restored, data, epochs=4, callbacks=[backup("b")])
    for ours, theirs in zip(state(restored), state(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * max(1e-3, np.abs(theirs).max()))


SERVED = """
    import json, sys
    import numpy as np, tensorflow as tf
    served = tf.saved_model.load(sys.argv[1])
    assert "fastreg" not in sys.modules
    print("RESULTS" + json.dumps(np.asarray(served.serve(np.load(sys.argv[2]))).ravel().tolist()))
"""


def test_export(lazy, tmp_path, run_python):
    data = lazy.data()
    model = compiled(lazy, "sgd")
    fit(model, data)
    table = model.layers[1].embeddings
    stored = table._value.stored()
    model.export(tmp_path / "exported", verbose=False)
    np.save(tmp_path / "x.npy", data[0])
    results = json.loads(run_python(SERVED, tmp_path / "exported", tmp_path / "x.npy").split("RESULTS")[1])
    np.testing.assert_allclose(results, model.predict(data[0], verbose=0).ravel(), rtol=1e-5)
    assert not np.array_equal(stored, table._value.stored())  # flushed, for the file
    fit(model, data)  # goes on


def test_saving_writes_true_weights_and_flushes(lazy, float64):
    plan = lazy.plan(7)
    layer, store = plan.layer(fastreg.L1L2(0.01, 0.1)), {}
    optimizer = lazy.optimizer("sgd")
    for step in range(7):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(tf.constant(plan.ids[step])) * plan.gradients[step]) + sum(layer.losses)
        optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)
    layer.save_own_variables(store)
    assert list(store) == ["0"]
    assert lazy.error(np.array(store["0"]), lazy.oracle(plan, "sgd", [0.25] * 7, 0.01, 0.1)) < 1e-12
    np.testing.assert_array_equal(layer.embeddings._value.stored(), np.array(store["0"]))


def test_what_converters_get(lazy, operations):
    """Keras's exporters to other formats trace the model and freeze its variables, and save nothing."""
    data = lazy.data()
    model = compiled(lazy, "sgd")
    fit(model, data)
    archive, spec = keras.export.ExportArchive(), tf.TensorSpec((None, *data[0].shape[1:]), "int32")
    archive.track(model)
    archive.add_endpoint("serve", model.__call__, [spec])
    function = archive._get_concrete_fn("serve").get_concrete_function(spec)
    assert not [name for name in operations(function.graph) if "Fastreg" in name or "PyFunc" in name]
    served = convert_variables_to_constants_v2(function)(tf.constant(data[0]))
    np.testing.assert_allclose(served[0], model.predict(data[0], verbose=0), rtol=1e-5)
    fit(model, data)  # goes on


def test_litert(lazy, tmp_path):
    data = lazy.data()
    model = compiled(lazy, "sgd")
    fit(model, data)
    model.export(tmp_path / "model.tflite", format="litert", verbose=False)
    interpreter = tf.lite.Interpreter(str(tmp_path / "model.tflite"))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], data[0][:1].astype("int32"))
    interpreter.invoke()
    served = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(served, model.predict(data[0][:1], verbose=0), rtol=1e-5)


def test_onnx(lazy, tmp_path):
    pytest.importorskip("tf2onnx")
    runtime = pytest.importorskip("onnxruntime")
    data = lazy.data()
    model = compiled(lazy, "sgd")
    fit(model, data)
    model.export(tmp_path / "model.onnx", format="onnx", verbose=False)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (served,) = session.run(None, {session.get_inputs()[0].name: data[0].astype(np.int32)})
    np.testing.assert_allclose(served, model.predict(data[0], verbose=0), rtol=1e-5)


def test_a_training_step_is_not_saved(lazy, tmp_path):
    """Elsewhere it could not be loaded, nor could what is saved with it."""
    module, data = tf.Module(), lazy.data()
    model = compiled(lazy, "sgd")
    module.model = model

    @tf.function(input_signature=[tf.TensorSpec((None, *data[0].shape[1:]), "int32")])
    def train(ids):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(ids)) + sum(model.losses)
        model.optimizer.apply(tape.gradient(loss, model.trainable_weights), model.trainable_weights)
        return loss

    train(tf.constant(data[0]))
    before = model.get_weights()
    module.train = train
    with pytest.raises(ValueError, match=r"training step of the .* tables '.*embeddings' cannot be saved"):
        tf.saved_model.save(module, tmp_path / "saved", signatures=train)
    assert_equal_bits(model.get_weights(), before)
    train(tf.constant(data[0]))


def test_concrete_functions_of_kernels_are_not_saved(lazy, tmp_path, way):
    model, data = compiled(lazy, "sgd"), lazy.data()
    fit(model, data)
    inference = tf.function(model, input_signature=[tf.TensorSpec((None, *data[0].shape[1:]), "int32")])
    concrete = inference.get_concrete_function()
    if way == "auto":
        with pytest.raises(ValueError, match="native ops of fastreg's, which no other process has"):
            tf.saved_model.save(model, tmp_path / "saved", signatures=concrete)
    tf.saved_model.save(model, tmp_path / "saved", signatures=inference)
    signature = tf.saved_model.load(tmp_path / "saved").signatures["serving_default"]
    (served,) = signature(tf.constant(data[0], tf.int32)).values()
    np.testing.assert_allclose(served, model.predict(data[0], verbose=0), rtol=1e-5)
