"""What every benchmark does with its figures: one line of JSON last, and the same in benchmarks/results/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.machine.provenance import provenance

RESULTS = Path(__file__).parent / "results"


def write(name: str, figures: dict[str, Any], echo: bool = True) -> None:
    """Write benchmarks/results/<name>.json with commit, date, machine and versions, and print it as one line."""
    content = {"name": name, **figures, **provenance()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if echo:
        print(json.dumps(content))


def read(name: str) -> dict[str, Any]:
    """Return what benchmarks/results/<name>.json holds, nothing if there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
