"""Per-example gradients against loops of autograd and finite differences."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nda import rng
from nda.errors import InputError
from nda.model.outputs import OUTPUTS, uniform_timesteps
from nda.model.unet import Recipe
from nda.rivals import gradients
from nda.rivals.gradients import Readout, features
from nda.rivals.projection import Projection
from nda.schedule import BETAS, sigma, signal

UNET = {
    "block_out_channels": [8, 8],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "dropout": 0.5,
    "attention_head_dim": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}


class Net(nn.Module):
    """193 parameters with all that a U-Net has: time, a normalisation, dropout, an output with
    `.sample`; and some without a use."""

    def __init__(self):
        super().__init__()
        self.idle = nn.Parameter(torch.ones(3))
        self.down = nn.Conv2d(2, 4, 3, padding=1)
        self.time = nn.Linear(2, 4)
        self.norm = nn.GroupNorm(2, 4)
        self.drop = nn.Dropout(0.5)
        self.up_a = nn.Conv2d(4, 2, 3, padding=1)
        self.up_b = nn.Linear(4, 4)

    def forward(self, x, t):
        t = t.to(x) / 1000
        h = (
            self.down(x)
            + self.time(torch.stack([torch.sin(5 * t), torch.cos(5 * t)], -1))[..., None, None]
        )
        h = self.drop(torch.nn.functional.silu(self.norm(h)))
        return SimpleNamespace(sample=self.up_a(h + self.up_b(h.mean((2, 3)))[..., None, None]))


def net() -> Net:
    with rng.seeded("gradient test"):
        model = Net().double()
    for p in model.parameters():
        p.data += 0.3 * torch.randn(
            p.shape, generator=rng.generator("parameters", p.numel()), dtype=p.dtype
        )
    return model.train()  # dropout would be on


def pictures(n: int, *axes: int) -> torch.Tensor:
    return (
        2
        * torch.rand(
            n, *axes, 2, 4, 3, generator=rng.generator("pictures", n, *axes), dtype=torch.float64
        )
        - 1
    )


NET, IMAGES = net(), pictures(5)
READOUT = Readout(timesteps=(0, 300, 999), draws=2)


def value(name: str, predicted: torch.Tensor, noise: torch.Tensor, timestep: int) -> torch.Tensor:
    """The outputs, written again for one image."""
    beta, pixels = BETAS[timestep].item(), predicted.numel()
    left = math.prod(1 - b for b in BETAS[: timestep + 1].tolist())  # of the signal
    loss = ((predicted - noise) ** 2).sum() / pixels
    return {
        "loss": loss,
        "elbo_loss": loss * beta / (2 * (1 - beta) * (1 - left)),
        "output_norm": (predicted**2).sum() / pixels,
        "output_mean": predicted.sum() / pixels,
        "l1": torch.linalg.vector_norm(predicted, 1),
        "l2": torch.linalg.vector_norm(predicted, 2),
    }[name]


def mean_output(model: nn.Module, image: torch.Tensor, timestep: int, r: Readout) -> torch.Tensor:
    """Mean over the draws at one timestep, one noisy image at a time."""
    total = 0.0
    for draw in range(r.draws):
        noise = torch.randn(
            image.shape, generator=rng.generator("gradient noise", r.noise_seed, timestep, draw)
        ).to(image)
        noisy = signal(timestep) * image + sigma(timestep) * noise
        total = total + value(
            r.model_output, model(noisy[None], torch.tensor([timestep])).sample[0], noise, timestep
        )
    return total / r.draws


def twin(model: nn.Module, images: torch.Tensor, r: Readout) -> torch.Tensor:
    """Loops over everything. `images[example, timestep, …]`."""
    model = copy.deepcopy(model).eval()
    rows = []
    for image in images:
        per_timestep = []
        for clean, timestep in zip(image, r.timesteps, strict=True):
            model.zero_grad()
            mean_output(model, clean, timestep, r).backward()
            g = torch.cat(
                [
                    torch.zeros(p.numel()) if p.grad is None else p.grad.flatten()
                    for p in model.parameters()
                ]
            )
            per_timestep.append(g / g.norm() if r.unit_norm else g)
        rows.append(sum(per_timestep) / len(r.timesteps))
    return torch.stack(rows)


def same_at_each(images: torch.Tensor, r: Readout) -> torch.Tensor:
    return images[:, None].expand(-1, len(r.timesteps), -1, -1, -1)


@pytest.mark.parametrize("unit_norm", [False, True])
@pytest.mark.parametrize("draws", [1, 2, 5])  # 1 and 2: vmap if of unit norm; 5: a loop in any case
@pytest.mark.parametrize("output", OUTPUTS)
def test_loops_of_autograd(output, draws, unit_norm):
    r = Readout(output, (0, 300, 999), draws, unit_norm=unit_norm)
    torch.testing.assert_close(
        features(NET, IMAGES, r), twin(NET, same_at_each(IMAGES, r), r), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("output", OUTPUTS)
def test_finite_differences(output):
    r, model, step = Readout(output, (100, 700)), copy.deepcopy(NET).eval(), 1e-5
    found = []
    with torch.no_grad():
        for p in model.parameters():
            for entry in p.view(-1).unbind():
                sides = []
                for change in (step, -2 * step, step):
                    entry += change
                    sides.append(sum(mean_output(model, IMAGES[0], t, r) for t in r.timesteps) / 2)
                found.append((sides[0] - sides[1]) / (2 * step))
    torch.testing.assert_close(
        features(NET, IMAGES[:1], r)[0], torch.stack(found), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("batch", [1, 2, 5, 12, 1000])
@pytest.mark.parametrize(
    "r", [READOUT, replace(READOUT, unit_norm=True), replace(READOUT, timesteps=(40,), draws=1)]
)
def test_same_for_any_batch(r, batch):
    torch.testing.assert_close(
        features(NET, IMAGES, r, batch=batch), features(NET, IMAGES, r), rtol=1e-10, atol=1e-13
    )


@pytest.mark.parametrize("unit_norm", [False, True])
def test_vmap_and_loop_are_twins(monkeypatch, unit_norm):
    found = []
    for few in (0, 1000):
        monkeypatch.setattr(gradients, "FEW", few)
        found.append(features(NET, IMAGES, replace(READOUT, unit_norm=unit_norm)))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("projection", [None, Projection(16, 2)])
def test_an_example_does_not_depend_on_the_others(projection):
    whole, order = (
        features(NET, IMAGES, READOUT, projection=projection),
        torch.tensor([3, 0, 4, 2, 1]),
    )
    torch.testing.assert_close(
        features(NET, IMAGES[order], READOUT, projection=projection), whole[order]
    )
    torch.testing.assert_close(
        features(NET, IMAGES[2:3], READOUT, projection=projection), whole[2:3]
    )


def test_gradients_of_unit_norm_average_to_less():
    r = Readout(timesteps=(300,), unit_norm=True)
    torch.testing.assert_close(
        features(NET, IMAGES, r).norm(dim=1), torch.ones(5, dtype=torch.float64)
    )
    assert (features(NET, IMAGES, replace(r, timesteps=(0, 999))).norm(dim=1) < 0.999).all()


def test_noise_has_a_name():
    r = Readout(timesteps=(7, 300), draws=3, noise_seed=4)
    noise = r.noise((2, 4, 3))
    assert noise.shape == (2, 3, 2, 4, 3) and len(noise.flatten(0, 1).flatten(1).unique(dim=0)) == 6
    assert torch.equal(
        noise[1, 2], torch.randn(2, 4, 3, generator=rng.generator("gradient noise", 4, 300, 2))
    )
    assert torch.equal(Readout(timesteps=(300,), noise_seed=4).noise((2, 4, 3))[0, 0], noise[1, 0])
    assert not torch.allclose(
        features(NET, IMAGES, r), features(NET, IMAGES, replace(r, noise_seed=5)), rtol=0.1
    )


@pytest.mark.parametrize("unit_norm", [False, True])
def test_other_images_at_each_timestep(unit_norm):
    r, images = replace(READOUT, unit_norm=unit_norm), pictures(4, 3)
    torch.testing.assert_close(
        features(NET, images, r, batch=4), twin(NET, images, r), rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(features(NET, same_at_each(IMAGES, r), r), features(NET, IMAGES, r))


@pytest.mark.parametrize(
    ("parts", "columns"),
    [(("up",), [-94, None]), (("down", "time"), [3, 91]), (("up_b.bias",), [-4, None])],
)
def test_parts_are_columns(parts, columns):
    whole = features(NET, IMAGES, READOUT)
    torch.testing.assert_close(
        features(NET, IMAGES, replace(READOUT, parts=parts)), whole[:, slice(*columns)]
    )


def test_projection_is_applied_to_the_average():
    r, project = replace(READOUT, unit_norm=True), Projection(32)
    torch.testing.assert_close(
        features(NET, IMAGES, r, projection=project), project(features(NET, IMAGES, r))
    )


def test_a_unit_norm_needs_a_whole_gradient():
    """The norm is that of the chosen parts, before the projection."""
    r = Readout(timesteps=(300,), unit_norm=True, parts=("up_a",))
    torch.testing.assert_close(
        features(NET, IMAGES, r).norm(dim=1), torch.ones(5, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    "r", [Readout(timesteps=(0, 400), draws=3), Readout("output_mean", (0, 400), unit_norm=True)]
)
def test_unet_with_attention_and_dropout(r):
    """The real thing: both ways through it, and it stays as it was."""
    model = Recipe(unet=UNET).build(0, (2, 4, 4)).double().train()
    model.mid_block.eval()
    images = torch.nn.functional.pad(pictures(2), (0, 1))
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    with torch.no_grad():
        found = features(model, images, r)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and modes == [
        m.training for m in model.modules()
    ]
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    torch.testing.assert_close(
        found, twin(model, same_at_each(images, r), r), rtol=1e-9, atol=1e-12
    )


def test_uniform_timesteps():
    assert (
        uniform_timesteps(10) == tuple(range(0, 1000, 100))
        and uniform_timesteps(1) == (0,)
        and len(uniform_timesteps(1000)) == 1000
    )


def broken_net() -> Net:
    model = net()
    model.up_a.bias.data[0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda: Readout("perplexity"), "model_output must be one of loss, .*not 'perplexity'"),
        (lambda: Readout(timesteps=()), "timesteps are empty"),
        (lambda: Readout(timesteps=(1000,)), "timestep must be an integer"),
        (lambda: Readout(draws=0), "draws must be a positive integer"),
        (lambda: Readout(parts="up"), r"parts must be a tuple .*\('up',\)"),
        (lambda: uniform_timesteps(3), "must divide 1000"),
        (lambda: uniform_timesteps(0), "number of timesteps must be a positive"),
        (
            lambda: features(NET, IMAGES, Readout(parts=("up", "mid"))),
            "parts has 'mid'.*idle, down, time, norm, up_a, up_b",
        ),
        (lambda: features(NET, IMAGES[0], READOUT), "images must be a float tensor"),
        (lambda: features(NET, 3 * IMAGES, READOUT), "images has pixels"),
        (
            lambda: features(NET, IMAGES.float(), READOUT),
            "images are torch.float32 on cpu but the model is torch.float64",
        ),
        (
            lambda: features(NET, pictures(2, 4), READOUT),
            "images have 4 timesteps but the readout has 3",
        ),
        (lambda: features(NET, IMAGES, READOUT, batch=0), "batch must be a positive integer"),
        (lambda: features(broken_net(), IMAGES, READOUT), "gradients of images 0… are NaN"),
    ],
)
def test_bad_input(wrong, reason):
    with pytest.raises(InputError, match=reason):
        wrong()
