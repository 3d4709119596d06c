"""Where compiled kernels are kept: folders that are tried, folders that are refused, and what is found there again."""

import ctypes
import itertools
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from fastreg_kernels.cpu import jit
from numba import config, int64

# Computes, and prints the folder, Numba's own setting, and how many kernels were loaded and how many compiled.
REPORT = """
print(folder)
print(repr(config.CACHE_DIR))
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""

WITH_A_KERNEL = (
    """
import numpy as np
import fastreg_kernels as kernels
from fastreg_kernels.cpu import jit, penalty
from numba import config

assert kernels.forward(np.array([1.0, -2.0])).tolist() == [3.0, 5.0]
folder, stats = jit.cache_folder(), penalty.sums_of.stats
"""
    + REPORT
)

SOURCES = "def double(x):\n    return 2.0 * x\n\n\ndef halve(x):\n    return 0.5 * x\n"

# With two functions of which each is compiled in no time. Where they are kept is decided as it is for kernels.
COMPUTE = (
    """
import sys
from pathlib import Path
import numpy as np
from fastreg_kernels.cpu import jit
from numba import config

sys.path.insert(0, sys.argv[1])
import small

compiler = jit.Compiler(Path(sys.argv[1]))
double, halve = compiler.jit(small.double), compiler.jit(small.halve)
assert double(1.0) == 2.0
folder, stats = compiler.folder, double.stats
"""
    + REPORT
)

OPEN_TO_OTHERS = (0o720, 0o702, 0o770, 0o707, 0o777, 0o1777)

as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="folders have no owner and mode here")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The folder of what COMPUTE compiles."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "small.py").write_text(SOURCES)
    return folder


@pytest.fixture
def run_in(run_python, sources, tmp_path):
    """Run code in an environment that has no cache folder but in `tmp_path`; returns what it printed, in lines."""
    home = {"HOME": tmp_path / "home", "TMPDIR": tmp_path / "tmp", "NUMBA_CACHE_DIR": None, "XDG_CACHE_HOME": None}
    (tmp_path / "tmp").mkdir()

    def run(code=COMPUTE, **environment):
        return run_python(code, sources, **home | environment).splitlines()

    return run


def test_home(run_in, tmp_path):
    folder, setting, counts = run_in(WITH_A_KERNEL)
    assert Path(folder).parent == tmp_path / "home" / ".cache" / "fastreg"
    assert setting == "''"
    assert counts == "0 1"
    assert list(Path(folder).rglob("penalty.sums_of*.nbi"))
    assert (Path(folder).parent.stat().st_mode & 0o777) == 0o700


def test_numbas_own_setting_comes_first(run_in, tmp_path):
    chosen, other = tmp_path / "chosen", tmp_path / "xdg"
    folder, setting, _ = run_in(NUMBA_CACHE_DIR=chosen, XDG_CACHE_HOME=other)
    assert Path(folder).parent == chosen / "fastreg"
    assert setting == repr(str(chosen))
    assert list(Path(folder).rglob("small.double*.nbi"))
    assert not other.exists()
    assert not (tmp_path / "home").exists()


def test_xdg_cache_home_comes_before_home(run_in, tmp_path):
    folder, setting, _ = run_in(XDG_CACHE_HOME=tmp_path / "xdg")
    assert Path(folder).parent == tmp_path / "xdg" / "fastreg"
    assert setting == "''"
    assert not (tmp_path / "home").exists()


@posix
@pytest.mark.parametrize("home", ["/dev/null", "a file"])
def test_home_that_is_no_folder(run_in, tmp_path, home):
    if home == "a file":
        home = tmp_path / "file"
        home.write_bytes(b"")
    folder, setting, _ = run_in(HOME=home)
    assert Path(folder).parent == tmp_path / "tmp" / f"fastreg-{os.getuid()}"
    assert setting == "''"


@posix
@pytest.mark.parametrize("user", ["known", "unknown"])
def test_no_home(run_in, tmp_path, user):
    """As in a container that runs under a user id of its own."""
    unknown = """
import pwd

def getpwuid(uid):
    raise KeyError(uid)

pwd.getpwuid = getpwuid
"""
    import pwd

    folder, _, _ = run_in(COMPUTE if user == "known" else unknown + COMPUTE, HOME=None)
    candidates = [tmp_path / "tmp" / f"fastreg-{os.getuid()}"]
    if user == "known":
        candidates.append(Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache" / "fastreg")
    assert Path(folder).parent in candidates


@posix
def test_folders_that_others_can_write_to_are_refused(run_in, tmp_path):
    """What lies there is executed when it is loaded."""
    shared = tmp_path / "shared" / "fastreg"
    shared.mkdir(parents=True)
    shared.chmod(0o1777)
    folder, _, _ = run_in(NUMBA_CACHE_DIR=tmp_path / "shared")
    assert Path(folder).parent == tmp_path / "home" / ".cache" / "fastreg"
    assert not list(shared.iterdir())


@posix
@pytest.mark.parametrize(
    ("mode", "usable"), [(0o700, True), (0o755, True), *((mode, False) for mode in OPEN_TO_OTHERS)]
)
def test_modes(tmp_path, mode, usable):
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(mode)
    assert jit._usable(folder) is usable
    assert not list(folder.iterdir())


@as_root
def test_folders_of_somebody_else_are_refused(tmp_path):
    os.chown(tmp_path, 12345, -1)
    assert not jit._usable(tmp_path)


def test_no_folder_at_all(run_in):
    """A read-only system without even a folder for temporary files: kernels are compiled in each process."""
    nowhere = """
