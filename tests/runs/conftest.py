"""Runs of the real command, from the first step to the last."""

from tests.running import fit, pong, run, trained  # noqa: F401
