"""Report as one self-contained HTML file, with inline style and inline SVG in the colours of the reader's theme."""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from pipelines.evaluation.report import figures
from pipelines.evaluation.report.summary import Summary
from pipelines.evaluation.report.tables import Table, aggregates, beside_published, games, improvements, runs, sources
from pipelines.evaluation.statistics import STATISTICS

CSS = Path(__file__).with_name("page.css")
THEME = {figures.INK: "var(--ink)", figures.MUTED: "var(--muted)", figures.LINE: "var(--line)"}


def page(summary: Summary) -> str:
    """Return the HTML document."""
    sections = [_aggregates(summary), _curves(summary), _games(summary), _published(summary), _details(summary)]
    sections = [section for section in sections if section]
    titles = [re.findall(r'id="([\w-]+)".*?<(?:h2|summary)>(.*?)</', section, re.DOTALL)[0] for section in sections]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in titles)
    notes = "".join(f"<li>{escape(note)}</li>" for note in summary.notes)
    mind = f'<aside class="keep-in-mind"><h2>Keep in mind</h2><ul>{notes}</ul></aside>' if notes else ""
    body = "\n".join(sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title(summary))} · dreamcade</title>
<style>{CSS.read_text(encoding="utf-8")}</style>
</head>
<body>
<header>
<div class="overline">dreamcade report</div>
<h1>{escape(title(summary))}</h1>
<p class="note">{escape(subtitle(summary))}</p>
<nav aria-label="Sections">{links}</nav>
{mind}
</header>
<main>
{body}
</main>
<footer class="note">Statistics after Agarwal et al. 2021, <cite>Deep Reinforcement Learning at the Edge of the
Statistical Precipice</cite>. The same tables are in report.md, every number is in report.csv.</footer>
</body>
</html>
"""


def title(summary: Summary) -> str:
    """Return the title of the report: names of experiments and games if there are one or two, else their number."""
    names, played = summary.experiments, summary.games
    what = " and ".join(names) if len(names) < 3 else f"{len(names)} experiments"
    return f"{what} on {' and '.join(played) if len(played) < 3 else f'{len(played)} games'}"


def subtitle(summary: Summary) -> str:
    """Return the number of runs and seeds, the environment and the protocol as one line."""
    seeds = len({run.last.seed for run in summary.runs})
    protocol = summary.runs[0].last.protocol.get("name")
    count = len(summary.runs)
    return (
        f"{count} run{'s' * (count > 1)}, {seeds} seed{'s' * (seeds > 1)}, environment {summary.environment}"
        f"{f', protocol {protocol}' if protocol else ''}"
    )


def svg(figure: Figure, name: str, label: str) -> str:
    """Return a figure as inline SVG in the colours of the page.

    Args:
        figure: figure to draw.
        name: prefix of the ids in the SVG, which makes them unique in the page.
        label: description for screen readers.
    """
    buffer = io.StringIO()
    with rc_context({**figures.STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    for color, variable in THEME.items():
        text = text.replace(color, variable)
    text = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def html(table: Table, heading: bool = True) -> str:
    """Return a table as HTML, which scrolls by itself on a narrow screen; `heading` adds its title and note."""

    def cell(column: int, text: str, scope: str = "") -> str:
        tag = "th" if scope else "td"
        kind = "number" if table.is_number(column) else "wrap" if len(text) > 40 else ""
        attributes = f' scope="{scope}"' * bool(scope) + f' class="{kind}"' * bool(kind)
        return f"<{tag}{attributes}>{escape(text)}</{tag}>"

    head = "".join(cell(column, name, "col") for column, name in enumerate(table.head))
    rows = []
    own = len(table.rows) - table.published_rows
    for number, row in enumerate(table.rows):
        kind = "" if number < own else ' class="published first"' if number == own else ' class="published"'
        cells = "".join(cell(column, text, "row" * (column == 0)) for column, text in enumerate(row))
        rows.append(f"<tr{kind}>{cells}</tr>")
    label = escape(table.title)
    top = f'<h2>{label}</h2><p class="note">{escape(table.note)}</p>' if heading else ""
    return (
        f'{top}<div class="scroll" role="region" aria-label="{label}" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _aggregates(summary: Summary) -> str:
    table, chances = aggregates(summary), improvements(summary)
    if not table.rows:
        return f'<section id="improvement">{html(chances)}</section>' if chances.rows else ""
    size = (3.2, 0.75 + 0.3 * len(summary.experiments))
    panels = [
        _figure(figures.panel(figures.draw_aggregate, summary, name, size=size), f"aggregate{n}", name)
        for n, name in enumerate(STATISTICS)
    ]
    return (
        f'<section id="aggregates"><h2>{escape(table.title)}</h2><p class="note">{escape(table.note)}</p>'
        f"{_panels(panels, '17rem')}{html(table, heading=False)}{html(chances) if chances.rows else ''}</section>"
    )


def _curves(summary: Summary) -> str:
    panels = []
    few = len(figures.curve_panels(summary)) < 3
    for number, game in enumerate(figures.curve_panels(summary)):
        drawn = figures.panel(figures.draw_curves, summary, game, size=(5.4, 3.4) if few else (3.4, 2.4))
        label = f"Learning curves, {game or 'all games'}"
        panels.append(_figure(drawn, f"curve{number}", label))
    return (
        '<section id="curves"><h2>Learning curves</h2><p class="note">Return against real agent steps. Thick lines: '
        "interquartile mean over seeds, with its 95% bootstrap band. Thin lines: single runs. Runs are interpolated "
        f"between their evaluations.</p>{_legend(summary)}{_panels(panels, '26rem' if few else '18rem')}</section>"
    )


def _games(summary: Summary) -> str:
    return f'<section id="games">{html(games(summary))}</section>'


def _published(summary: Summary) -> str:
    table, names = beside_published(summary), figures.beside(summary)
    if not table.rows:
        return ""
    if len(names) > figures.FEW_GAMES:
        drawn = figures.panel(figures.draw_games, summary, size=(7.2, 0.8 + 0.36 * len(names)))
        label = "Human-normalised scores per game"
        scroll = f'<figure class="wide" tabindex="0" role="region" aria-label="{label}">'
        legend = _legend(summary, "grey ticks: published methods")
        picture = f"{legend}{scroll}{svg(drawn, 'games', label)}</figure>"
    else:
        drawings = [figures.panel(figures.draw_methods, summary, game, size=(4.4, 5.2)) for game in names]
        labels = [f"Mean returns in {game}, beside published methods" for game in names]
        pictures = zip(drawings, labels, strict=True)
        panels = [_figure(drawn, f"methods{n}", label) for n, (drawn, label) in enumerate(pictures)]
        picture = _panels(panels, "24rem")
    return (
        f'<section id="published"><h2>{escape(table.title)}</h2><p class="note">{escape(table.note)}</p>'
        f"{picture}{html(table, heading=False)}{html(sources(summary))}</section>"
    )


def _details(summary: Summary) -> str:
    protocol = summary.runs[0].last.protocol
    head = ["setting", "value"]
    rows = [[name.replace("_", " "), str(value)] for name, value in protocol.items()]
    table = Table("Protocol", "Rules by which the games were played.", head, rows, text_columns=2)
    return (
        f'<section id="runs"><details><summary>Runs and protocol</summary>{html(table) if rows else ""}'
        f"{html(runs(summary))}</details></section>"
    )


def _figure(drawn: Figure, name: str, label: str) -> str:
    return f"<figure>{svg(drawn, name, label)}</figure>"


def _panels(panels: list[str], width: str) -> str:
    return f'<div class="panels" style="--panel: {width}">{"".join(panels)}</div>'


def _legend(summary: Summary, *more: str) -> str:
    items = []
    for name, (color, dash) in figures.styles(summary).items():
        pattern = {"-": "", "--": "6 3", ":": "2 2", "-.": "6 2 2 2"}[dash]
        line = f'<line x1="0" x2="28" y1="5" y2="5" stroke="{color}" stroke-width="3" stroke-dasharray="{pattern}"/>'
        items.append(f'<li><svg viewBox="0 0 28 10" aria-hidden="true">{line}</svg>{escape(name)}</li>')
    return f'<ul class="legend">{"".join(items)}{"".join(f"<li>{escape(text)}</li>" for text in more)}</ul>'