import tempfile

def gettempdir():
    raise FileNotFoundError("No usable temporary directory found")

tempfile.gettempdir = gettempdir
"""
    variables = dict.fromkeys(["HOME", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"], "/dev/null")
    assert run_in(nowhere + COMPUTE, **variables) == ["None", "'/dev/null'", "0 1"]


def test_no_candidate_is_usable(monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    candidates = [tmp_path / "file", tmp_path / "file" / "below"]
    monkeypatch.setattr(jit, "_candidates", lambda: candidates)
    assert jit._choose_root() is None
    candidates.append(tmp_path / "folder")
    assert jit._choose_root() == tmp_path / "folder"


def test_functions_are_compiled_without_a_folder(monkeypatch):
    monkeypatch.setattr(jit, "_ROOT", None)
    compiler = jit.Compiler(Path(jit.__file__).parent)
    assert compiler.folder is None
    assert compiler.jit(lambda a: a + 1)(2) == 3
    callback = compiler.cfunc(int64(int64))(lambda a: a + 1)
    assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(callback.address)(2) == 3


def test_numbas_setting_comes_back_after_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(jit, "_ROOT", tmp_path)
    compiler = jit.Compiler(Path(jit.__file__).parent)
    assert compiler.folder.parent == tmp_path
    before = config.CACHE_DIR

    class Uncachable:
        def enable_caching(self):
            assert str(compiler.folder) == config.CACHE_DIR
            raise RuntimeError("no locator")

    with pytest.raises(RuntimeError, match="no locator"):
        compiler._kept(Uncachable())
    assert before == config.CACHE_DIR


def test_candidates_in_order(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "numba"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    first, second, third, last = jit._candidates()
    assert (first, second) == (tmp_path / "numba" / "fastreg", tmp_path / "xdg" / "fastreg")
    assert third == Path.home() / ".cache" / "fastreg"
    assert last.parent == Path(tempfile.gettempdir())
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert jit._candidates() == [third, last]


def test_a_second_process_loads_what_the_first_compiled(run_in):
    first, second = run_in(WITH_A_KERNEL), run_in(WITH_A_KERNEL)
    assert first[0] == second[0]
    assert (first[2], second[2]) == ("0 1", "1 0")


def test_other_sources_get_another_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(jit, "_ROOT", tmp_path / "cache")
    packages = [tmp_path / "one", tmp_path / "two"]
    sources = [packages[0] / "cpu" / "jit.py", packages[0] / "other.py", packages[1] / "inner.py"]
    for source in sources:
        source.parent.mkdir(exist_ok=True, parents=True)
        source.write_text("a = 1\n")
    folders = {jit.Compiler(*packages).folder}
    assert folders == {jit.Compiler(*packages).folder}
    for source in sources:
        source.write_text("a = 2\n")
        folders.add(jit.Compiler(*packages).folder)
    assert len(folders) == 4


def test_kernels_for_another_processor_are_not_mixed_up(run_in):
    """Both in one folder, as when machines share a home."""
    run_in()
    assert run_in(NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")[2] == "0 1"
    assert run_in()[2] == "1 0"


COMPUTE_TWICE = COMPUTE + "assert halve(1.0) == 0.5\n"


@pytest.fixture(scope="module")
def filled_cache(start_python, sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    start_python(COMPUTE_TWICE, sources, NUMBA_CACHE_DIR=folder).finish()
    return folder


@pytest.mark.parametrize(
    ("kind", "damage"),
    [*itertools.product(["nbi", "nbc"], ["cut", "empty", "zeros", "unreadable"]), ("nbc", "another instruction")],
)
def test_damaged_files_are_compiled_anew_with_one_warning(start_python, sources, filled_cache, tmp_path, kind, damage):
    shutil.copytree(filled_cache, tmp_path, dirs_exist_ok=True)
    files = list(tmp_path.rglob(f"*.{kind}"))
    assert len(files) >= 2
    for file in files:
        content = file.read_bytes()
        half, start = len(content) // 2, content.find(b"\x7fELF") + 64  # the length of the header
        damaged = {
            "cut": content[:half],
            "zeros": bytes(len(content)),
            "another instruction": content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :],
        }
        file.write_bytes(damaged.get(damage, b""))
        if damage == "unreadable":
            file.unlink()
            file.mkdir()
    output, errors = start_python(COMPUTE_TWICE, sources, NUMBA_CACHE_DIR=tmp_path).finish()
    assert output.splitlines()[2] == "0 1"
    if damage != "unreadable":
        assert errors.count("are damaged") == 1
        output, errors = start_python(COMPUTE_TWICE, sources, NUMBA_CACHE_DIR=tmp_path).finish()
        assert output.splitlines()[2] == "1 0"
        assert "damaged" not in errors


# Two functions that spread work over threads: what the threads run has one name, but for its number.
SHARING = """
import numpy as np
from fastreg_kernels.cpu import launch
from fastreg_kernels.cpu.jit import inner

