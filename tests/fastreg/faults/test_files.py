"""Files that were cut short, and disks that are full: an exception, and the model is and goes on as before."""

import json
import sys

import pytest

FILES = """
    import json, resource, signal, sys
    from pathlib import Path
    import keras, numpy as np, tensorflow as tf
    import fastreg

    folder = Path(sys.argv[1])
    x, y = np.arange(256).reshape(64, 4), np.ones((64, 1))

    def fit(model, **options):
        model.fit(x, y, verbose=0, shuffle=False, **options)

    def trained():
        keras.utils.set_random_seed(1)
        table = fastreg.Embedding(300, 16, embeddings_regularizer=fastreg.L2(1e-3))
        dense = keras.layers.Dense(1, kernel_regularizer=fastreg.L2(1e-3))
        model = keras.Sequential([table, keras.layers.Flatten(), dense])
        model.compile(fastreg.LazyRegularization("sgd"), "mse")
        fit(model)
        return model

    def state(model):
        return [*model.get_weights(), *(np.array(variable) for variable in model.optimizer.variables)]

    def assert_equal(first, second):
        assert len(first) == len(second)
        for one, other in zip(first, second):
            np.testing.assert_array_equal(one, other)

    def backup(path, **options):
        return keras.callbacks.BackupAndRestore(path, delete_checkpoint=False, **options)

    model, twin = trained(), trained()
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    WAYS = {
        "keras": (lambda path: model.save(path + ".keras"), lambda path: keras.models.load_model(path + ".keras")),
        "weights": (lambda path: model.save_weights(path + ".weights.h5"),
                    lambda path: model.load_weights(path + ".weights.h5")),
        "checkpoint": (checkpoint.write, lambda path: checkpoint.read(path).assert_consumed()),
        "backup": (lambda path: fit(model, callbacks=[backup(path)]),
                   lambda path: fit(model, callbacks=[backup(path)], epochs=2)),
    }
    errors = {}

    def expect_an_error(name, function):
        before = state(model)
        try:
            function()
        except Exception as error:
            errors.setdefault(name, []).append(type(error).__name__)
        else:
            raise SystemError(f"no error: {name}")
        assert_equal(state(model), before)

    def go_on():
        fit(model)
        fit(twin)
        for one, other in zip(state(model), state(twin), strict=True):  # saving flushes, which rounds
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * max(1e-3, np.abs(other).max()))
"""

TRUNCATED = (
    FILES
    + """
    for name, (save, load) in WAYS.items():
        (folder / name).mkdir()
        path = str(folder / name / "x")
        save(path)
        if name == "backup":
            fit(twin)
        go_on()
        files = [file for ending in (".keras", ".h5", ".data*") for file in (folder / name).rglob("*" + ending)]
        assert files
        for share in (0.5, 0.98, 0.0):
            for file in files:
                content = file.read_bytes()
                file.write_bytes(content[: int(share * len(content))])
            expect_an_error(name, lambda: load(path))
            go_on()
    print("RESULTS" + json.dumps(errors))
"""
)


def test_files_that_were_cut_short(run_script, tmp_path):
    errors = json.loads(run_script(TRUNCATED, tmp_path).split("RESULTS")[1])
    assert {name: len(found) for name, found in errors.items()} == dict.fromkeys(
        ("keras", "weights", "checkpoint", "backup"), 3
    )


FULL = (
    FILES
    + """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for name in ("keras", "checkpoint"):  # HDF5 prints errors of its own when it closes what it could not write
        save, load = WAYS[name]
        (folder / name).mkdir()
        save(str(folder / name / "before"))
        kept = {file: file.read_bytes() for file in (folder / name).iterdir()}
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)

        def full():
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
            try:
                save(str(folder / name / "now"))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

        expect_an_error(name, full)
        assert all(file.read_bytes() == content for file, content in kept.items())
        go_on()
        fit(model)
        load(str(folder / name / "before"))
        save(str(folder / name / "now"))
        if name == "checkpoint":
            twin.set_weights(model.get_weights())
            for ours, theirs in zip(model.optimizer.variables, twin.optimizer.variables):
                theirs.assign(ours)
        else:
            fit(twin)
        go_on()
    print("RESULTS" + json.dumps(errors))
"""
)


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_disks_that_are_full(run_script, tmp_path):
    errors = json.loads(run_script(FULL, tmp_path).split("RESULTS")[1])
    assert {name: len(found) for name, found in errors.items()} == {"keras": 1, "checkpoint": 1}
