"""What every peer does: it answers requests line by line, and `--smoke` tries it by itself with small ones."""

import json
import sys
from collections.abc import Iterator
from typing import Any

SMALL = {"roots": 2, "actions": 6, "simulations": 3, "repeats": 1, "threads": 1}


def requests() -> Iterator[dict[str, Any]]:
    """Yield the requests on stdin; in a smoke run one of each kind."""
    if "--smoke" in sys.argv:
        yield from ({**SMALL, "network": network} for network in (True, False))
        return
    for line in sys.stdin:
        yield json.loads(line)


def missing(name: str) -> SystemExit:
    """Return the end of a process where the peer is not installed: a smoke run says so, and has not failed."""
    print(f"{name} is not installed here: this peer is skipped", file=sys.stderr)
    return SystemExit("--smoke" not in sys.argv)
