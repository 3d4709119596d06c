import pytest
from fastreg_benchmarks import documents, environment, report, results
from fastreg_benchmarks.results import LimitRow

from fastreg.cli import UsageError

DOCUMENT = """Before.

<!-- penalty -->
old
<!-- /penalty -->

Between.

<!-- limits -->
<!-- /limits -->
"""


@pytest.fixture
def rows(make_row):
    modes = (("keras", "eager"), ("keras", "jit"), ("fastreg", "eager"), ("fastreg", "tf.function"))
    return [make_row(provider=provider, mode=mode) for provider, mode in modes]


@pytest.fixture
def limit(environment_of_rows):
    return LimitRow(**environment_of_rows, line=1, what="a kernel", target="fast", measured="0.9", verdict="pass")


def test_tables_come_from_the_newest_run(rows, make_row, limit, tmp_path):
    results.append(tmp_path / "penalty.csv", [*rows, make_row("2020-01-01T00:00:00+00:00", size=77)])
    results.append(tmp_path / "limits.csv", [limit])
    text = documents.refreshed(DOCUMENT, tmp_path)
    assert report.readme_table(rows) in text
    assert "| fast | a kernel | 0.9 | pass |" in text
    assert "old" not in text
    assert text.startswith("Before.\n\n<!-- penalty -->\n")
    assert "\nBetween.\n" in text
    assert documents.refreshed(text, tmp_path) == text


@pytest.mark.parametrize("name", ["lazy_targets", "recommender_targets", "bags", "xla", "xla-gpu"])
def test_targets_of_each_suite(name, limit, tmp_path):
    results.append(tmp_path / f"{name}.csv", [limit])
    text = documents.refreshed(f"<!-- {name} -->\n<!-- /{name} -->\n", tmp_path)
    assert "| fast | a kernel | 0.9 | pass |" in text


def test_without_results(tmp_path):
    text = documents.refreshed(DOCUMENT, tmp_path)
    assert "old" not in text
    assert text.count(documents.NOT_MEASURED) == 2
    (tmp_path / "penalty.csv").write_text("other,columns\n")
    with pytest.raises(UsageError, match=r"penalty\.csv"):
        documents.refreshed(DOCUMENT, tmp_path)
    with pytest.raises(UsageError, match="no results other"):
        documents.refreshed("<!-- other -->\n<!-- /other -->\n", tmp_path)


def test_outside_of_a_checkout(monkeypatch, capsys):
    monkeypatch.setattr(environment, "checkout", lambda: None)
    assert documents.main([]) == 2
    assert "not in a checkout" in capsys.readouterr().err


@pytest.mark.parametrize("name", documents.DOCUMENTS)
def test_every_table_in_the_documents_was_printed(checkout, name):
    text = (checkout / name).read_text(encoding="utf-8")
    assert "<!-- " in text
    assert documents.refreshed(text, checkout / "benchmarks" / "results") == text


def test_the_picture_is_there(checkout):
    text = (checkout / "README.md").read_text(encoding="utf-8")
    assert "benchmarks/results/penalty.png" in text
    assert (checkout / "benchmarks" / "results" / "penalty.png").read_bytes().startswith(b"\x89PNG")
