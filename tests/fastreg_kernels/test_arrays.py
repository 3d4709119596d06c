"""Arguments that the kernels refuse, each with an error that names it."""

import numpy as np
import pytest
from fastreg_kernels import DTYPES, backward, forward, forward_backward, shrink

ON_X = {
    "forward": forward,
    "backward": lambda x: backward(x, 0.1, 0.2),
    "forward_backward": lambda x: forward_backward(x, 0.1, 0.2),
    "shrink": lambda x: shrink(x, 0.1, 0.2),
}

NOT_ARRAYS = [
    [1.0, 2.0],
    (1.0,),
    1.0,
    np.float32(1.0),
    "abc",
    None,
    memoryview(bytearray(4)),
    np.ma.ones(3, np.float32),
]
OTHER_DTYPES = ["int32", "int16", "uint16", "bool", "complex64", "complex128", "longdouble", "O", "U3", "float8_e4m3fn"]


@pytest.fixture(params=ON_X)
def on_x(request):
    return ON_X[request.param]


@pytest.mark.parametrize("x", NOT_ARRAYS, ids=lambda x: type(x).__name__)
def test_x_that_is_no_array(on_x, x):
    with pytest.raises(TypeError, match=rf"argument x: expected a NumPy array\. Received: {type(x).__name__}"):
        on_x(x)


@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_x_of_another_dtype(on_x, dtype):
    """The integer types of 16 bits are what half types look like inside: they must not pass for them."""
    x = np.ones(3, dtype)
    with pytest.raises(TypeError, match=rf"argument x: expected float32 or float64.*Received: {x.dtype}"):
        on_x(x)


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "bfloat16"])
def test_x_in_the_byte_order_of_another_machine(on_x, dtype):
    x = np.ones(3, np.dtype(dtype).newbyteorder())
    with pytest.raises(TypeError, match="argument x: "):
        on_x(x)


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "bfloat16"])
def test_out_in_the_byte_order_of_another_machine(dtype):
    x = np.ones(3, dtype)
    out = np.zeros(3, np.dtype(dtype).newbyteorder())
    with pytest.raises((TypeError, ValueError), match="argument out: "):
        backward(x, 0.1, 0.2, out=out)
    np.testing.assert_array_equal(out, np.zeros(3))


@pytest.mark.parametrize(
    "x",
    [
        np.ones((4, 6), np.float32)[:, ::2],
        np.ones(6, np.float32)[::2],
        np.ones(6, np.float32)[::-1],
        np.ones((2, 3, 4), np.float32).transpose(1, 0, 2),
        np.broadcast_to(np.float32(1.0), (3, 4)),
    ],
    ids=["columns", "every other", "reversed", "transposed in part", "broadcast"],
)
def test_x_that_is_not_contiguous(on_x, x):
    with pytest.raises(ValueError, match="layout for argument x: expected a contiguous array"):
        on_x(x)


def test_slices_that_are_contiguous(on_x):
    x = np.ones((4, 6), np.float32)
    for part in (x[1:3], x[2], x[1, 2:5], x.T, x.T[:, 1:3], x[:1, :1], x[3:3, ::2]):
        on_x(part)


TAKES_FACTOR = {
    "backward l1": ("l1", lambda x, v: backward(x, v, 0.1)),
    "backward l2": ("l2", lambda x, v: backward(x, 0.1, v)),
    "forward_backward l1": ("l1", lambda x, v: forward_backward(x, v, 0.1)),
    "forward_backward l2": ("l2", lambda x, v: forward_backward(x, 0.1, v)),
    "shrink scale": ("scale", lambda x, v: shrink(x, v, 0.1)),
    "shrink threshold": ("threshold", lambda x, v: shrink(x, 0.1, v)),
}


@pytest.mark.parametrize("value", [-1.0, -5e-324, np.nan, np.inf, -np.inf, np.float32(-1), np.array(-1.0)], ids=repr)
@pytest.mark.parametrize("taker", TAKES_FACTOR)
def test_factor_out_of_range(taker, value):
    name, call = TAKES_FACTOR[taker]
    with pytest.raises(ValueError, match=f"argument {name}: expected a non-negative float"):
        call(np.ones(3, np.float32), value)


@pytest.mark.parametrize("value", ["0.1", b"0.1", None, 1j, np.complex64(1), 10**400, np.datetime64(0, "s")], ids=type)
@pytest.mark.parametrize("taker", TAKES_FACTOR)
def test_factor_that_is_no_real_number(taker, value):
    name, call = TAKES_FACTOR[taker]
    with pytest.raises(TypeError, match=f"argument {name}: expected a real scalar"):
        call(np.ones(3, np.float32), value)


@pytest.mark.parametrize("value", [[0.1], np.ones(3), np.ones((1, 1))], ids=str)
@pytest.mark.parametrize("taker", [taker for taker in TAKES_FACTOR if "shrink" not in taker])
def test_penalty_factor_that_is_no_scalar(taker, value):
    name, call = TAKES_FACTOR[taker]
    with pytest.raises(TypeError, match=f"argument {name}: expected a real scalar"):
        call(np.ones(3, np.float32), value)


@pytest.mark.parametrize("value", ["1", None, 1j, [1.0], np.ones(3), 10**400], ids=type)
@pytest.mark.parametrize("call", [backward, forward_backward])
def test_upstream_that_is_no_real_scalar(call, value):
    with pytest.raises(TypeError, match="argument upstream: expected a real scalar"):
        call(np.ones(3, np.float32), 0.1, 0.2, value)


@pytest.mark.parametrize("value", [0, 1, True, np.float16(0.5), np.int8(1), np.array(0.5), np.array(1, "u2")], ids=repr)
@pytest.mark.parametrize("taker", TAKES_FACTOR)
def test_factor_as_any_real_scalar(taker, value):
    _, call = TAKES_FACTOR[taker]
    x = np.array([-3.0, 0.5, 2.0])
    actual, expected = call(x, value), call(x, float(value))
    np.testing.assert_array_equal(actual[-1], expected[-1])


@pytest.mark.parametrize("name", ["scale", "threshold"])
@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([0.1, -0.1, 0.1], ValueError, "expected non-negative, finite values"),
        ([0.1, np.nan, 0.1], ValueError, "expected non-negative, finite values"),
        ([0.1, np.inf, 0.1], ValueError, "expected non-negative, finite values"),
        ([0.1, 0.1], ValueError, r"each of the 3 rows of x.*\(2,\)"),
        ([0.1], ValueError, r"each of the 3 rows of x.*\(1,\)"),
        ([[0.1]] * 3, ValueError, r"each of the 3 rows of x.*\(3, 1\)"),
        ([0.1] * 6, ValueError, r"each of the 3 rows of x.*\(6,\)"),
        (["a", "b", "c"], TypeError, "expected real numbers"),
        ([1j, 1j, 1j], TypeError, "expected real numbers"),
        ([None, None, None], TypeError, "expected real numbers"),
    ],
)
def test_factors_per_row(name, values, error, message):
    factors = {"scale": 1.0, "threshold": 0.1} | {name: values}
    x = np.ones((3, 2), np.float32)
    with pytest.raises(error, match=f"argument {name}: .*{message}"):
        shrink(x, **factors, out=x)
    np.testing.assert_array_equal(x, 1.0)


def test_factors_per_row_need_rows_in_c_order():
    for x in (np.ones((3, 2), np.float32, order="F"), np.ones((), np.float32)):
        with pytest.raises(ValueError, match=r"argument x: .*rows in C order"):
            shrink(x, np.ones(3), 0.1)
