import torch

from modules.identity import IdentityModel
from modules.learner import Loss
from modules.world_model import Spec
from tests.modules.policies.mdp import rows


def test_pictures_are_states_and_are_seen_in_the_unit_interval():
    model = IdentityModel()
    model.build_from(Spec((3, 8, 9), 4, 2))
    assert model.state_shape == model.feature_shape == (12, 8, 9)
    pictures = torch.randint(256, (2, 5, 12, 8, 9), dtype=torch.uint8)
    batch = rows([[0] * 5] * 2, [[0] * 5] * 2, [[0.0] * 5] * 2).replace(observation=pictures)
    assert torch.equal(model.encode(batch), pictures)
    assert torch.allclose(model.features(pictures[:, 0]), pictures[:, 0] / 255)
    first = model.initial(2)
    assert (first.shape, first.dtype) == ((2, 12, 8, 9), torch.uint8)
    action, is_first = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)
    assert torch.equal(model.observe(first, action, pictures[:, 3], is_first), pictures[:, 3])


def test_vectors_are_states_and_are_seen_as_they_are():
    model = IdentityModel()
    model.build_from(Spec((5,), 1, 2))
    assert model.state_shape == model.feature_shape == (5,)
    vectors = torch.randn(2, 5)
    assert torch.equal(model.features(vectors), vectors)
    assert model.initial(2).dtype == torch.float32


def test_there_is_nothing_to_learn_and_nothing_to_dream():
    model = IdentityModel()
    model.build_from(Spec((5,), 1, 2))
    assert not model.capabilities
    assert not list(model.parameters())
    assert model.loss(rows([[0]], [[0]], [[0.0]])) == Loss(None, {})