def sharing(factor):
    @inner
    def task(first, last, out, x):
        for i in range(first, last):
            out[i] = factor * x
    return launch.sharing(task)

by_two, by_three = sharing(2.0), sharing(3.0)

def double(x):
    out = np.empty(4)
    by_two(4, 1 << 30, (out, x))
    return out[3]

def triple(x):
    out = np.empty(4)
    by_three(4, 1 << 30, (out, x))
    return out[3]
"""

COMPUTE_SHARED = """
import sys
from pathlib import Path
import fastreg_kernels
from fastreg_kernels.cpu import jit

fastreg_kernels.threading_layer()
folder, *names = sys.argv[1:]
sys.path.insert(0, folder)
import shared

compiler = jit.Compiler(Path(folder))
functions = [compiler.jit(getattr(shared, name)) for name in names]
print(*(function(1.0) for function in functions))
print(sum(sum(function.stats.cache_hits.values()) for function in functions))
"""


@pytest.mark.parametrize("order", [("double", "triple"), ("triple", "double")])
def test_code_of_two_processes_in_a_third(run_python, tmp_path, order):
    """Each is found by its own name, though both processes have numbered it alike."""
    (tmp_path / "shared.py").write_text(SHARING)
    kept = {"NUMBA_CACHE_DIR": tmp_path / "kept"}
    for name in order:
        run_python(COMPUTE_SHARED, tmp_path, name, **kept)
    expected = {"double": 2.0, "triple": 3.0}
    output = run_python(COMPUTE_SHARED, tmp_path, *order, **kept)
    assert output.splitlines() == [" ".join(str(expected[name]) for name in order), "2"]


def test_code_in_the_place_of_other_code(run_in, tmp_path):
    """As two processes that start at once can leave it, when one needs a kernel for another dtype than the other."""
    wide, narrow = tmp_path / "wide", tmp_path / "narrow"
    run_in(NUMBA_CACHE_DIR=wide)
    run_in(COMPUTE.replace("double(1.0)", "double(np.float32(1.0))"), NUMBA_CACHE_DIR=narrow)
    (theirs,), (ours,) = (list(folder.rglob("small.double*.nbc")) for folder in (narrow, wide))
    assert ours.name == theirs.name
    ours.write_bytes(theirs.read_bytes())
    assert run_in(NUMBA_CACHE_DIR=wide)[2] == "0 1"
    assert run_in(NUMBA_CACHE_DIR=wide)[2] == "1 0"


def test_processes_that_start_at_once(start_python, tmp_path):
    code = WITH_A_KERNEL + "kernels.backward(np.ones(100_000, np.float32), 0.1, 0.2)\n"
    processes = [start_python(code, NUMBA_CACHE_DIR=tmp_path) for _ in range(3)]
    folders = {process.finish()[0].splitlines()[0] for process in processes}
    assert len(folders) == 1
    assert Path(folders.pop()).parent == tmp_path / "fastreg"
    assert start_python(code, NUMBA_CACHE_DIR=tmp_path).finish()[0].splitlines()[2] == "1 0"


@posix
def test_a_disk_that_fills_up(run_in):
    """Compiled code that cannot be kept is no reason not to compute."""
    full = """
import resource
import signal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # no file may grow beyond this
"""
    assert run_in(full + COMPUTE)[2] == "0 1"


def test_compiling_is_timed_and_announced_once(start_python, tmp_path):
    """Of functions that are called by their address too; nothing of what was found compiled, or is the user's own."""
    for name in ("fastreg_module", "theirs"):
        (tmp_path / f"{name}.py").write_text("def kernel(x):\n    return x + 1.0\n")
    code = f"""
import sys
import numba
import numpy as np
import fastreg_kernels as kernels
from fastreg_kernels.cpu import jit
from pathlib import Path

sys.path.insert(0, {str(tmp_path)!r})
import fastreg_module
import theirs

jit._PATIENCE_S = 0.0
numba.njit(theirs.kernel)(1.0)
assert jit.timings() == {{}}
print("theirs is compiled", file=sys.stderr)
kernels.backward(np.ones(3), 0.1, 0.2)
jit.Compiler(Path(jit.__file__).parent).cfunc(numba.float64(numba.float64))(fastreg_module.kernel)
print(*sorted(jit.timings()))
assert all(seconds > 0 for seconds in jit.timings().values())
"""
    announced = "fastreg compiles kernels for the first time here, and keeps them for the next process"
    first, errors = start_python(code, NUMBA_CACHE_DIR=tmp_path / "cache").finish()
    assert first.split() == ["fastreg_kernels.cpu.penalty.write_gradient", "fastreg_module.kernel"]
    assert announced not in errors.partition("theirs is compiled")[0]
    assert errors.count(announced) == 1
    second, errors = start_python(code, NUMBA_CACHE_DIR=tmp_path / "cache").finish()
    assert second.split() == []
    assert announced not in errors
