"""Runs of the real command in this process, on real Pong."""

from pathlib import Path

import pytest
import wandb

from pipelines import cli
from pipelines.console import CONFIGS

DEBUG = ["--config", "configs/quickstart.yaml", "--config", "configs/debug.yaml"]


def experiments() -> list[Path]:
    """The configurations that `fit` takes by themselves: every experiment, and every size of one."""
    paths = [*(CONFIGS / "experiment").glob("*.yaml"), *(CONFIGS / "size").glob("*.yaml")]
    return sorted(path for path in paths if not path.stem.startswith("emulator"))


class Outcome:
    """What a command printed, and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def refused(self, *words: str) -> bool:
        """Whether it was one clear line with these words, and exit code 2."""
        assert self.code == 2, (self.code, self.err)
        said = [line for line in self.err.splitlines() if line.startswith("dreamcade: ")]
        lines = [line for line in said if not line.startswith("dreamcade: changed since the checkpoint: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        missing = [word for word in words if word not in lines[0]]
        assert not missing, (missing, lines[0])
        return True


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run a command of `dreamcade`, in a folder of its own."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.delenv("DREAMCADE_RUN", raising=False)
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        if wandb.run is not None:
            wandb.finish()  # as the end of the process would
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run


@pytest.fixture
def fit(run):
    """Train for a few updates; further arguments go on top."""
    return lambda *arguments: run("fit", *DEBUG, *arguments)


@pytest.fixture(scope="session")
def pong(tmp_path_factory) -> Path:
    """A small store of real Pong."""
    path = tmp_path_factory.mktemp("stores") / "pong"
    cli.main(["collect", "--game", "pong", "--path", str(path), "--steps", "256", "--num_envs", "2"])
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, pong) -> Path:
    """The folder of a short run on that store."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    cli.main(["fit", *DEBUG, "--data.path", str(pong), "--trainer.default_root_dir", str(folder)])
    return folder
