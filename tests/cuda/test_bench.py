"""The GPU benchmark's own code, on simulated kernels and the host's tensors: every part runs, and wrong results show.

Nothing here is a measurement; the simulator's events give -1 ms.
"""

import fastreg_kernels.cuda
import numpy as np
import pytest
import tensorflow as tf
from fastreg_benchmarks import environment, gpu, results
from fastreg_benchmarks.check import OK, WRONG
from fastreg_benchmarks.gpu import kernels, tables
from fastreg_benchmarks.gpu.rows import GpuRow
from fastreg_benchmarks.report import console

from fastreg.cli import main


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(kernels, "FLUSHES", 1)
    monkeypatch.setattr(kernels, "MIN_ROUNDS", 1)
    monkeypatch.setattr(environment, "checkout", lambda: None)
    measure = kernels.measure
    monkeypatch.setattr(kernels, "measure", lambda *arguments: measure(*arguments, flush_bytes=16))


def test_everything_runs_and_is_checked(tmp_path, capsys):
    csv = tmp_path / "gpu.csv"
    results.prepare(csv, GpuRow)
    assert gpu.measure((130,), ("float32", "bfloat16"), 0.01, csv, console()) == 0
    rows = results.read(csv, GpuRow)
    found = {(row.part, row.dtype, row.what) for row in rows}
    assert {("kernel", dtype, name) for dtype in ("float32", "bfloat16") for name in kernels.PASSES} <= found
    assert ("penalty", "float32", "value+gradient") in found
    assert ("training", "float32", "step") in found
    assert all(row.check in (OK, "inexact", "") for row in rows)
    out = capsys.readouterr().out
    assert "kernel: 130 float32, compared with copy" in out
    assert "fastreg-callback" in out


@pytest.mark.parametrize("wrong", ["sums", "gradient"])
def test_a_wrong_kernel_is_reported(monkeypatch, wrong):
    right = fastreg_kernels.cuda.forward_backward

    def off(x, l1, l2, out, stream):
        sums, gradient = right(x, 1.01 * l1 if wrong == "gradient" else l1, l2, out=out, stream=stream)
        if wrong == "sums":
            sums[0] *= 1 + 1e-6
        return sums, gradient

    monkeypatch.setattr(fastreg_kernels.cuda, "forward_backward", off)
    rows = kernels.measure(50, "float32", 0.01, environment.describe())
    assert {row.what: row.check for row in rows} == dict.fromkeys(kernels.PASSES, OK) | {"forward_backward": WRONG}


def row(**given):
    values = {"part": "kernel", "size": 1 << 28, "dtype": "float32", "what": "forward", "provider": "kernel"}
    values |= {"mode": "events", "rounds": 3, "p20_s": 1.0, "p50_s": 1.0, "p80_s": 1.0, "gbs": 1.0, "rival": "copy"}
    return GpuRow(**vars(environment.describe()), **(values | {"share": 0.94, "check": OK} | given))


def test_targets():
    rows = [row(), row(what="backward"), row(size=1 << 24), row(dtype="float64"), row(provider="driver")]
    rows.append(row(part="penalty", size=1 << 24, provider="fastreg", mode="tf.function", share=0.91))
    lines = list(tables._targets(rows))
    assert [(target, share) for _, target, share in lines] == [(0.95, 0.94), (0.9, 0.94), (1 / 1.1, 0.91)]


def test_without_a_gpu_it_says_so(capsys):
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is one")
    assert main(["bench", "--device", "gpu"]) == 2
    assert "TensorFlow sees no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("--modes", "eager"), ("--plot",), ("--suite", "limits"), ("--warm",)])
def test_options_for_the_processor_alone(arguments, capsys):
    assert main(["bench", "--device", "gpu", *arguments]) == 2
    assert "does not apply to --device gpu" in capsys.readouterr().err


def test_bytes_of_each_kernel():
    assert set(kernels.PASSES) == set(kernels._EXPECTED) | {"forward"}
    assert np.float32(kernels.SCALE) == kernels.SCALE
