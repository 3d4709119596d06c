"""Arguments and inputs: what Keras accepts and rejects, in its words, and a little more."""

import fractions

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg

ACCEPTED = [0, 0.0, -0.0, 1, 3, True, False, 0.25, 1e-30, 1e30, np.float64(0.5)]
NUMPY_SCALARS = [np.float32(0.5), np.float16(0.5), np.int64(2), np.uint8(2), np.bool_(True)]
REJECTED = [
    -1,
    -1e-30,
    np.nan,
    np.inf,
    -np.inf,
    "0.1",
    b"1",
    [0.1],
    (0.1,),
    {},
    1j,
    0.1 + 0j,
    np.array(0.1),
    np.ones(1),
]
REJECTED += [
    fractions.Fraction(1, 2),
    slice(1),
    np.float64(np.nan),
    np.float64(-1.0),
    np.complex64(1),
]
ALSO_REJECTED = [np.float32(-1), np.float32(np.nan), np.float32(np.inf), np.int64(-1)]

CONSTRUCTORS = [
    (lambda module, value: module.L1(value), "l1"),
    (lambda module, value: module.L2(value), "l2"),
    (lambda module, value: module.L1L2(l1=value), "l1"),
    (lambda module, value: module.L1L2(l2=value), "l2"),
    (lambda module, value: module.l1(value), "l1"),
    (lambda module, value: module.l2(value), "l2"),
]
IDS = ["L1", "L2", "L1L2-l1", "L1L2-l2", "l1", "l2"]


@pytest.mark.parametrize("value", ACCEPTED, ids=repr)
@pytest.mark.parametrize(("construct", "name"), CONSTRUCTORS, ids=IDS)
def test_factors_that_keras_accepts(construct, name, value):
    ours, theirs = construct(fastreg, value).get_config(), construct(keras.regularizers, value).get_config()
    assert ours.keys() == theirs.keys()
    assert ours[name] == value
    assert type(ours[name]) is float
    assert ours[name] == pytest.approx(theirs[name], rel=1e-7)


@pytest.mark.parametrize("value", NUMPY_SCALARS, ids=repr)
@pytest.mark.parametrize(("construct", "name"), CONSTRUCTORS, ids=IDS)
def test_numpy_scalars_are_factors_too(construct, name, value):
    with pytest.raises(ValueError, match="expected a non-negative float"):
        construct(keras.regularizers, value)
    assert construct(fastreg, value).get_config()[name] == value
    assert type(construct(fastreg, value).get_config()[name]) is float


@pytest.mark.parametrize("value", REJECTED + ALSO_REJECTED, ids=repr)
@pytest.mark.parametrize(("construct", "name"), CONSTRUCTORS, ids=IDS)
def test_factors_that_keras_rejects(construct, name, value):
    errors = []
    for module in (keras.regularizers, fastreg):
        with pytest.raises(ValueError, match=rf"Invalid value for argument {name}: expected a non-negative float") as e:
            construct(module, value)
        errors.append(str(e.value))
    assert all(f"Received: {name}=" in error for error in errors)


@pytest.mark.parametrize("name", ["l1", "l2"])
@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, "0.1", None, np.array(0.1)], ids=repr)
def test_factors_of_the_function(name, value):
    with pytest.raises(ValueError, match=f"Invalid value for argument {name}: expected a non-negative float"):
        fastreg.l1_l2_penalty(tf.ones(3), **{name: value})


X = np.array([[1.0, -2.0], [0.5, 0.0]], np.float32)
EXPECTED = 0.5 * 3.5 + 0.25 * 5.25


INPUTS = {
    "Keras variable": keras.Variable,
    "TensorFlow variable": tf.Variable,
    "tensor": tf.constant,
    "ndarray": np.asarray,
    "list": np.ndarray.tolist,
    "Fortran order": np.asfortranarray,
    "strided": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "ragged": lambda x: tf.RaggedTensor.from_row_lengths(x.ravel(), [3, 1]),
    "slices": lambda x: tf.IndexedSlices(tf.constant(x), tf.constant([2, 0]), tf.constant([3, 2])),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs(bridge, kind):
    value = fastreg.L1L2(0.5, 0.25)(INPUTS[kind](X))
    assert isinstance(value, tf.Tensor)
    assert value.shape == ()
    assert value.dtype == tf.float32
    assert float(value) == pytest.approx(EXPECTED, rel=1e-6)
    assert float(fastreg.l1_l2_penalty(INPUTS[kind](X), 0.5, 0.25)) == float(value)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_variables_get_gradients(bridge, dtype):
    plain, own = tf.Variable(X.astype(dtype)), keras.Variable(X, dtype=dtype)
    for variable, watched in ((plain, plain), (own, own.value)):
        for penalty in (fastreg.L2(0.25), tf.function(fastreg.L2(0.25))):
            with tf.GradientTape() as tape:
                value = penalty(variable)
            slope = tape.gradient(value, watched)
            np.testing.assert_allclose(slope, 0.5 * X)
            assert slope.dtype == dtype


def test_slices_of_one_row_add_up(bridge):
    slices = tf.IndexedSlices(tf.constant([[1.0], [2.0]]), tf.constant([1, 1]), tf.constant([3, 1]))
    assert float(fastreg.L2(1.0)(slices)) == 9.0


@pytest.mark.parametrize("make", [tf.constant, np.asarray, tf.Variable], ids=["tensor", "ndarray", "variable"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "bool", "complex64"])
def test_other_dtypes_are_refused(make, dtype):
    for penalty in (fastreg.L1(0.1), fastreg.L2(0.1), fastreg.L1L2(0.1, 0.1), fastreg.L1L2()):
        with pytest.raises(TypeError, match=f"expected a floating dtype.*Received: {dtype}"):
            penalty(make(np.ones((2, 2), dtype)))


def test_sparse_tensors_are_refused():
    sparse = tf.SparseTensor([[0, 0], [1, 2]], [1.0, 2.0], [3, 4])
    for penalty in (fastreg.L1(), fastreg.L2(), fastreg.L1L2(0.1, 0.1), fastreg.l1_l2_penalty):
        with pytest.raises(TypeError, match="Received: a SparseTensor"):
            penalty(sparse)


def test_symbolic_inputs(bridge):
    """In a functional model a penalty of a placeholder is a symbol like any other."""
    x = keras.Input((2,))
    for ours, theirs in (
        (fastreg.L1(0.5), keras.regularizers.L1(0.5)),
        (fastreg.L2(0.25), keras.regularizers.L2(0.25)),
        (fastreg.L1L2(0.5, 0.25), keras.regularizers.L1L2(0.5, 0.25)),
    ):
        symbols = ours(x), theirs(x)
        assert isinstance(symbols[0], keras.KerasTensor)
        assert symbols[0].shape == symbols[1].shape == ()
        assert symbols[0].dtype == symbols[1].dtype == "float32"
        values = keras.Model(x, symbols)(X)
        assert float(values[0]) == pytest.approx(float(values[1]), rel=1e-6)
    fastreg.L1()(X)
