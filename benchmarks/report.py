"""What every benchmark does with its figures: one line of JSON last, and the same in benchmarks/results/."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pipelines.machine.provenance import provenance


def write(name: str, figures: dict[str, Any], options: argparse.Namespace, echo: bool = True) -> None:
    """Write <name>.json into `--out` with commit, date, machine and versions, and print it as one line."""
    content = {"name": name, **({"smoke": True} if options.smoke else {}), **figures, **provenance()}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if echo:
        print(json.dumps(content))


def read(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what <name>.json in `--out` holds, nothing if there is none."""
    path = options.out / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
