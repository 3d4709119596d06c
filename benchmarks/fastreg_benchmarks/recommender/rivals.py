"""Lines 4 and 6: the same model in PyTorch, with FBGEMM's tables and with its own sparse ones, where installed.

They have no regularizer. Each runs in a process of its own, without TensorFlow, in turns with the lazy model here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from importlib import metadata
from typing import NamedTuple

from fastreg.compare import memory
from fastreg_benchmarks.environment import physical_memory
from fastreg_benchmarks.lazy.criteo import step_and_peak
from fastreg_benchmarks.limits.lines import INFORMATION, Line
from fastreg_benchmarks.recommender import capped, models, uncapped
from fastreg_benchmarks.recommender.rows import compared, measure, row
from fastreg_benchmarks.results import RecommenderRow
from fastreg_benchmarks.settings import Settings
from fastreg_benchmarks.worker import Worker
from fastreg_benchmarks.workloads import Recommender

PART = "rivals"
STEP = "fastreg_benchmarks.pytorch.recommender:step"


class Rival(NamedTuple):
    """A library, with the modules that it needs and the packages that have them."""

    name: str
    packages: dict[str, str]

    def missing(self) -> list[str]:
        """Packages to install."""
        return [package for module, package in self.packages.items() if importlib.util.find_spec(module) is None]

    def to_install(self) -> str:
        """What is missing, and how to get it."""
        return f"not installed: pip install {' '.join(self.missing())}"

    def __str__(self) -> str:
        distributions = metadata.packages_distributions()
        versions = [metadata.version(distributions[module][0]) for module in self.packages if module in distributions]
        return " ".join([self.name, *versions[-1:]])


RIVALS = {
    "fbgemm": Rival("FBGEMM", {"torch": "torch", "fbgemm_gpu": "fbgemm-gpu-cpu"}),
    "torch-sparse": Rival("sparse PyTorch", {"torch": "torch"}),
}


def in_turns(settings: Settings) -> Iterator[tuple[list[RecommenderRow], list[Line]]]:
    """Steps of training of the tables of `capped`, interleaved with the lazy model's."""
    workload, lines = capped.capped(settings), []
    with ExitStack() as stack:
        workers = {}
        for provider, rival in RIVALS.items():
            if rival.missing():
                lines.append(Line(6, rival.name, "-", rival.to_install(), INFORMATION))
                continue
            try:
                workers[provider] = stack.enter_context(_worker(provider, workload, settings))
            except RuntimeError as error:
                lines.append(Line(6, str(rival), "-", f"fails: {error}", INFORMATION))
        rows = []
        if workers:
            lazy = models.steps("lazy", workload).fit
            timed = measure({"lazy": lazy, **{name: worker.run for name, worker in workers.items()}}, settings)
            what = f"fit, {capped.described(workload)}: lazy, times faster than"
            lines += [compared(6, f"{what} {RIVALS[name]}", timed[name], timed["lazy"]) for name in workers]
            rows = [row(PART, name, workload, timed[name].samples, settings) for name in timed]
    yield rows, lines


def with_memory(settings: Settings) -> Iterator[tuple[list[RecommenderRow], list[Line]]]:
    """Steps of training with whole tables, and their memory, of what is installed."""
    workload = uncapped.whole(settings)
    for provider, rival in RIVALS.items():
        if rival.missing():
            continue
        found, rows = None, []
        try:
            with _worker(provider, workload, settings) as worker:
                samples = measure({provider: worker.run}, settings)[provider].samples
                peak = memory.status("VmHWM", worker.process_id)
        except (RuntimeError, OSError):
            pass  # no memory for it, or a system that does not tell
        else:
            found = {"seconds": samples, "peak": peak}
            rows = [row(uncapped.PART, provider, workload, samples, settings, peak)]
        measured = step_and_peak(found, physical_memory())
        yield rows, [Line(4, f"{rival}: {uncapped.described(workload)}", "-", measured, INFORMATION)]


def _worker(provider: str, workload: Recommender, settings: Settings) -> Worker:
    arguments = {"provider": provider, "workload": asdict(workload), "threads": settings.environment.threads}
    return Worker(STEP, arguments)
