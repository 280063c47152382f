"""Runs of the real command, on real Pong."""

from tests.running import fit, pong, run, trained  # noqa: F401
