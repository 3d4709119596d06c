import pytest
from fastreg_benchmarks import results
from fastreg_benchmarks.results import LimitRow, Row

from fastreg.cli import UsageError


def test_round_trip(tmp_path, make_row):
    rows = [make_row(), make_row(size=7, best_keras=None, speedup=None, gradient_error=None, gbs=1e-17)]
    path = tmp_path / "rows.csv"
    results.append(path, rows[:1])
    results.append(path, rows[1:])
    assert results.read(path, Row) == rows
    assert path.read_text().count("provider") == 1  # one header


def test_round_trip_of_limits(tmp_path, environment_of_rows):
    row = LimitRow(**environment_of_rows, line=3, what='a, "b"', target="1 µs", measured="2 [1, 3]", verdict="pass")
    results.append(tmp_path / "limits.csv", [row])
    assert results.read(tmp_path / "limits.csv", LimitRow) == [row]


def test_newest_run(make_row):
    old, new = "2026-01-02T03:04:05+00:00", "2026-02-01T00:00:00+00:00"
    rows = [make_row(new, size=1), make_row(old), make_row(new, size=2)]
    assert [row.size for row in results.newest_run(rows)] == [1, 2]
    assert results.newest_run([]) == []


def test_nothing_to_append_makes_no_file(tmp_path):
    results.append(tmp_path / "rows.csv", [])
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_other_columns_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="other columns"):
        results.prepare(path, Row)
    with pytest.raises(UsageError, match="columns"):
        results.read(path, Row)
    assert path.read_text() == "a,b\n1,2\n"


def test_prepare_accepts_a_new_file_and_one_of_ours(tmp_path, make_row):
    path = tmp_path / "rows.csv"
    results.prepare(path, Row)
    assert not path.exists()
    results.append(path, [make_row()])
    results.prepare(path, Row)


@pytest.mark.parametrize("name", ["missing/rows.csv", "."])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, name):
    with pytest.raises(UsageError):
        results.prepare(tmp_path / name, Row)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"date\n1\n"])
def test_what_is_no_results_file_is_refused(tmp_path, content):
    path = tmp_path / "rows.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"rows\.csv"):
        results.read(path, Row)


def test_a_broken_line_is_refused(tmp_path, make_row):
    path = tmp_path / "rows.csv"
    results.append(path, [make_row()])
    header, line = path.read_text().splitlines()
    for broken in ("2026,short", line + ",1", line.replace("1000", "many")):
        path.write_text(f"{header}\n{broken}\n")
        with pytest.raises(UsageError, match="cannot read"):
            results.read(path, Row)
