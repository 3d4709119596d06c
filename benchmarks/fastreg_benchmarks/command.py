"""The command `fastreg bench`."""

from __future__ import annotations

import argparse
import importlib.util
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from fastreg.cli import UsageError
from fastreg_benchmarks import (
    bags,
    bandwidth,
    crossover,
    environment,
    lazy,
    limits,
    penalty,
    recommender,
    report,
    results,
    steps,
    xla,
    xla_gpu,
)
from fastreg_benchmarks.cases import DTYPES, VALUE, Case
from fastreg_benchmarks.measure import require_memory
from fastreg_benchmarks.providers import DEFAULT_MODES, EAGER, FUNCTION, MODES, PROVIDERS, plan
from fastreg_benchmarks.settings import Settings
from fastreg_benchmarks.xla_gpu import compiler

DESCRIPTION = "measure penalties against Keras, NumPy and the machine's memory bandwidth"

SUITES: dict[str, Any] = {
    "penalty": penalty,
    "crossover": crossover,
    "limits": limits,
    "steps": steps,
    "lazy": lazy,
    "recommender": recommender,
    "bags": bags,
    "xla": xla,
    "xla-gpu": xla_gpu,
}

SIZES = (1, 100, 10_000, 1_000_000, 2**22, 2**26)
QUICK_SIZES = (1, 10_000, 2**22)
SECONDS, QUICK_SECONDS = 2.0, 0.3

_DEFAULT_PLOT = Path()  # names no file

_APPLICABLE = {
    "penalty": {"sizes", "dtypes", "modes", "providers", "warm", "plot"},
    "crossover": {"sizes", "dtypes", "modes", "warm"},
    "limits": set(),
    "steps": set(),
    "lazy": {"plot"},
    "recommender": set(),
    "bags": set(),
    "xla": set(),
    "xla-gpu": {"jax_python"},
}
"""Options that a suite does not fix itself."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `fastreg bench`."""
    parser.add_argument("--suite", choices=SUITES, default="penalty", help="default: penalty")
    parser.add_argument(
        "--device",
        choices=("cpu", "gpu"),
        default="cpu",
        help="gpu: the CUDA kernels alone and through TensorFlow, with --sizes, --dtypes, --seconds, --quick and --csv",
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        metavar="N",
        help=f"numbers of elements, as 1000, 10_000 or 2**22; default: {_listed(SIZES)}",
    )
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, metavar="DTYPE", help=f"of {_listed(DTYPES)}; default: all"
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=MODES,
        metavar="MODE",
        help=f"of {_listed(MODES)}; default: {_listed(DEFAULT_MODES)}",
    )
    parser.add_argument(
        "--providers", nargs="+", choices=PROVIDERS, metavar="PROVIDER", help=f"of {_listed(PROVIDERS)}; default: all"
    )
    parser.add_argument(
        "--seconds", type=float, help=f"time for each case, all its providers together; default: {SECONDS:g}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer and smaller cases, less time, and no CSV file by default"
    )
    parser.add_argument("--warm", action="store_true", help="do not empty the caches between calls of 1 MiB and more")
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="append rows here; default, in a checkout: benchmarks/results/SUITE.csv",
    )
    parser.add_argument(
        "--jax-python",
        type=Path,
        metavar="PATH",
        help="the Python of an environment with jax's CUDA plug-in, whose compiler --suite xla-gpu runs",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        nargs="?",
        const=_DEFAULT_PLOT,
        metavar="FILE",
        help="draw the results; default file: benchmarks/results/SUITE.png in a checkout, else ./SUITE.png",
    )


def run(options: argparse.Namespace) -> int:
    """Run a suite; 1 if a result was wrong."""
    if options.device == "gpu":
        return _run_on_gpu(options)
    settings = _settings(options)
    console = report.console()
    console.print(report.header(settings.environment, settings.bandwidth))
    code = int(SUITES[settings.suite].run(settings, console))
    if settings.csv is not None:
        console.print(f"rows: {settings.csv}")
    return code


def _run_on_gpu(options: argparse.Namespace) -> int:
    for name in ("modes", "providers", "warm", "plot", "jax_python"):
        if getattr(options, name) not in (None, False):
            raise UsageError(f"{_option(name)} does not apply to --device gpu")
    if options.suite != "penalty":
        raise UsageError(f"--suite {options.suite} does not apply to --device gpu")
    from fastreg_benchmarks import gpu  # brings CUDA packages in, which are optional

    return gpu.run(options)


