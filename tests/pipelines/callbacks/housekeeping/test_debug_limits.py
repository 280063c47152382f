"""What the debug configuration cuts short."""

from types import SimpleNamespace

from pipelines.acting.play import SearchPlay
from pipelines.callbacks.acting.collect import Collect
from pipelines.callbacks.housekeeping.debug_limits import DebugLimits
from pipelines.callbacks.measuring.evaluate import Evaluate
from pipelines.search.rules import Gumbel, Stop
from pipelines.search.search import Search


def test_evaluations_and_searches_are_short():
    play = SearchPlay(Search(Gumbel(considered=2), Stop(50, seconds=9), discount=0.5))
    evaluate, collect, plain = Evaluate(actor=play, final_episodes=30), Collect(4, actor=play), Evaluate(episodes=1)
    brief = DebugLimits(episodes=2, max_steps=7, simulations=4)
    brief.setup(SimpleNamespace(callbacks=[evaluate, collect, plain, brief]), None, "fit")
    assert (evaluate.episodes, evaluate.final_episodes, evaluate.max_steps) == (2, 2, 7)
    assert plain.episodes == 1
    assert plain.actor is None
    for callback in (evaluate, collect):
        assert (callback.actor.search.stop.simulations, callback.actor.search.stop.seconds) == (4, None)
        assert callback.actor.search.discount == 0.5
        assert callback.actor.search.rule == Gumbel(considered=2)
