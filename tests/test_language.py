"""What `--help` says of an argument stands alone."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(file for folder in ("modules", "datamodules", "pipelines") for file in (ROOT / folder).rglob("*.py"))
LEANING = re.compile(
    r"(of|the same|likewise|and|as in|as for|its?|they|them|those|these|this|that|such|ditto|to|in)\b", re.I
)
"""Beginnings of texts that lean on what a reader of `--help` does not see."""


def arguments(docstring: str) -> dict[str, str]:
    """Return the text of every argument that a Google-style docstring describes."""
    _, found, section = docstring.partition("\nArgs:\n")
    if not found:
        return {}
    texts: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        if match := re.match(r"    (\**\w+): (.*)", line):
            name = match[1]
            texts[name] = match[2]
        elif name and line.strip():
            texts[name] += f" {line.strip()}"
    return texts


def documented(file: Path) -> dict[str, str]:
    found = {}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and (docstring := ast.get_docstring(node)):
            found |= {f"{node.name}.{name}": text for name, text in arguments(docstring).items()}
    return found


def test_arguments_are_found():
    text = "Do it.\n\nArgs:\n    one: a number\n        of things.\n    **rest: more.\n\nRaises:\n    UserError: no.\n"
    assert arguments(text) == {"one": "a number of things.", "**rest": "more."}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_argument_is_described_by_a_phrase_that_stands_alone(file):
    leaning = {name: text for name, text in documented(file).items() if LEANING.match(text)}
    assert not leaning, leaning
