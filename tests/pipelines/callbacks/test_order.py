"""Callbacks run in the order that they declare."""

import pytest
from lightning import Callback

from pipelines.callbacks.acting.collect import Collect
from pipelines.callbacks.dreaming.evolve import Evolve
from pipelines.callbacks.learning.pretrained import Pretrained
from pipelines.callbacks.measuring.evaluate import Evaluate
from pipelines.callbacks.order import in_order


class Stricter(Evaluate):
    """A subclass of somebody else's."""


def test_each_comes_before_those_that_it_names_and_else_as_listed():
    other, collect, evaluate, evolve = Callback(), Collect(prefill=1), Stricter(), Evolve()
    pretrained = Pretrained("a.ckpt")
    assert in_order([other, collect, evaluate]) == [other, evaluate, collect]
    assert in_order([evolve, evaluate, collect, other]) == [evolve, evaluate, collect, other]
    assert in_order([collect, other, evaluate, evolve, pretrained]) == [other, pretrained, evolve, evaluate, collect]


def test_a_circle_is_a_bug():
    one, other = Callback(), Evaluate()
    one.runs_before, other.runs_before = ("Evaluate",), ("Callback",)
    with pytest.raises(AssertionError, match="before each other: Callback, Evaluate"):
        in_order([one, other])
