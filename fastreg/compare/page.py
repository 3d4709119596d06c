"""What a comparison found, as a page of HTML that needs no other file."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from html import escape
from pathlib import Path

from fastreg.cli import UsageError
from fastreg.compare import drawings
from fastreg.compare.ratings import INSTALL
from fastreg.compare.report import Row, Verdict, headings
from fastreg.compare.session import Outcome
from fastreg.compare.settings import Settings

_TITLES = {"movielens": "MovieLens", "dlrm": "DLRM"}

_STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1a1a1a; font: 1rem/1.5 system-ui, sans-serif; }
main { max-width: 80rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
.failed { color: #a40000; font-weight: bold; }
.scrolls { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: right; font-variant-numeric: tabular-nums; }
th:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: normal; }
.reference { color: #666; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem 2rem; }
figure { margin: 0; max-width: 36rem; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { font-size: .9rem; }
@media (max-width: 30rem) { table { font-size: .8rem; } th, td { padding: .2rem .3rem; } }
p, code { overflow-wrap: anywhere; }
code { display: block; padding: .6rem; background: #f4f4f4; font-size: .9rem; }
"""

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
"""


@dataclass(frozen=True)
class Findings:
    """What the page says.

    Attributes
    ----------
    settings : Settings
    header : list of str
        Of `report.header`: what was compared, on what.
    outcome : Outcome
    figures : list of Row
    notes : list of str
    verdicts : list of Verdict
    """

    settings: Settings
    header: list[str]
    outcome: Outcome
    figures: list[Row]
    notes: list[str]
    verdicts: list[Verdict]


def require(path: Path) -> None:
    """Refuse what cannot be written, before anything is trained.

    Raises
    ------
    fastreg.cli.UsageError
        If the package that draws is missing, or the file cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(f"--report needs the package matplotlib: {INSTALL}")
    if path.is_dir():
        raise UsageError(f"{path}: Is a directory")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: no folder {path.parent}")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise UsageError(f"{path}: cannot be written")


def write(path: Path, findings: Findings) -> None:
    """Write the page."""
    path.write_text(render(findings), encoding="utf-8")


def render(findings: Findings) -> str:
    """The text of the page."""
    settings = findings.settings
    *environment, command = findings.header
    title = f"{_TITLES[settings.model]} with Keras's regularizers and with fastreg's"
    parts = [_HEAD.format(title=escape(title), style=_STYLE)]
    parts += [_paragraph(text, "failed" if failed else "") for text, failed in findings.verdicts]
    parts += [_table(settings, findings.figures), *map(_paragraph, findings.notes), "<h2>Figures</h2>"]
    parts.append('<div class="figures">')
    for drawing in drawings.draw(settings, findings.outcome):
        parts.append(f"<figure>{drawing.element}<figcaption>{escape(drawing.caption)}</figcaption></figure>")
    parts += ["</div>", "<h2>Measured on</h2>", *map(_paragraph, environment)]
    parts += ["<h2>To repeat this</h2>", f"<code>{escape(command)}</code>", "</main>", "</body>", "</html>", ""]
    return "\n".join(parts)


def _table(settings: Settings, figures: list[Row]) -> str:
    columns = "".join(f'<th scope="col">{_breakable(heading)}</th>' for heading in headings(settings).values())
    lines = [f'<div class="scrolls"><table><thead><tr><th></th>{columns}</tr></thead><tbody>']
    for row in figures:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row.cells)
        kind = ' class="reference"' if row.reference else ""
        lines.append(f'<tr{kind}><th scope="row">{escape(row.name)}</th>{cells}</tr>')
    return "\n".join([*lines, "</tbody></table></div>"])


def _breakable(name: str) -> str:
    """A dotted name, which narrow pages break after the dots."""
    return escape(name).replace(".", ".<wbr>")


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"
