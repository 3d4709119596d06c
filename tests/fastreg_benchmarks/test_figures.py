import pytest
from fastreg_benchmarks import figures
from fastreg_benchmarks.providers import DEFAULT_MODES

from fastreg.cli import UsageError

SIZES = (1, 100, 10_000, 1_000_000)


@pytest.fixture
def run_rows(make_row):
    return [
        make_row(size=size, provider=provider, mode=mode, p50_s=1e-4 + size * 1e-9, limit_s=size * 1e-10)
        for size in SIZES
        for provider, modes in (("keras", DEFAULT_MODES), ("fastreg", DEFAULT_MODES), ("kernel", ("direct",)))
        for mode in modes
    ]


def is_small_png(path):
    content = path.read_bytes()
    return content.startswith(b"\x89PNG") and 10_000 < len(content) < 300_000


def test_plot_is_written(run_rows, tmp_path):
    figures.plot(run_rows, tmp_path / "plot.png")
    assert is_small_png(tmp_path / "plot.png")


def test_plot_of_little(run_rows, tmp_path):
    figures.plot([row for row in run_rows if row.provider == "kernel" and row.size == 100], tmp_path / "plot.png")
    assert is_small_png(tmp_path / "plot.png")


def test_nothing_to_draw(make_row, tmp_path):
    for rows in ([], [make_row(what="value")]):
        with pytest.raises(UsageError, match="no results"):
            figures.plot(rows, tmp_path / "plot.png")


def test_a_place_that_cannot_be_written(run_rows, tmp_path):
    with pytest.raises(UsageError, match="cannot write"):
        figures.plot(run_rows, tmp_path / "missing" / "plot.png")
