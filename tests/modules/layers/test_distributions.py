"""Distributions over atoms, against a loop that is written by hand."""

import pytest
import torch

from modules.layers.distributions import Atoms


def projected(probabilities, returns, atoms) -> torch.Tensor:
    """Algorithm 1 of Bellemare et al. 2017, atom by atom."""
    spacing = (atoms.high - atoms.low) / (len(atoms.returns) - 1)
    found = torch.zeros_like(probabilities)
    for row in range(len(probabilities)):
        for probability, value in zip(probabilities[row].tolist(), returns[row].tolist(), strict=True):
            place = (min(max(value, atoms.low), atoms.high) - atoms.low) / spacing
            below = min(int(place), len(atoms.returns) - 2)
            found[row, below] += probability * (1 - (place - below))
            found[row, below + 1] += probability * (place - below)
    return found


@pytest.mark.parametrize(("number", "low", "high"), [(51, -10.0, 10.0), (7, -1.0, 2.0), (2, 0.0, 5.0)])
def test_projections_are_those_of_the_paper(number, low, high):
    atoms = Atoms(number, low, high)
    probabilities = torch.randn(20, number).mul(3).softmax(dim=1)
    returns = torch.randn(20, 1) * 4 + torch.rand(20, 1) * atoms.returns  # within the range, and beyond both ends
    assert (returns < low).any()
    assert (returns > high).any()
    found = atoms.project(probabilities, returns)
    assert torch.allclose(found, projected(probabilities, returns, atoms), atol=1e-5)
    assert torch.allclose(found.sum(dim=1), torch.ones(20), atol=1e-5)


def test_returns_that_are_atoms_keep_their_probabilities():
    atoms = Atoms(51, -10.0, 10.0)
    probabilities = torch.rand(3, 4, 51).softmax(dim=2)
    assert torch.allclose(atoms.project(probabilities, atoms.returns.expand(3, 4, 51)), probabilities, atol=1e-5)


def test_a_projection_within_the_range_keeps_the_mean():
    atoms = Atoms(11, -5.0, 5.0)
    probabilities = torch.randn(6, 11).softmax(dim=1)
    returns = 0.3 + 0.9 * atoms.returns.expand(6, 11)
    mean = (probabilities * returns).sum(dim=1)
    assert torch.allclose(atoms.mean(atoms.project(probabilities, returns).log()), mean, atol=1e-5)
