"""Header of every checkpoint: the entries that describe its run, besides weights and states."""

from __future__ import annotations

from typing import Any

from pipelines.callbacks.run import Run
from pipelines.machine.provenance import commit, version
from pipelines.runs.checkpoint_files import FORMAT_VERSION


def header(run: Run, config: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a checkpoint that describe the run's module and world.

    Args:
        run: run that writes the checkpoint.
        config: resolved configuration of the run as plain data.

    Returns:
        format_version, version and commit of dreamcade, the configuration, the world's name, the description of its
        store, and the number of real steps that the run learned from. The learner itself adds the networks' `spec`.
    """
    return {
        "format_version": FORMAT_VERSION,
        "version": version(),
        "commit": commit(),
        "config": config,
        "world": run.data.name,
        "description": run.data.description,
        "env_steps": run.real_steps,
    }
