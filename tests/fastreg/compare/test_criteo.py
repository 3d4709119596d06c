"""Lines of Criteo's format, and what is wrong with files."""

import gzip
import re

import numpy as np
import pytest
from fastreg_benchmarks.workloads import CARDINALITIES
from hypothesis import given
from hypothesis import strategies as st

from fastreg.cli import UsageError
from fastreg.compare import criteo

GOOD = "\t".join(["1", "5", "-3", *[""] * 11, "68fd1e64", "", *["0000000a"] * 24])
OTHER = "\t".join(["0", *["7"] * 13, *[f"{number:08x}" for number in range(26)]])


def with_field(place, value):
    fields = OTHER.split("\t")
    fields[place] = value
    return "\t".join(fields)


@pytest.fixture
def write(tmp_path):
    def write(*lines, name="train.tsv", end="\n"):
        content = "".join(line + end for line in lines).encode()
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write


def load(path, rows=100, table_rows=1000):
    return criteo.load(path, rows, table_rows, lambda text, done: None)


@pytest.mark.parametrize(("name", "end"), [("train.tsv", "\n"), ("train.tsv.gz", "\n"), ("train.txt", "\r\n")])
def test_a_file(write, name, end):
    path = write(GOOD, OTHER, OTHER, name=name, end=end)
    examples = load(path)
    assert examples.targets.tolist() == [1, 0, 0]
    counts = examples.inputs["counts"]
    assert counts.dtype == np.float32
    assert counts.shape == (3, 13)
    assert counts[0].tolist() == [np.float32(np.log(6)), *[0.0] * 12]  # below zero and missing are zero
    np.testing.assert_allclose(counts[1], np.log(8), rtol=1e-6)
    ids = examples.inputs["ids"]
    assert ids.dtype == np.int32
    assert (ids[1] == ids[2]).all()
    # Values that differ have rows of their own, the missing one too; the 11th of both lines is a.
    assert (ids[0] != ids[1]).tolist() == [number != 10 for number in range(26)]
    assert list(examples.tables.values()) == [min(size, 1000) for size in CARDINALITIES]
    assert examples.source == f"{path}: 3 impressions, 33.3% of them clicked"
    assert examples.notes == ()


def test_the_first_lines(write):
    path = write(GOOD, "bad", OTHER, OTHER, "never read")
    examples = load(path, rows=2)
    assert examples.targets.tolist() == [1, 0]
    assert len(examples.notes) == 1
    assert "1 of 3 lines" in examples.notes[0]


def test_tables_of_few_rows(write):
    lines = [with_field(14 + 8, f"{number:x}") for number in range(9)]  # of the table that has 3 rows in Criteo's data
    examples = load(write(*lines))
    assert examples.tables["C9"] == 9
    assert sorted(examples.inputs["ids"][:, 8]) == list(range(9))
    narrow = load(write(*lines), table_rows=2)
    assert set(narrow.tables.values()) == {2}
    assert set(narrow.inputs["ids"][:, 8].tolist()) == {0, 1}


def test_bad_lines_are_counted_and_named(write):
    bad = ["", "1\t2", with_field(0, "2"), with_field(3, "x"), with_field(20, "xyz")]
    examples = load(write("label\tI1", GOOD, *bad, OTHER))
    (note,) = examples.notes
    assert "6 of 8 lines left out: line 1: fields separated by tabs: 2, not 40; line 3: " in note
    assert note.endswith("; …")
    assert note.count("line ") == criteo.NAMED
    assert len(examples.targets) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "fields separated by tabs: 1, not 40"),
        (OTHER + "\t", "fields separated by tabs: 41, not 40"),
        (OTHER.replace("\t", ","), "fields separated by tabs: 1, not 40"),
        (with_field(0, ""), "the label is '', not 0 or 1"),
        (with_field(0, "2"), "the label is '2', not 0 or 1"),
        (with_field(1, "1.5"), "count 1 is '1.5', not an integer"),
        (with_field(13, "-"), "count 13 is '-', not an integer"),
        (with_field(13, "9" * 30), "count 13 is '99999999999999999999…', not an integer"),
        (with_field(14, "g"), "category 1 is 'g', not up to 8 hexadecimal digits"),
        (with_field(39, "0x1f"), "category 26 is '0x1f', not up to 8 hexadecimal digits"),
        (with_field(39, " a"), "category 26 is ' a', not up to 8 hexadecimal digits"),
        ("1" * 5000, "longer than 4096 bytes"),
    ],
)
def test_what_is_wrong(write, line, said):
    (note,) = load(write(GOOD, line, OTHER)).notes
    assert f"1 of 3 lines left out: line 2: {said}" in note
    assert "\n" not in note


