import sys

import pytest
import yaml

from pipelines.sweeps import process, trials
from pipelines.sweeps.sweep_file import read

COMMAND = ["${env}", "dreamcade", "fit", "${args}"]


@pytest.fixture
def sweep(tmp_path):
    """Write a sweep file and read it; keywords go on top."""

    def sweep(**content):
        path = tmp_path / "sweep.yaml"
        base = {
            "program": "dreamcade",
            "command": COMMAND,
            "method": "grid",
            "metric": {"name": "evaluate/return", "goal": "maximize"},
            "parameters": {"rate": {"values": [1, 2]}},
        }
        path.write_text(yaml.safe_dump({k: v for k, v in (base | content).items() if v is not None}))
        return read(path)

    return sweep


@pytest.fixture
def instant(monkeypatch):
    """Runs that take a moment."""
    monkeypatch.setattr(process, "FIT", (sys.executable, "-m", "tests.pipelines.sweeps.instant"))
    monkeypatch.setattr(trials, "POLL_SECONDS", 0.02)