def parse_size(text: str) -> int:
    """A positive number of elements, written as 1000, 10_000 or 2**22."""
    match = re.fullmatch(r"(\d+(?:_\d+)*)(?:\*\*(\d{1,2}))?", text)
    size = int(match[1]) ** int(match[2] or 1) if match else 0
    if size < 1:
        raise UsageError(f"not a size: {text!r} (expected a positive number, as 1000, 10_000 or 2**22)")
    return size


def _settings(options: argparse.Namespace) -> Settings:
    suite = options.suite
    for name in ("sizes", "dtypes", "modes", "providers", "warm", "plot", "jax_python"):
        if getattr(options, name) not in (None, False) and name not in _APPLICABLE[suite]:
            raise UsageError(f"{_option(name)} does not apply to --suite {suite}")
    seconds = (QUICK_SECONDS if options.quick else SECONDS) if options.seconds is None else options.seconds
    if not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"--seconds: expected a positive number, not {options.seconds}")
    sizes, dtypes, modes = _cases(options)
    providers = tuple(options.providers or PROVIDERS)
    if not any(plan(Case(1, dtype, VALUE), providers, modes) for dtype in dtypes):
        raise UsageError("nothing to measure: none of the providers knows any of the modes and dtypes")
    require_memory(Case(max(sizes), max(dtypes, key=lambda dtype: np.dtype(dtype).itemsize), VALUE))
    jax_python = compiler.interpreter(options.jax_python) if suite == "xla-gpu" else None
    plot, csv = _plot_file(options.plot, options.suite), _csv_file(options)
    environment.use_host_only()
    small = options.quick or max(sizes) * 8 < bandwidth.QUICK_PROBE_BYTES
    return Settings(
        suite=suite,
        sizes=sizes,
        dtypes=dtypes,
        modes=modes,
        providers=providers,
        seconds=seconds,
        quick=options.quick,
        warm=options.warm,
        csv=csv,
        plot=plot,
        jax_python=jax_python,
        environment=environment.describe(),
        bandwidth=bandwidth.measure(bandwidth.QUICK_PROBE_BYTES if small else bandwidth.PROBE_BYTES, seconds),
    )


def _cases(options: argparse.Namespace) -> tuple[tuple[int, ...], tuple[str, ...], tuple[str, ...]]:
    """Sizes, dtypes and modes: what the user asked for, else the defaults of the suite."""
    if options.suite == "crossover":
        sizes = crossover.SIZES[::4] if options.quick else crossover.SIZES
        dtypes: tuple[str, ...] = ("float32",)
        modes: tuple[str, ...] = (EAGER, FUNCTION)
        if unfit := set(options.modes or ()) - set(crossover.MODES):
            raise UsageError(f"--suite crossover compares in {_listed(crossover.MODES)}, not in {_listed(unfit)}")
    else:
        sizes = QUICK_SIZES if options.quick else SIZES
        dtypes = ("float32",) if options.quick else DTYPES
        modes = DEFAULT_MODES
    chosen = tuple(parse_size(text) for text in options.sizes) if options.sizes else sizes
    # In order, each once: a case that is named twice is measured once.
    return tuple(sorted(set(chosen))), _unique(options.dtypes or dtypes), _unique(options.modes or modes)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _unique(names: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _listed(names: Any) -> str:
    return ", ".join(str(name) for name in names)


def _csv_file(options: argparse.Namespace) -> Path | None:
    path: Path | None = options.csv
    if path is None:
        root = environment.checkout()
        if root is None or options.quick:
            return None
        path = root / "benchmarks" / "results" / f"{options.suite}.csv"
    results.prepare(path, SUITES[options.suite].ROW_TYPE)
    return path


def _plot_file(path: Path | None, suite: str) -> Path | None:
    if path is None:
        return None
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'fastreg-keras[demo]'")
    if path == _DEFAULT_PLOT:
        root = environment.checkout()
        path = Path(f"{suite}.png") if root is None else root / "benchmarks" / "results" / f"{suite}.png"
    if path.suffix != ".png":
        raise UsageError(f"--plot writes PNG files: {path} should end in .png")
    if not path.parent.is_dir():
        raise UsageError(f"no folder {path.parent} to write {path.name} to")
    return path
