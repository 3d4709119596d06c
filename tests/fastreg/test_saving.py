"""Saving and loading: every format, in this process and in one that never heard of fastreg."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import fastreg
from fastreg._bridges import settings

X = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")


def make(penalties=fastreg):
    """A trained model with each class, on weights and on outputs, given as objects and in nested layers."""
    keras.utils.set_random_seed(1)
    first = layers.Dense(5, "tanh", kernel_regularizer=penalties.L1L2(0.25, 0.125), bias_regularizer=penalties.L1(0.5))
    inner = layers.Dense(4, kernel_regularizer=penalties.L2(0.5), activity_regularizer=penalties.L2(0.25))
    model = keras.Sequential([keras.Input((6,)), first, keras.Sequential([inner]), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01, momentum=0.5), keras.losses.MeanSquaredError(), jit_compile=False)
    model.fit(X, X[:, :1], epochs=2, verbose=0)
    return model


def regularizers_of(model):
    names = ("kernel_regularizer", "bias_regularizer", "activity_regularizer")
    found = [getattr(layer, name, None) for layer in model._flatten_layers() for name in names]
    return [(type(regularizer), regularizer.get_config()) for regularizer in found if regularizer is not None]


def assert_equal_models(loaded, model):
    assert regularizers_of(loaded) == regularizers_of(model)
    assert len(regularizers_of(loaded)) == 4
    for ours, theirs in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(loaded(X), model(X))
    np.testing.assert_allclose([float(v) for v in loaded.losses], [float(v) for v in model.losses], rtol=1e-6)


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_whole_models(bridge, tmp_path, name):
    model = make()
    model.save(tmp_path / name)
    loaded = keras.models.load_model(tmp_path / name)
    assert_equal_models(loaded, model)
    loaded.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    calls = bridge.kernel_calls()
    loaded.fit(X, X[:, :1], verbose=0)
    assert bridge.kernel_calls() > calls


def test_training_goes_on_after_loading(bridge, tmp_path):
    """Compiled state included."""
    model = make()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    histories = [m.fit(X, X[:, :1], epochs=5, verbose=0, shuffle=False).history["loss"] for m in (model, loaded)]
    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-6)
    assert int(loaded.optimizer.iterations) == 7


def test_weights_move_between_keras_and_fastreg(bridge, tmp_path):
    ours, theirs = make(), make(keras.regularizers)
    for saved, other in ((ours, theirs), (theirs, ours)):
        saved.save_weights(tmp_path / "model.weights.h5")
        other.set_weights([np.zeros_like(weight) for weight in other.get_weights()])
        other.load_weights(tmp_path / "model.weights.h5")
        for one, two in zip(ours.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)


def test_configurations(bridge):
    model = make()
    for copied in (
        keras.models.model_from_json(model.to_json()),
        keras.Sequential.from_config(model.get_config()),
        keras.models.clone_model(model),
    ):
        copied.set_weights(model.get_weights())
        assert_equal_models(copied, model)


def test_configurations_of_keras_and_fastreg_differ_in_names_only():
    ours, theirs = (json.loads(make(penalties).to_json()) for penalties in (fastreg, keras.regularizers))

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in ("module", "registered_name", "name", "dtype")}
        return [plain(entry) for entry in value] if isinstance(value, list) else value

    assert plain(ours["config"]) == plain(theirs["config"])


def test_checkpoints(bridge, tmp_path):
    model, other = make(), make()
    other.set_weights([weight + 1 for weight in other.get_weights()])
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(model=other, optimizer=other.optimizer).restore(path).assert_existing_objects_matched()
    assert_equal_models(other, model)


def test_a_traced_model_without_a_tape_has_no_kernels(operations):
    """So that it can be converted for other runtimes, as one with Keras's regularizers can."""
    fastreg.set_bridge("auto")
    traced = tf.function(make()).get_concrete_function(tf.TensorSpec([None, 6]))
    assert not [name for name in operations(traced.graph) if name == "EagerPyFunc" or name.startswith("Fastreg")]
    assert tf.lite.TFLiteConverter.from_concrete_functions([traced]).convert()


