import subprocess

from fastreg_benchmarks import environment


def test_everything_is_known(checkout):
    found = environment.describe()
    assert all(value for value in (found.device, found.cores, found.threads, found.threading_layer, found.numba))
    assert environment.checkout() == checkout


def test_commit_is_empty_without_git(monkeypatch):
    def no_git(*arguments, **options):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", no_git)
    assert environment.describe().commit == ""


def test_date_has_its_time_zone():
    assert environment.describe().date.endswith("+00:00")
