"""Every benchmark still runs: its whole path in seconds, and a result of the shape that it is quoted for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
FILES = sorted(path for path in FOLDER.rglob("*.py") if "__main__" in path.read_text())
QUICK = ["pong_paddle", "peers/lightzero", "peers/mctx_search"]
"""What `make test` runs of them; `make gates` and `make smoke` run all."""
OTHER_KEYS = {
    **dict.fromkeys(("atari_laptop", "chance"), ("games",)),  # by games, and a cell by the agents measured so far
    "emulator_uct": ("settings",),  # the arguments that there were
    "faults": ("moments",),  # counts by when the kill came, which nobody chooses
    "hostile_files": ("outcomes", "kinds"),  # counts by verdict
}
"""Parts of a result whose keys are measured themselves."""
OLDER = {
    **dict.fromkeys(("quickstart", "frames"), "its result is of before rewards were judged by rank"),
}
"""Results that are to be measured anew, and why."""
PEERS = {"search": ("vs_lightzero", "tree_vs_lightzero", "vs_mctx")}
"""Figures of a result that need a peer which is installed apart."""


def name(path: Path) -> str:
    return str(path.relative_to(FOLDER).with_suffix(""))


def unknown(found: object, kept: object, at: str = "") -> list[str]:
    """Keys of a result, at any depth, that another one has not: a smoke run has fewer games, and sizes of its own."""
    if not isinstance(found, dict) or not isinstance(kept, dict):
        return []
    return [f"{at}{key}" for key in found if key not in kept and not key.isdigit()] + [
        key for each in found if each in kept for key in unknown(found[each], kept[each], f"{at}{each}.")
    ]


def test_keys_that_only_one_result_has_are_found():
    assert unknown({"a": {"b": 1, "2": 0}}, {"a": {"b": 2, "c": 3, "64": 0}}) == []
    assert unknown({"a": {"b": 1, "d": 0}, "e": 1}, {"a": {"b": 2}}) == ["e", "a.d"]


def test_all_benchmarks_are_found():
    assert len(FILES) >= 28
    assert set(QUICK) <= {name(path) for path in FILES}


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=name(path), marks=() if name(path) in QUICK else pytest.mark.slow) for path in FILES]
)
def test_a_benchmark_runs_and_writes_what_its_result_says(path, tmp_path):
    before = {kept: kept.stat().st_mtime_ns for kept in [*FOLDER.glob("results/*"), *ROOT.glob("docs/images/*")]}
    peer = path.parent.name == "peers"
    command = [sys.executable, str(path), "--smoke", *(() if peer else ("--out", str(tmp_path / "out")))]
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    after = {kept: kept.stat().st_mtime_ns for kept in [*FOLDER.glob("results/*"), *ROOT.glob("docs/images/*")]}
    assert after == before, "a smoke run measures nothing: it leaves what was measured alone"
    if peer:
        assert "seconds" in run.stdout or "is not installed here" in run.stderr
        return
    (result,) = (tmp_path / "out").glob("*.json")
    assert result.stem == path.stem
    found = json.loads(result.read_text())
    assert found.pop("smoke") is True
    assert json.loads(run.stdout.splitlines()[-1]).keys() == found.keys() | {"smoke"}
    kept = FOLDER / "results" / result.name
    if not kept.exists():
        pytest.skip(f"ran, but there is no {kept.relative_to(ROOT)} to compare its keys with")
    if path.stem in OLDER:
        pytest.skip(f"ran, but {OLDER[path.stem]}")
    measured = json.loads(kept.read_text())
    wanted = {key for key in measured if not key.startswith(PEERS.get(path.stem, ("\0",)))}
    assert found.keys() == wanted
    for key in ("versions", *OTHER_KEYS.get(path.stem, ())):
        found.pop(key, None)
    assert unknown(found, measured) == []