def test_concrete_functions_of_kernels_are_not_saved(forced, tmp_path):
    """Elsewhere they could not be loaded; a `tf.function` is traced anew when it is saved."""
    module, penalty = tf.Module(), tf.function(fastreg.L2(0.5), input_signature=[tf.TensorSpec([3])])
    module.penalty = penalty.get_concrete_function()
    assert module.penalty(tf.ones(3)) == 1.5
    with pytest.raises(ValueError, match="which no other process has"):
        tf.saved_model.save(module, tmp_path / "saved")
    module.penalty = penalty
    with pytest.warns(RuntimeWarning, match="saved"):
        tf.saved_model.save(module, tmp_path / "saved")
    assert tf.saved_model.load(tmp_path / "saved").penalty(tf.constant([1.0, 2.0, 3.0])) == 7.0


@pytest.mark.parametrize("keeps_gradients", [True, False])
def test_gradients_of_saved_penalties(bridge, tmp_path, keeps_gradients, caplog):
    """TensorFlow's own: nothing for it to warn of."""
    module = tf.Module()
    module.penalty = tf.function(fastreg.L1L2(0.25, 0.5), input_signature=[tf.TensorSpec([3])])
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=keeps_gradients)
    with bridge.falls_back("saved"):
        tf.saved_model.save(module, tmp_path / "saved", options=options)
    x = tf.constant([1.0, -2.0, 0.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.saved_model.load(tmp_path / "saved").penalty(x)
    np.testing.assert_allclose(value, 0.25 * 3 + 0.5 * 5)
    np.testing.assert_allclose(tape.gradient(value, x), [1.25, -2.25, 0.0])
    assert "gradient" not in caplog.text


ELSEWHERE = """
    import json, sys, warnings
    warnings.simplefilter("ignore")
    import keras, numpy as np, tensorflow as tf
    folder, results = sys.argv[1], {}
    x = np.load(folder + "/x.npy")
    for name in ("model.keras", "model.h5"):
        for known in (False, True):
            if known:
                import fastreg
            assert ("fastreg" in sys.modules) == known
            model = keras.models.load_model(folder + "/" + name)
            kinds = [type(layer.kernel_regularizer) for layer in model._flatten_layers()
                     if getattr(layer, "kernel_regularizer", None)]
            results[f"{name} {known}"] = [f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in kinds]
            results[f"{name} {known} outputs"] = np.asarray(model(x)).ravel().tolist()
            results[f"{name} {known} losses"] = [float(loss) for loss in model.losses]
        for module in [name for name in sys.modules if name.split(".")[0] == "fastreg"]:
            del sys.modules[module]
        for key in [key for key in keras.saving.get_custom_objects() if key.startswith("fastreg>")]:
            del keras.saving.get_custom_objects()[key]
    for name in ("exported", "module"):
        served = tf.saved_model.load(folder + "/" + name)
        results[name] = np.asarray((served.serve if name == "exported" else served)(x)).ravel().tolist()
    print("RESULTS" + json.dumps(results))
"""


def test_in_a_process_without_fastreg(forced, tmp_path, run_python):
    """Keras's own class of the same name takes over, or fastreg's if it is imported; exported models need neither."""
    model = make()
    model.predict(X, verbose=0)  # so that there are traces with callbacks before exporting
    model.save(tmp_path / "model.keras")
    model.save(tmp_path / "model.h5")
    np.save(tmp_path / "x.npy", X)

    class Module(tf.Module):
        def __init__(self):
            self.weight = tf.Variable(X)

        @tf.function(input_signature=[tf.TensorSpec([None, 6], tf.float32)])
        def __call__(self, x):
            return fastreg.L2(0.5)(x) + fastreg.L1(0.5)(self.weight)

    with pytest.warns(RuntimeWarning, match="saved"):
        model.export(tmp_path / "exported", verbose=False)
    settings._warned.clear()
    module = Module()
    module(X)
    with pytest.warns(RuntimeWarning, match="saved"):
        tf.saved_model.save(module, str(tmp_path / "module"))
    results = json.loads(run_python(ELSEWHERE, tmp_path).split("RESULTS")[1])
    outputs, losses = model(X).numpy().ravel(), [float(loss) for loss in model.losses]
    for name in ("model.keras", "model.h5"):
        for known, package in ((False, "keras"), (True, "fastreg")):
            assert results[f"{name} {known}"] == [f"{package}.L1L2", f"{package}.L2"]
            np.testing.assert_allclose(results[f"{name} {known} outputs"], outputs, rtol=1e-5)
            np.testing.assert_allclose(results[f"{name} {known} losses"], losses, rtol=1e-5)
    np.testing.assert_allclose(results["exported"], outputs, rtol=1e-5)
    np.testing.assert_allclose(results["module"], 0.5 * np.square(X).sum() + 0.5 * np.abs(X).sum(), rtol=1e-5)
