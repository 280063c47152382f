"""A sample of benchmarks/hostile_files.py: files from anybody are refused in one line, or nothing comes of them."""

import ast
import importlib
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hostile():
    """The benchmark, with the scripts that lie beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("hostile_files")


@pytest.fixture(scope="module")
def bench(hostile, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "base"
    folder.mkdir()
    return hostile.prepare(folder)


SAMPLE = [
    ("both checkpoints damaged", "resume", 1),
    ("damaged checkpoint", "resume", 1),
    ("pickled code", "evaluate", 3),
    ("named classes", "evaluate", 3),
    ("absurd values", "evaluate", 2),
    ("bombs", "evaluate", 1),
    ("absurd stores", "train", 3),
    ("links", "evaluate", 1),
    ("configurations", "init_from", 1),
    ("evaluations", "report", 2),
]
"""Kind, command and number of the cases that are tried here."""


@pytest.mark.parametrize(("kind", "command", "number"), SAMPLE)
def test_a_sample_of_the_benchmark(hostile, bench, kind, command, number):
    random = np.random.default_rng(1)
    every = chain(hostile.hostile_cases.cases(bench, random), hostile.hostile_stores.cases(bench, random))
    cases = [case for case in every if (case.kind, case.command) == (kind, command)]
    for pick in np.random.default_rng(1).choice(len(cases), number, replace=False):
        outcome = hostile.attempt(cases[pick], bench.base, bench.canary)
        assert outcome.verdict in hostile.GOOD, outcome


def test_the_benchmark_notices_code_that_runs(hostile, bench):
    """A canary that does not sing proves nothing: this one does."""
    case = hostile.Case("control", "touched", lambda folder: bench.canary.touch(), "report")
    assert hostile.attempt(case, bench.base, bench.canary).verdict == "ran code"
    case = hostile.Case("control", "written", lambda folder: (folder / "victim").write_text(""), "report")
    assert hostile.attempt(case, bench.base, bench.canary).verdict == "wrote elsewhere"


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_nothing_is_unpickled():
    """torch.load is called in one place, for plain data; nothing else that unpickles is called at all."""
    loads = []
    for folder in ("modules", "datamodules", "pipelines"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for call in calls(ast.parse(path.read_text())):
                name = ast.unparse(call.func)
                assert not name.startswith(("pickle.", "joblib.", "dill.", "shelve.")), path
                assert "allow_pickle" not in {word.arg for word in call.keywords}, path
                assert name not in ("yaml.load", "yaml.unsafe_load", "np.load", "eval", "exec"), path
                if name in ("torch.load", "torch.jit.load", "torch.hub.load"):
                    loads.append((path.name, ast.unparse(call)))
    assert loads == [("checkpoint_files.py", "torch.load(path, map_location='cpu', weights_only=True)")]
