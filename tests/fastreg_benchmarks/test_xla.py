"""The suites `xla` and `xla-gpu`."""

import json
import os
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from fastreg_benchmarks import environment, results, xla, xla_gpu
from fastreg_benchmarks.limits.lines import FAIL, PASS, UNCLEAR
from fastreg_benchmarks.recommender import capped, models
from fastreg_benchmarks.results import LimitRow
from fastreg_benchmarks.timing import Run
from fastreg_benchmarks.workloads import Recommender
from fastreg_benchmarks.xla import penalties, tables
from fastreg_benchmarks.xla_gpu import compiler, steps
from rich.console import Console

from fastreg.cli import UsageError, main

VERDICTS = {PASS, FAIL, UNCLEAR}


class Wrong(keras.regularizers.L1L2):
    """Off by factors."""

    def __call__(self, x):
        right = super().__call__(x)
        return self.of_gradient * right + tf.stop_gradient((self.of_value - self.of_gradient) * right)


@pytest.fixture
def small(monkeypatch):
    """Sizes on both sides of that from which targets are harder, and a recommender without large tables."""
    monkeypatch.setattr(penalties, "QUICK_SIZES", (7, 50))
    monkeypatch.setattr(penalties, "LARGE", 50)
    monkeypatch.setattr(capped, "WORKLOAD", Recommender(cardinalities=(20, 400), width=4, batch=16, hidden=8))
    monkeypatch.setattr(capped, "QUICK_CAP", 30)
    monkeypatch.setattr(tables, "SMALL", 10)


def test_the_suite_writes_targets(small, settings, monkeypatch, tmp_path):
    monkeypatch.setattr(xla, "PARTS", xla.PARTS[:2])
    csv = tmp_path / "xla.csv"
    assert xla.run(replace(settings, suite="xla", csv=csv), Console(quiet=True)) == 0
    rows = results.read(csv, LimitRow)
    assert [(row.line, row.target.split(" x ")[0]) for row in rows] == [
        *((1, f"at most {most}") for most in ("1.05", "0.70")),
        *((2, f"at most {most}") for most in ("1.05", "1.05", "0.90", "0.90")),
    ]
    assert {row.verdict for row in rows} <= VERDICTS
    assert all("without a penalty" in row.measured for row in rows if row.line == 2)


def test_wrong_updates_are_found(settings, monkeypatch):
    monkeypatch.setattr(penalties, "QUICK_SIZES", (50,))
    wrong = Wrong(penalties.L1, penalties.L2)
    monkeypatch.setattr(penalties.fastreg, "L1L2", lambda l1, l2: wrong)
    for wrong.of_value, wrong.of_gradient in ((1.001, 1.0), (1.0, 1.01)):
        assert {line.verdict for line in penalties.updates(settings)} == {"WRONG"}


def test_steps_of_the_recommender(small, settings, monkeypatch):
    """Which are compared; models are not what is tested."""
    seconds = {("lazy", 10): 1e-3, ("lazy", 30): 3e-3, ("keras-plain", 10): 2e-3, ("keras-plain", 30): 12e-3}

    def steps(provider, workload, jit):
        assert jit
        took = seconds[provider, max(workload.cardinalities)]
        return models.Steps(*[Run(lambda: 0.5, clock=lambda calls: took)] * 3)

    monkeypatch.setattr(tables, "steps", steps)
    words = "step of the recommender"
    assert [(line.what, line.measured.split(" ")[0]) for line in tables.training(replace(settings, seconds=1e-4))] == [
        (f"{words}, tables of 10: lazy over Keras without a regularizer", "0.500"),
        (f"{words}, tables up to 30: lazy over Keras without a regularizer", "0.250"),
        (f"{words}, lazy: tables up to 30 over tables of 10", "3.000"),
    ]


def test_the_recommender_is_compiled(monkeypatch):
    seen = []

    class Embedding(keras.layers.Embedding):
        def call(self, inputs):
            seen.append(tf.__internal__.get_enclosing_xla_context() is not None)
            return super().call(inputs)

    monkeypatch.setitem(models.EMBEDDINGS, "keras-plain", Embedding)
    step = models.steps("keras-plain", Recommender(cardinalities=(20,), width=4, batch=16, hidden=8), jit=True).fit
    del seen[:]  # of building the model
    assert np.isfinite(step.call())
    assert set(seen) == {True}


HLO = """
ENTRY %main (x: f32[100]) -> f32[100] {{
  %x = f32[100]{{0}} parameter(0)
  %p = pred[] constant(true)
  ROOT %y = f32[{elements}]{{0}} negate(%x)
}}
"""


