"""Shifted and brightened pictures."""

import torch

from modules.layers.augmentation import Augmentation, brighten, shift


def test_a_shift_moves_whole_pictures_and_repeats_their_edges():
    torch.manual_seed(0)
    picture = torch.arange(2 * 10 * 12.0).view(1, 2, 10, 12)
    seen = set()
    for moved in shift(picture.expand(400, -1, -1, -1), limit=2):
        down, right = (int(n) for n in divmod(int(moved[0, 4, 5] - picture[0, 0, 4, 5]) + 26, 12))
        down, right = down - 2, right - 2
        rows = (torch.arange(10) + down).clamp(0, 9)
        columns = (torch.arange(12) + right).clamp(0, 11)
        assert torch.equal(moved, picture[0][:, rows][:, :, columns])
        seen.add((down, right))
    assert seen == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


def test_brightness_changes_by_picture():
    torch.manual_seed(0)
    pictures = torch.rand(2000, 3, 2, 2) + 0.1
    factors = (brighten(pictures) / pictures).flatten(1)
    assert torch.allclose(factors, factors[:, :1].expand_as(factors))
    assert 0.8999 <= factors.min() < 0.91
    assert 1.09 < factors.max() <= 1.1001
    assert abs(factors.mean() - 1) < 0.005


def test_an_augmentation_shifts_and_brightens_bytes_as_it_does_floats():
    pictures = torch.randint(256, (6, 2, 10, 12), dtype=torch.uint8)
    augmentation = Augmentation(shift=2, intensity=0.1)
    torch.manual_seed(0)
    changed = augmentation(pictures)
    torch.manual_seed(0)
    assert torch.equal(augmentation(pictures.float() / 255), changed)
    torch.manual_seed(0)
    assert torch.equal(brighten(shift(pictures.float() / 255, 2), 0.1), changed)
