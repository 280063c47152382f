"""Runs have a profiler that costs nothing, until another one is asked for."""

from lightning import Trainer

from pipelines.training.profiler import NoProfiler


def test_a_context_does_nothing_and_is_not_made_anew():
    profiler = NoProfiler()
    with profiler.profile("a") as inside:
        assert inside is None
    assert profiler.profile("a") is profiler.profile("b")
    assert isinstance(Trainer(profiler=profiler, logger=False, accelerator="cpu").profiler, NoProfiler)