@pytest.fixture
def jobs(monkeypatch):
    """Steps that name themselves, compiled to kernels that move 4 bytes for each weight and 4 for each one written."""
    given = []

    def compile_all(python, pairs):
        given.extend((*json.loads(text), product) for text, product in pairs)
        # keras: 28 bytes for each weight; fastreg: 20, and Adam one too many
        written = {"none": 0, "keras": 600, "fastreg": 400}
        return [
            HLO.format(elements=written[penalty] + 500 * (optimizer == "Adam")) for _, penalty, optimizer, _ in given
        ]

    monkeypatch.setattr(steps.Step, "hlo", json.dumps)
    monkeypatch.setattr(compiler, "compile_all", compile_all)
    monkeypatch.setattr(compiler, "describe", lambda python: "a GPU")
    return given


def test_bytes_of_every_target(jobs, settings, tmp_path):
    csv = tmp_path / "xla-gpu.csv"
    assert xla_gpu.run(replace(settings, suite="xla-gpu", csv=csv), Console(quiet=True)) == 0
    rows = results.read(csv, LimitRow)
    assert {row.device for row in rows} == {"a GPU"}
    assert len(jobs) == len(set(jobs)) == 3 * 3 * 2 + 2
    assert [(row.line, row.what, row.target, row.verdict) for row in rows] == [
        (1, "dense layer, SGD, product by cuBLAS", "at most 32 (+ 1) bytes", PASS),
        (1, "dense layer, Adam, product by cuBLAS", "at most 48 (+ 1) bytes", PASS),
        (1, "dense layer, SGD, product by Triton", "at most 20 (+ 1) bytes", PASS),
        (1, "dense layer, Adam, product by Triton", "at most 36 (+ 1) bytes", FAIL),
        (2, "dense table, SGD", "at most 20 (+ 1) bytes", PASS),
        (2, "dense table, Adam", "at most 36 (+ 1) bytes", FAIL),
        (3, "lazy table, SGD", "at most 1 (+ 1) bytes", FAIL),
        (3, "lazy table, Adam", "at most 1 (+ 1) bytes", FAIL),
    ]
    assert rows[0].measured == "20.0; Keras 28.0, without a penalty 4.0"
    assert rows[-1].measured == "40.0; Keras 48.0, without a penalty 24.0"


def test_what_happens_at_times_is_said():
    assert str(xla_gpu.Bytes(0.51, 0.51)) == "0.5"
    assert str(xla_gpu.Bytes(0.5, 8.5)) == "0.5 (at times 8.5)"


@pytest.fixture
def small_layers(monkeypatch):
    for name, value in (("UNITS", 32), ("BATCH", 4), ("ROWS", 64), ("WIDTH", 16), ("LOOKUPS", 5)):
        monkeypatch.setattr(steps, name, value)


@pytest.mark.parametrize("optimizer", steps.OPTIMIZERS)
def test_steps_are_hlo_of_the_whole_step(small_layers, optimizer):
    """Of a dense layer and a table, with slots: variables that go in and come out."""
    weights = {"dense layer": "f32[32,32]", "dense table": "f32[64,16]"}
    for layer, shape in weights.items():
        text = steps.Step(layer, "fastreg", optimizer).hlo()
        assert text.splitlines()[0].count(shape) == (6 if optimizer == "Adam" else 2)
        assert "opt-barrier" in text


def test_a_real_compiler(small_layers, settings):
    """Where there is one: FASTREG_TEST_JAX_PYTHON names it."""
    python = os.environ.get("FASTREG_TEST_JAX_PYTHON")
    if python is None:
        pytest.skip("no environment with jax is named")
    hlo = steps.Step("dense table", "fastreg", "SGD").hlo()
    both = compiler.compile_all(Path(python), [(hlo, "cuBLAS"), (hlo, "Triton")])
    assert [xla_gpu.count(text).least for text in both] == pytest.approx([20, 20], abs=4)
    assert "H100" in compiler.describe(Path(python))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)", "it ended with 3"),
    ],
)
def test_a_compiler_that_fails(monkeypatch, tmp_path, script, words):
    path = tmp_path / "script.py"
    path.write_text(script)
    monkeypatch.setattr(compiler, "SCRIPT", path)
    with pytest.raises(UsageError, match=words):
        compiler.describe(Path(os.sys.executable))


def test_a_compiler_is_given_jobs_and_answers(monkeypatch, tmp_path):
    path = tmp_path / "script.py"
    path.write_text("import json, sys; print(json.dumps({'modules': [a + b for a, b in json.load(sys.stdin)]}))")
    monkeypatch.setattr(compiler, "SCRIPT", path)
    assert compiler.compile_all(Path(os.sys.executable), [("a", "b"), ("c", "d")]) == ["ab", "cd"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--suite", "xla-gpu"), "python3 -m venv"),
        (("--suite", "xla-gpu", "--jax-python", "/no/such/python"), "no Python at /no/such/python"),
        (("--suite", "xla", "--jax-python", "python"), "--jax-python does not apply to --suite xla"),
        (("--suite", "xla", "--sizes", "1"), "--sizes does not apply"),
        (("--device", "gpu", "--jax-python", "python"), "--jax-python does not apply to --device gpu"),
    ],
)
def test_options(monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(environment, "checkout", lambda: None)
    assert main(["bench", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
