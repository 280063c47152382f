import numpy as np
import pytest

from datamodules.replay.events import Events
from datamodules.replay.store import ReplayStore
from modules.errors import UserError
from tests.datamodules.replay.test_store import SHAPE, make

PAID, ENDED = {(0, 3), (0, 4), (1, 19)}, {(1, 11)}


def source() -> np.random.Generator:
    return np.random.default_rng(5)


def play(store: ReplayStore, num_rows: int, paid=PAID, ended=ENDED) -> None:
    """Append rows, of which few bring a reward and fewer end an episode; the held-out environment has many."""
    for row in range(store.rows, store.rows + num_rows):
        reward = np.array([-2.0 * ((0, row) in paid), -2.0 * ((1, row) in paid), 1.0])
        terminated = np.array([(env, row) in ended for env in range(3)])
        flags = np.zeros(3, bool)
        store.append(np.zeros((3, *SHAPE), np.uint8), np.zeros(3), reward, terminated, flags, flags)


@pytest.fixture
def store(tmp_path) -> ReplayStore:
    store = make(tmp_path / "s", capacity=40, num_validation_envs=1)
    play(store, 20)
    return store


def frequencies(events: Events, fraction: float, length: int = 4, recent=None, num: int = 200_000) -> np.ndarray:
    """How often each window is drawn, (environments, first rows); checks that weights undo the draw."""
    env, start, weight = events.draw(source(), num, length, fraction, recent)
    counts, weighted = np.zeros((2, 3, start.max() + 1))
    np.add.at(counts, (env, start), 1 / num)
    np.add.at(weighted, (env, start), weight / num)
    possible = counts[:2, start.min() :]
    assert counts[2].sum() == 0, "held out"
    assert (possible > 0).all()
    np.testing.assert_allclose(weighted[:2, start.min() :], 1 / possible.size, rtol=0.1)
    return counts


def test_a_fraction_of_windows_holds_an_event_and_weights_undo_the_choice(store):
    counts = frequencies(Events(store), 0.5)
    expected = np.full((2, 17), 0.5 / 34)
    # The first three rows of a window may hold the event; no learner looks at the last one's outcome.
    for env, starts in ((0, range(1, 4)), (0, range(2, 5)), (1, range(9, 12))):
        expected[env, list(starts)] += 0.5 / 3 / 3
    np.testing.assert_allclose(counts[:2], expected, atol=0.002)


@pytest.mark.parametrize("fraction", [0.1, 1.0])
def test_a_batch_has_its_fraction_on_average(store, fraction):
    events, generator, found = Events(store), source(), []
    for _ in range(2000):
        env, start, _ = events.draw(generator, 3, 2, fraction)
        found.append(sum((e, s) in PAID | ENDED for e, s in zip(env.tolist(), start.tolist(), strict=True)))
    uniform = 3 * (1 - fraction) * 3 / 38
    assert np.mean(found) == pytest.approx(3 * fraction + uniform, abs=0.05)


def test_recent_rows_alone(store):
    counts = frequencies(Events(store), 0.8, recent=10)
    assert counts[:, :10].sum() == 0
    assert counts[1, 10:12].sum() == pytest.approx(0.8 + 0.2 * 2 / 14, abs=0.01), "an event at the edge, in two windows"


def test_new_events_are_found_and_overwritten_ones_are_lost(store):
    events = Events(store)
    frequencies(events, 0.5)
    play(store, 40, paid={(0, 45)}, ended=set())
    counts = frequencies(events, 0.5)
    assert counts[0, 43:46].sum() == pytest.approx(0.5 + 0.5 * 3 / 74, abs=0.01)


def test_a_cut_store_is_read_anew(store):
    events = Events(store)
    events.draw(source(), 1, 4, 0.5)
    store.truncate(10)
    play(store, 10, paid={(1, 15)}, ended=set())
    counts = frequencies(events, 0.9)
    assert counts[1, 13:16].sum() > 0.3
    assert counts[1, 9:12].sum() < 0.02


def test_without_events_all_windows_are_drawn_alike(tmp_path):
    store = make(tmp_path / "s", capacity=40, num_validation_envs=1)
    play(store, 20, paid=set(), ended=set())
    env, start, weight = Events(store).draw(source(), 9, 4, 0.5)
    assert (weight == 1).all()
    again = source()
    assert np.array_equal(env, again.integers(2, size=9))
    assert np.array_equal(start, again.integers(17, size=9))


def test_a_sequence_longer_than_the_store(store):
    with pytest.raises(UserError, match="a sequence of 21 is longer than the store's 20 rows"):
        Events(store).draw(source(), 1, 21, 0.5)


def test_a_draw_reads_no_row_twice(store):
    events, read = Events(store), []
    columns = store.columns
    store.columns = lambda rows, envs: read.extend(rows) or columns(rows, envs)
    for _ in range(3):
        events.draw(source(), 4, 4, 0.5)
    play(store, 3)
    events.draw(source(), 4, 4, 0.5)
    assert read == list(range(23))
