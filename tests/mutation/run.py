"""Changes one place of a module at a time, and tells which changes no test notices.

The changes are Cosmic Ray's. Its own runner starts a process for each, which spends ten seconds on importing
TensorFlow; here one process imports it and is forked for each change. The changed module is compiled from memory: no
file is written, so that kernels, which are kept by a hash of their sources, need not be compiled again.

Numba, which keeps compiled functions by the date of the file, would not see such a change: of the modules of kernels
only `reference.py` is for this.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import importlib.util
import linecache
import os
import random
import signal
import sys
import time
import tomllib
from difflib import unified_diff
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CONFIG = tomllib.loads((Path(__file__).parent / "modules.toml").read_text(encoding="utf-8"))


def mutants_of(path):
    """The changes of a module as pairs (what, changed source), in order, without those that change nothing."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (ROOT / path).read_text(encoding="utf-8")
    annotations = list(_annotations(ast.parse(source)))
    lines, ignored = source.splitlines(), tuple(CONFIG["ignored"]["after"])
    nodes = list(ast_nodes(get_ast(source)))
    found, seen = [], {source}
    for name in CONFIG["operators"]["names"]:
        operator = get_operator(f"core/{name}")()
        positions = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, start in enumerate(positions):
            if any(first <= start < last for first, last in annotations):
                continue
            if lines[start[0] - 1][: start[1]].rstrip().endswith(ignored):
                continue
            changed = mutate_code(source, operator, occurrence)
            if changed not in seen:  # two operators may make the same change
                seen.add(changed)
                found.append((f"{path}:{start[0]}:{start[1]} {name}", changed))
    return found


def _annotations(tree):
    """From where to where annotations go, which nothing evaluates."""
    for node in ast.walk(tree):
        annotation = getattr(node, "returns", None) or getattr(node, "annotation", None)
        if annotation is not None:
            yield (annotation.lineno, annotation.col_offset), (annotation.end_lineno, annotation.end_col_offset)


class _InThisProcess:
    """Leaves out tests of new processes, which would import what is in the file."""

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if "run_python" not in item.fixturenames]


class _Changed(importlib.abc.MetaPathFinder):
    """Finds the changed module before the one in the file is found."""

    def __init__(self, path, source):
        self._file = str(ROOT / path)
        parts = Path(path).with_suffix("").parts
        self._name, self._source = ".".join(parts[1:] if parts[0] == "kernels" else parts), source
        # For whoever reads source, as AutoGraph does; without a date, by which it counts as up to date.
        linecache.cache[self._file] = (len(source), None, source.splitlines(keepends=True), self._file)

    def find_spec(self, name, path=None, target=None):
        if name != self._name:
            return None
        loader = importlib.machinery.SourceFileLoader(name, self._file)
        loader.get_code = lambda name: compile(self._source, self._file, "exec", dont_inherit=True)
        return importlib.util.spec_from_file_location(name, self._file, loader=loader)


def passes(path, source, seconds, log):
    """Whether the tests pass with this source of a module, in a fork of this process."""
    import pytest

    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        with log.open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        sys.meta_path.insert(0, _Changed(path, source))
        options = ["-q", "-x", "--hypothesis-profile", "ci", "-p", "no:cacheprovider", "-p", "no:xdist"]
        code = 3
        try:
            code = pytest.main([*options, *CONFIG["modules"][path]], plugins=[_InThisProcess()])
        finally:
            sys.stdout.flush()
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
        sys.exit(f"pytest itself failed for {path}, which says nothing of a change: {log}")
    return code == 0


def main():
    """Run what the command line asks for; the exit status is 1 if a change was not noticed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", default=list(CONFIG["modules"]), help="paths; by default all")
    parser.add_argument("--sample", type=int, help="changes of each module, drawn at random; by default all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", help="a part of what a change is called, such as a line, 'plain.py:70:'")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for the tests of one change")
    parser.add_argument("--list", action="store_true", help="only print the changes")
    parser.add_argument("--log", type=Path, default=Path("/dev/null"), help="file for what the last tests printed")
    options = parser.parse_args()
    os.chdir(ROOT)
    drawn = []
    for path in options.modules:
        mutants = [mutant for mutant in mutants_of(path) if options.only is None or options.only in mutant[0]]
        count = len(mutants) if options.sample is None else min(options.sample, len(mutants))
        print(f"{path}: {count} of {len(mutants)} changes", flush=True)
        drawn += [(path, *mutant) for mutant in random.Random(options.seed).sample(mutants, count)]
    if options.list:
        for path, what, source in drawn:
            print(what, _difference(path, source), sep="\n")
        return 0

    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "OPENBLAS_NUM_THREADS": "1"}
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "benchmarks")]
    # What forks share. None of these starts threads when it is imported, and nothing of fastreg is imported here.
    for name in ("hypothesis", "keras", "numba", "pytest", "tensorflow"):
        importlib.import_module(name)

    for path in dict.fromkeys(path for path, *_ in drawn):
        if not passes(path, (ROOT / path).read_text(encoding="utf-8"), options.timeout, options.log):
            sys.exit(f"The tests of {path} fail without a change, or take longer than {options.timeout:g} s.")
    survivors = 0
    for path, what, source in drawn:
        start = time.monotonic()
        survived = passes(path, source, options.timeout, options.log)
        survivors += survived
        print(f"{'survived' if survived else 'noticed '} {time.monotonic() - start:5.0f} s  {what}", flush=True)
        if survived:
            print(_difference(path, source), flush=True)
    print(f"{len(drawn) - survivors} of {len(drawn)} changes were noticed")
    return 1 if survivors else 0


def _difference(path, source):
    original = (ROOT / path).read_text(encoding="utf-8")
    lines = unified_diff(original.splitlines(), source.splitlines(), n=0, lineterm="")
    return "\n".join(f"    {line}" for line in lines if line[:3] not in ("---", "+++"))


if __name__ == "__main__":
    sys.exit(main())
