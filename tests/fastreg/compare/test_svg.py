"""Figures that stand in one page with others."""

import re
from xml.etree import ElementTree

import pytest

from fastreg.compare import svg

matplotlib_figure = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")


def drawn(name):
    figure = matplotlib_figure.Figure(figsize=(4, 3))
    axes = figure.subplots()
    axes.plot([1, 2, 3], [3, 1, 2], "o-", color="#D55E00", label="a < b")
    axes.legend()
    return svg.inline(figure, name, 'what "it" shows')


def test_an_element():
    text = drawn("first")
    root = ElementTree.fromstring(text)
    assert root.tag == "svg"
    assert root.get("viewBox") == "0 0 288 216"
    assert root.get("aria-label") == 'what "it" shows'
    assert not {"width", "height"} & set(root.attrib)  # the page decides
    assert not [element for element in root.iter() if ":" in element.tag or element.tag in ("style", "metadata")]
    assert "://" not in text
    assert "#D55E00".lower() in text.lower()


def test_references_are_to_ids_of_its_own():
    for name in ("first", "second"):
        text = drawn(name)
        root = ElementTree.fromstring(text)
        ids = [element.get("id") for element in root.iter() if "id" in element.attrib]
        referenced = re.findall(r'href="#([\w.-]+)"|url\(#([\w.-]+)\)', text)
        assert len(ids) == len(set(ids))
        assert {first or second for first, second in referenced} == set(ids)
        assert all(identity.startswith(f"{name}-") for identity in ids)
