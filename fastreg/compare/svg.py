"""Figures of matplotlib as parts of a page."""

from __future__ import annotations

import io
import re
from typing import Any
from xml.etree import ElementTree

_NAMESPACE = re.compile(r"\{.*?\}")
_REFERENCE = re.compile(r"#([\w.-]+)")
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def inline(figure: Any, name: str, title: str) -> str:
    """An `<svg>` element that can stand in a page of HTML with others.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    name : str
        Unique in the page; the ids of the element begin with it.
    title : str
        What the figure shows, for those who cannot see it.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=_NO_METADATA)
    root = ElementTree.fromstring(file.getvalue())  # noqa: S314 - written by matplotlib
    box = root.get("viewBox", "")
    root.attrib.clear()
    # matplotlib's style sheet would hold for the whole page.
    root.attrib |= {"viewBox": box, "role": "img", "aria-label": title}
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    for parent in root.iter():
        for child in [child for child in parent if _NAMESPACE.sub("", child.tag) == "style"]:
            parent.remove(child)
    referenced = {
        found
        for element in root.iter()
        for key, value in element.attrib.items()
        if _refers(key, value)
        for found in _REFERENCE.findall(value)
    }
    for element in root.iter():
        element.tag = _NAMESPACE.sub("", element.tag)
        element.attrib = {
            _NAMESPACE.sub("", key): _REFERENCE.sub(rf"#{name}-\1", value) if _refers(key, value) else value
            for key, value in element.attrib.items()
            if key != "id" or value in referenced
        }
        if "id" in element.attrib:
            element.set("id", f"{name}-{element.get('id')}")
    return ElementTree.tostring(root, encoding="unicode")


def _refers(key: str, value: str) -> bool:
    """Whether a value refers to an id, and is not a colour."""
    return key.endswith("href") or "url(#" in value
