import numpy as np
import pytest
import torch

from datamodules.replay.dream_store import DreamStore
from modules.batch import Batch


def dreams(numbers, length: int = 3) -> Batch:
    """A dream of `length` rows for every number, which stands in all its columns."""
    number = torch.tensor(list(numbers))[:, None].expand(-1, length)
    nothing = torch.zeros(number.shape, dtype=torch.bool)
    return Batch(
        action=number.clone(),
        reward=number.float(),
        continuation=number.float() / 100,
        is_first=nothing,
        is_last=nothing,
        state=number[..., None, None].expand(-1, -1, 2, 2).to(torch.uint8),
        extras={"value": number.float() + 0.5},
    )


def held(store: DreamStore) -> list[int]:
    """The numbers in a store, oldest first; all columns of a dream must agree."""
    if not len(store):
        return []
    batch = store.gather(np.arange(len(store)))
    number = batch.action
    assert (number == number[:, :1]).all()
    assert torch.equal(batch.reward, number.float())
    assert torch.equal(batch.continuation, number.float() / 100)
    assert (batch.state == number[..., None, None]).all()
    assert batch.state.dtype == torch.uint8
    assert torch.equal(batch.extras["value"], number + 0.5)
    return number[:, 0].tolist()


def test_a_store_is_a_list_whose_oldest_make_room():
    generator = np.random.default_rng(0)
    for capacity in (1, 4, 7):
        store, expected, number = DreamStore(capacity), [], 0
        for version in range(60):
            num = int(generator.integers(1, 10))
            store.append(dreams(range(number, number + num)), version)
            expected = [*expected, *((n, version) for n in range(number, number + num))][-capacity:]
            number = (number + num) % 90
            if generator.random() < 0.4:
                oldest = version - int(generator.integers(0, 3))
                store.drop(oldest)
                expected = [(n, v) for n, v in expected if v >= oldest]
            assert held(store) == [n for n, _ in expected]
            assert len(store) == len(expected) <= capacity


def test_dreams_of_models_that_are_too_old_are_forgotten():
    store = DreamStore(10)
    for version in (3, 5, 5, 8):
        store.append(dreams([version]), version)
    store.drop(5)
    assert held(store) == [5, 5, 8]
    store.drop(9)
    assert len(store) == 0


def test_dreams_of_another_length_replace_all():
    store = DreamStore(10)
    store.append(dreams([1, 2]), 0)
    assert store.steps == 2
    store.append(dreams([3], length=6), 0)
    assert store.steps == 5
    assert held(store) == [3]


def test_what_was_put_in_is_copied():
    store, given = DreamStore(4), dreams([1, 2])
    store.append(given, 0)
    given.action.zero_()
    store.gather(np.array([0])).reward.zero_()
    assert held(store) == [1, 2]


def test_draws_are_uniform_over_what_is_held():
    store = DreamStore(6)
    store.append(dreams(range(10)), 0)
    store.append(dreams([10, 11]), 1)
    drawn = store.sample(np.random.default_rng(0), 6000)
    assert drawn.shape == (6000, 3)
    counts = torch.bincount(drawn.action[:, 0], minlength=12)
    assert counts[:6].sum() == 0
    assert ((counts[6:] - 1000).abs() < 150).all()
    again = store.sample(np.random.default_rng(0), 6000)
    assert torch.equal(again.action, drawn.action)


def test_an_emptied_store_takes_anything():
    store = DreamStore(3)
    store.append(dreams([1]), 0)
    store.clear()
    assert len(store) == 0
    with pytest.raises(AssertionError):
        store.gather(np.array([0]))
    store.append(dreams([2], length=4), 0)
    assert held(store) == [2]
