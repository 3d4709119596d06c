"""The page, as a parser sees it and, where there is one, as a browser does."""

import dataclasses
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fastreg.cli import UsageError
from fastreg.compare import page
from fastreg.compare.report import Row, Verdict
from fastreg.compare.session import Outcome, Point, Side
from fastreg.compare.settings import Settings
from fastreg.compare.weights import Difference, Zeros

SETTINGS = Settings(
    model="dlrm",
    ratings=None,
    criteo="a <b> & 'c'.tsv",
    rows=1000,
    table_rows=50,
    dim=8,
    regularizer="l1l2",
    l1=1e-7,
    l2=1e-6,
    optimizer="sgd",
    learning_rate=0.5,
    batch_size=100,
    warmup=1,
    steps=10,
    seed=0,
    jit=None,
    eager=False,
    tolerance=1e-5,
)
FIGURES = 6
VOID = {"meta", "link", "br", "wbr", "img", "hr", "input", "use", "path"}


def side(seconds, before=1 << 30):
    course = [Point(step, seconds * max(step - 1, 0), 1 / (step + 1)) for step in range(1, 12)]
    return Side({"memory_before": before}, [np.full(2, seconds)] * 5, {"peak_memory": 3 << 30}, course)


def findings(settings=SETTINGS, tables=26, relative=1e-7, before=1 << 30):
    names = [f"C{number}/embeddings" for number in range(1, tables + 1)]
    zeros = Zeros(0.25, 3, 4, 100, 50, dict.fromkeys(names, 0.25))
    apart = dict.fromkeys(names, 0.0) | {"click/kernel": relative}
    difference = Difference(relative, "click/kernel", 0, 100, apart)
    seconds = {"keras": 0.3, "fastreg": 0.1, "lazy": 0.01}
    return page.Findings(
        settings,
        ["fastreg 1.2.3", f"{settings.criteo}: 7 of 9 lines left out", settings.command()],
        Outcome(
            {name: side(seconds[name], before) for name in settings.sides},
            dict.fromkeys(settings.sides[1:], difference),
            dict.fromkeys(settings.sides, zeros),
        ),
        [Row("step time & more", ["300 ms"] * len(settings.sides)), Row("AUC", ["-"] * len(settings.sides), True)],
        ["A note with <angles>."],
        [Verdict("whole step, speed-up: 3.00x"), Verdict("they disagree", failed=True)],
    )


class Parser(HTMLParser):
    """Checks that elements are closed in order, and keeps ids, references, texts and elements."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.targets, self.tags, self.texts = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self._note(tag, attributes)
        if tag not in VOID or "svg" in self.open:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert "svg" in self.open, f"<{tag} /> is no HTML"
        self._note(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    def _note(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names))
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.targets.append(value)


def words(parser):
    return " ".join(" ".join(parser.texts).split())


@pytest.mark.parametrize("model", ["movielens", "dlrm"])
def test_the_page(model):
    settings = dataclasses.replace(SETTINGS, model=model, lazy=model == "movielens")
    text = page.render(findings(settings))
    parser = Parser(text)
    assert text.startswith("<!DOCTYPE html>\n<html lang=")
    assert parser.tags.count("svg") == parser.tags.count("figure") == parser.tags.count("figcaption") == FIGURES
    assert len(parser.ids) == len(set(parser.ids))
    # Nothing is fetched: what is referred to stands in the page.
    assert parser.targets
    assert set(parser.targets) <= {f"#{identity}" for identity in parser.ids}
    assert set(re.findall(r"url\(#(.*?)\)", text)) <= set(parser.ids)
    assert "url(" not in re.sub(r"url\(#", "", text)
    assert "@import" not in text
    assert "://" not in text
    assert "script" not in parser.tags
    said = words(parser)
    for expected in ("step time & more", "A note with <angles>.", "they disagree", "fastreg 1.2.3", settings.command()):
        assert expected in said
    assert f"{settings.criteo}: 7 of 9" in said
    assert "C26" in said  # of the figures: their text is text
    assert said.count("300 ms") >= len(settings.sides)
    assert '<p class="failed">they disagree</p>' in text


@pytest.mark.parametrize("relative", [0.0, math.inf, math.nan])
def test_what_is_not_finite(relative):
    found = findings(tables=2, relative=relative, before=None)
    found.outcome.sides["lazy"].course[-1] = Point(11, 1.0, math.nan)
    assert Parser(page.render(found)).tags.count("svg") == FIGURES


def test_what_cannot_be_written(tmp_path, monkeypatch):
    page.require(tmp_path / "new.html")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="Is a directory"):
        page.require(tmp_path)
    with pytest.raises(UsageError, match=r"page\.html: no folder .*missing"):
        page.require(tmp_path / "missing" / "page.html")
    monkeypatch.setattr(page.os, "access", lambda *_: False)
    with pytest.raises(UsageError, match="cannot be written"):
        page.require(tmp_path / "page.html")
    monkeypatch.setattr(page.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"matplotlib.*fastreg-keras\[demo\]"):
        page.require(tmp_path / "page.html")


def browser():
    """A Chromium on the path, or Playwright's."""
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
    found = [path for name in names if (path := shutil.which(name))]
    kept = Path.home() / ".cache" / "ms-playwright"
    patterns = ("*/chrome-*/chrome-headless-shell", "*/chrome-*/headless_shell", "*/chrome-*/chrome")
    return (found + [str(path) for pattern in patterns for path in sorted(kept.glob(pattern))] or [None])[0]


CHROMIUM = browser()

MEASURE = """<script>
const drawn = [...document.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().height > 100);
const shown = drawn.filter(svg => svg.getBoundingClientRect().right <= innerWidth);
const root = document.documentElement;
root.dataset.found = `${innerWidth} wide, ${shown.length} figures, ${root.scrollWidth - innerWidth} too wide`;
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path, and none of Playwright's")
@pytest.mark.parametrize("width", [1280, 500])
def test_in_a_browser(tmp_path, width):
    path, picture = tmp_path / "page.html", tmp_path / "page.png"
    text = page.render(findings())
    # The page allows no script; this one measures what was laid out.
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy".*?>')
    for content in (text, policy.sub("", text).replace("</body>", MEASURE)):
        path.write_text(content, encoding="utf-8")
        flags = ["headless", "no-sandbox", "disable-gpu", "hide-scrollbars", "enable-logging=stderr", "dump-dom"]
        flags += [f"user-data-dir={tmp_path}", f"window-size={width},1500", f"screenshot={picture}"]
        done = subprocess.run(
            [CHROMIUM, *(f"--{flag}" for flag in flags), path.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert "CONSOLE" not in done.stderr
    assert f'data-found="{width} wide, {FIGURES} figures, 0 too wide"' in done.stdout
    assert Parser(done.stdout).tags.count("svg") == FIGURES
    import matplotlib.image

    colors = matplotlib.image.imread(picture)[..., :3].reshape(-1, 3)
    assert len(np.unique((colors * 15).astype(int), axis=0)) > 20
