"""The windows of an image, one by one."""

import pytest
import torch
import torch.nn.functional as F

from nda import rng
from nda.nonparametric.patches import Windows

CASES = [(3, False), (4, False), (1, False), (6, False), (4, True), (2, True)]


@pytest.mark.parametrize("borders", ["match", "zero"])
@pytest.mark.parametrize(("patch", "coarse"), CASES)
def test_windows_and_kinds_are_those_of_a_loop(patch, coarse, borders):
    images = torch.randn(3, 2, 6, 7, generator=rng.generator("windows"), dtype=torch.float64)
    windows = Windows(6, 7, patch, coarse, borders)
    before, lost = (patch - 1) // 2, 1 - patch % 2
    padded = F.pad(images, [before, patch - 1 - before] * 2)
    outside = F.pad(torch.zeros(6, 7), [before, patch - 1 - before] * 2, value=1.0)
    places = [(i, j) for i in range(6 - lost) for j in range(7 - lost)]
    found, kinds = windows.take(images), windows.kinds()
    assert found.shape[:2] == (3, len(places)) and kinds.shape == (len(places),)
    masks = []
    for position, (i, j) in enumerate(places):
        own = padded[:, :, i : i + patch, j : j + patch]
        own = 2 * F.avg_pool2d(own, 2) if coarse else own
        torch.testing.assert_close(found[:, position], own.flatten(1), rtol=0, atol=1e-12)
        masks.append(outside[i : i + patch, j : j + patch])
    for one, mask in zip(kinds, masks, strict=True):
        for other, theirs in zip(kinds, masks, strict=True):
            assert (one == other) == (borders == "zero" or torch.equal(mask, theirs))
    assert kinds.unique().tolist() == list(range(int(kinds.max()) + 1))
