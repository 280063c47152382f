import itertools

import numpy as np
import pytest
import torch

from modules.layers.quantize import fit_palette, nearest_level


def optimum(values, counts, num_levels) -> list[list[int]]:
    """The palettes (rounded centres) of all assignments with the least cost, found by trying every assignment."""
    values, weight = np.array(values, float), np.sqrt(counts)
    least, palettes = np.inf, []
    for labels in itertools.product(range(num_levels), repeat=len(values)):
        labels = np.array(labels)
        if len(set(labels)) < num_levels:
            continue
        centres = [np.average(values[labels == k], weights=weight[labels == k]) for k in range(num_levels)]
        cost = (weight * (values - np.array(centres)[labels]) ** 2).sum()
        if cost < least - 1e-9:
            least, palettes = cost, []
        if cost <= least + 1e-9:
            palettes.append(sorted(round(centre) for centre in centres))
    return palettes


@pytest.mark.parametrize("num_levels", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_the_palette_is_the_best_of_all_assignments(num_levels, seed):
    generator = np.random.default_rng(seed)
    values = np.sort(generator.choice(256, 7, replace=False))
    counts = generator.integers(1, 400, 7)
    pixels = torch.from_numpy(generator.permutation(np.repeat(values, counts)).astype(np.uint8))
    palette = fit_palette(pixels, num_levels)
    assert palette.dtype == torch.uint8
    assert palette.tolist() in optimum(values, counts, num_levels)


def test_all_256_levels_are_the_identity():
    palette = fit_palette(torch.tensor([3, 3, 7], dtype=torch.uint8), 256)
    assert palette.tolist() == list(range(256))
    assert nearest_level(palette).tolist() == list(range(256))


@pytest.mark.parametrize("num_levels", [3, 4, 16])
def test_a_game_of_few_colours_keeps_them_all(num_levels):
    pixels = torch.tensor([[200, 0], [87, 87], [0, 0]], dtype=torch.uint8)
    palette = fit_palette(pixels, num_levels)
    assert palette.tolist() == [0, 87, 200] + [200] * (num_levels - 3)
    assert torch.equal(palette[nearest_level(palette)[pixels.long()]], pixels)


def test_a_small_thing_gets_a_level_beside_a_vast_background():
    background = torch.arange(60, 64, dtype=torch.uint8).repeat(2500)
    palette = fit_palette(torch.cat([background, torch.full((4,), 210, dtype=torch.uint8)]), 2)
    assert palette.tolist()[1] == 210
    assert 60 <= palette.tolist()[0] <= 63


@pytest.mark.parametrize("palette", [[0, 255], [10, 11, 12], [5, 90, 90, 200]])
def test_every_pixel_goes_to_its_nearest_level(palette):
    table = nearest_level(torch.tensor(palette, dtype=torch.uint8))
    assert table.dtype == torch.int64
    for pixel in range(256):
        assert abs(pixel - palette[table[pixel]]) == min(abs(pixel - level) for level in palette)
