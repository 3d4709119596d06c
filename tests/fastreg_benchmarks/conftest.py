"""What the tests of the harness share. Nothing here times anything: figures are not what is tested."""

from pathlib import Path

import pytest
from fastreg_benchmarks import environment
from fastreg_benchmarks.bandwidth import Bandwidth
from fastreg_benchmarks.providers import DEFAULT_MODES, PROVIDERS
from fastreg_benchmarks.results import Row
from fastreg_benchmarks.settings import Settings

from fastreg._tables import rules


@pytest.fixture(autouse=True)
def decoupling_is_explained():
    """What is said once in a process, and would be an error in whichever test comes first."""
    rules.explained.update(("Adagrad", "Adam"))


def _environment(date="2026-01-02T03:04:05+00:00"):
    return {
        "date": date,
        "device": "a processor",
        "cores": 2,
        "threads": 2,
        "threading_layer": "tbb",
        "fastreg": "0.1",
        "commit": "abc",
        "python": "3.11",
        "tensorflow": "2.21",
        "keras": "3.15",
        "numba": "0.6",
        "numpy": "2.4",
    }


@pytest.fixture
def environment_of_rows():
    return _environment()


@pytest.fixture
def make_row():
    """A row in which everything has a value, but what is given."""

    def make(date="2026-01-02T03:04:05+00:00", **given):
        values = {
            "suite": "penalty",
            "size": 1000,
            "dtype": "float32",
            "what": "value+gradient",
            "provider": "fastreg",
            "mode": "tf.function",
            "bridge": "py_function",
            "caches": "warm",
            "rounds": 5,
            "calls": 3,
            "p20_s": 0.9e-3,
            "p50_s": 1e-3,
            "p80_s": 1.1e-3,
            "gbs": 1 / 3,
            "limit_s": 1e-4,
            "limit_share": 0.1,
            "best_keras": "jit",
            "speedup": 2.0,
            "speedup_low": 1.5,
            "speedup_high": 2.5,
            "mode_speedup": 3.0,
            "mode_speedup_low": 2.5,
            "mode_speedup_high": 3.5,
            "check": "ok",
            "value_error": 1e-8,
            "gradient_error": 1e-7,
        }
        return Row(**_environment(date), **(values | given))

    return make


@pytest.fixture
def settings():
    """Very short measurements of everything, written nowhere."""
    return Settings(
        suite="penalty",
        sizes=(1, 1000),
        dtypes=("float32",),
        modes=DEFAULT_MODES,
        providers=tuple(PROVIDERS),
        seconds=0.01,
        quick=True,
        warm=False,
        csv=None,
        plot=None,
        environment=environment.describe(),
        bandwidth=Bandwidth(read=1e10, copy=2e10, scale=3e10),
    )


@pytest.fixture
def checkout():
    return Path(__file__).parents[2]