@given(
    st.lists(st.sampled_from(["0", "1", "2", "", "-1", "-", "ff", "FF00", "g", "123456789", "٣"]), max_size=3),
    st.lists(st.integers(0, 39), min_size=3, max_size=3),
)
def test_every_bad_line_has_a_fault(values, places):
    fields = OTHER.split("\t")
    for place, value in zip(places, values, strict=False):
        fields[place] = value
    good = (
        fields[0] in ("0", "1")
        and all(re.fullmatch("(-?[0-9]+)?", value) for value in fields[1:14])
        and all(re.fullmatch("[0-9a-fA-F]{0,8}", value) for value in fields[14:])
    )
    lines = criteo.Lines()
    lines.add("\t".join(fields).encode())
    assert lines.good == good
    assert len(lines.faults) == 1 - good


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "the file is empty"),
        (["one", "two"], "none of 2 lines is of Criteo's format; line 1: fields separated by tabs: 1, not 40; line 2"),
        ([GOOD, "two"], "1 good line"),
    ],
)
def test_files_without_lines_to_train_on(write, lines, said):
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        load(write(*lines))
    assert "train.tsv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_something_else_is_not_read_to_its_end(write, monkeypatch):
    monkeypatch.setattr(criteo, "PATIENCE", 5)
    with pytest.raises(UsageError, match="none of 5 lines"):
        load(write(*["nothing"] * 9))


def test_no_text(tmp_path):
    path = tmp_path / "binary"
    path.write_bytes(bytes(range(256)) * 100)
    with pytest.raises(UsageError, match="none of") as caught:
        load(path)
    assert str(caught.value).isprintable()


def test_a_byte_order_mark(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text(f"{GOOD}\n{OTHER}", encoding="utf-8-sig")  # and no end of the last line
    assert load(path).notes == ()


def test_the_beginning_of_a_compressed_file(tmp_path):
    """As `head -c` leaves it."""
    generator = np.random.default_rng(0)
    lines = [with_field(14, f"{number:08x}") for number in generator.integers(0, 2**32, 5000)]
    whole = gzip.compress("\n".join(lines).encode())
    path = tmp_path / "train.tsv.gz"
    path.write_bytes(whole[: len(whole) // 2])
    examples = load(path, rows=5000)
    assert 100 < len(examples.targets) < 5000
    assert "not read to its end: Compressed file ended" in examples.notes[-1]
    path.write_bytes(whole[:12])
    with pytest.raises(UsageError, match="not read to its end"):
        load(path)
    path.write_bytes(b"\x1f\x8bnothing that gzip wrote")
    with pytest.raises(UsageError, match="not read to its end"):
        load(path)


def test_what_is_no_file(tmp_path):
    with pytest.raises(UsageError, match=r"missing\.tsv: No such file"):
        load(tmp_path / "missing.tsv")
    with pytest.raises(UsageError, match="directory"):
        load(tmp_path)


def test_progress(write, monkeypatch):
    monkeypatch.setattr(criteo, "_NOTIFY", 2)
    heard = []
    criteo.load(write(*[OTHER] * 5), 100, 1000, lambda text, done: heard.append(done))
    assert heard == [0, 2, 2]
