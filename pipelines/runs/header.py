"""What every checkpoint says of the run that wrote it, beside weights and states: written here and nowhere else."""

from __future__ import annotations

from typing import Any

from pipelines.callbacks.run import Run
from pipelines.machine.provenance import commit, version
from pipelines.runs.checkpoint_files import FORMAT_VERSION


def header(run: Run, config: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a checkpoint from which the run's module and world can be built again.

    Args:
        run: the run that writes the checkpoint.
        config: the run's resolved configuration as plain data.

    Returns:
        format_version, version and commit of dreamcade, the configuration, the world's name, the description of its
        store, and the real steps that something was learned from. The networks' `spec` is the learner's own entry.
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
