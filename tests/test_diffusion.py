"""Training, sampling and losses of a tiny U-Net; the paper's U-Net is built once."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler

from nda import rng
from nda.errors import InputError
from nda.model import training
from nda.model.outputs import denoising_losses
from nda.model.sampling import sample
from nda.model.training import Training, train
from nda.model.unet import Recipe, load_model
from nda.store import Store

UNET = {
    "block_out_channels": [8, 8],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "add_attention": False,
    "dropout": 0.1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
}
TINY = Recipe.parse({"unet": UNET, "epochs": 4, "batch": 5, "lr": 1e-3, "checkpoints": [0.5, 1.0]})
IMAGES = 2 * torch.rand(12, 1, 8, 8, generator=rng.generator("diffusion")) - 1
KEEP = torch.arange(12) % 2 == 0


def same(a, b) -> bool:
    """Whether two models have the same bits."""
    return all(
        torch.equal(v, w)
        for v, w in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.fixture(scope="module")
def trained():
    """A model that has learned its 12 images, a little."""
    return train(IMAGES, replace(TINY, epochs=30, lr=5e-3), train_seed=1)[0]


# ---- the recipe


def test_defaults_are_the_papers():
    recipe = Recipe()
    assert (recipe.epochs, recipe.batch, recipe.lr, recipe.betas, recipe.weight_decay) == (
        200,
        128,
        1e-4,
        (0.95, 0.999),
        1e-6,
    )
    assert (recipe.warmup, recipe.clip, recipe.flips, recipe.ema, recipe.bf16) == (
        0.1,
        1.0,
        True,
        0.0,
        False,
    )


def test_learning_rate_rises_then_falls_to_zero():
    rates = [Recipe(lr=2.0, warmup=0.1).learning_rate(step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0 and rates[55] == pytest.approx(1.0) and rates[100] == pytest.approx(0)
    assert all(a >= b for a, b in zip(rates[9:-1], rates[10:], strict=True))
    assert Recipe(lr=2.0, warmup=0.0).learning_rate(0, 1) == 2.0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'; known: unet, epochs"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": 1.5}, "epochs"),
        ({"epochs": True}, "epochs"),
        ({"batch": 0}, "batch"),
        ({"lr": "1e-4"}, "lr must be a float, not '1e-4'"),  # how YAML reads 1e-4
        ({"lr": 0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"betas": [0.9]}, "betas"),
        ({"betas": [0.9, 1.0]}, "betas"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"warmup": 1.1}, "warmup"),
        ({"clip": 0}, "clip"),
        ({"flips": 1}, "flips"),
        ({"ema": 1.0}, "ema"),
        ({"checkpoints": []}, "checkpoints"),
        ({"checkpoints": [0.5]}, "checkpoints"),
        ({"checkpoints": [0.5, 0.5, 1.0]}, "checkpoints"),
        ({"checkpoints": [0.0, 1.0]}, "checkpoints"),
        ({"checkpoints": ["a", 1.0]}, "checkpoints"),
        ({"unet": 3}, "unet"),
    ],
)
def test_bad_recipe(settings, reason):
    with pytest.raises(InputError, match=reason):
        Recipe.parse(settings)


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        ({"layers": 1}, (1, 8, 8)),
        ({"norm_num_groups": 3}, (1, 8, 8)),
        ({"down_block_types": ["DownBlock2D"]}, (1, 8, 8)),
        ({"down_block_types": ["Down", "Down"]}, (1, 8, 8)),
        ({"in_channels": 3}, (1, 8, 8)),
        ({}, (1, 9, 8)),
        ({}, (1, 8, 9)),
    ],
)
def test_unet_that_cannot_be_built(change, shape):
    with pytest.raises(InputError, match="unet"):
        replace(TINY, unet=UNET | change).build(0, shape)


# ---- training


def test_training_is_deterministic_and_leaves_the_global_state():
    before = torch.get_rng_state()
    (a, curve), (b, again), (other, _) = (
        train(IMAGES, TINY, train_seed=seed) for seed in (0, 0, 1)
    )
    assert same(a, b) and torch.equal(curve, again) and not same(a, other)
    assert curve.shape == (4 * 3,) and not a.training
    sample(a, 2, steps=2), denoising_losses(a, IMAGES, timesteps=[5])
    assert torch.equal(torch.get_rng_state(), before)


def test_training_is_a_plain_loop():
    """Against a loop with torch's plain AdamW and diffusers' scheduler; clipping and warm-up matter
    here."""
    recipe = replace(TINY, unet=UNET | {"dropout": 0.0}, clip=0.05, warmup=0.5, weight_decay=0.1)
    model, scheduler, losses, step = recipe.build(6, IMAGES.shape), DDPMScheduler(), [], 0
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.95, 0.999), weight_decay=0.1, foreach=False
    )
    for epoch in range(4):
        order, timesteps, noise, flips = training.visits(IMAGES.shape, 6, epoch)
        for rows in (
            [image for image in order.tolist() if KEEP[image]][:5],
            [image for image in order.tolist() if KEEP[image]][5:],
        ):
            clean = torch.stack(
                [IMAGES[image].flip(-1) if flips[image] else IMAGES[image] for image in rows]
            )
            noisy = scheduler.add_noise(clean, noise[rows], timesteps[rows])
            loss = torch.nn.functional.mse_loss(model(noisy, timesteps[rows]).sample, noise[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.param_groups[0]["lr"] = recipe.learning_rate(step, 8)
            optimizer.step()
            losses.append(loss.item())
            step += 1
    trained, curve = train(IMAGES, recipe, keep=KEEP, train_seed=6)
    torch.testing.assert_close(curve, torch.tensor(losses), rtol=1e-4, atol=1e-5)
    for name, weight in trained.state_dict().items():
        torch.testing.assert_close(weight, model.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_subset_models_of_one_seed_start_from_the_same_weights():
    whole, half, other = (
        Training(TINY, IMAGES, keep, seed)
        for keep, seed in ((KEEP | True, 3), (KEEP, 3), (KEEP, 4))
    )
    assert same(whole.model, half.model) and not same(half.model, other.model)


def met(monkeypatch, keep) -> tuple[dict[int, list], list[int]]:
    """What every image meets in training, `{image: [(pixels, timestep, noise), …]}`, and the order
    in which images come."""
    images = IMAGES.clone()
    images[:, 0, 0, :] = torch.linspace(-1, 1, 12)[:, None]  # names the image, flipped or not
    seen: dict[int, list] = {}
    order: list[int] = []

    def step(self, clean, timesteps, noise, number):
        for x, t, e in zip(clean, timesteps, noise, strict=True):
            order.append(round((x[0, 0, 0].item() + 1) * 11 / 2))
            seen.setdefault(order[-1], []).append((x, t, e))
        return torch.tensor(0.0)

    monkeypatch.setattr(Training, "_step", step)
    train(images, TINY, keep=keep, train_seed=5)
    return seen, order


def test_shared_images_meet_the_same_whatever_the_subset(monkeypatch):
    (whole, order), (half, half_order), (rest, _) = (
        met(monkeypatch, keep) for keep in (None, KEEP, ~KEEP)
    )
    assert half_order == [image for image in order if KEEP[image]]
    assert (
        sorted(whole) == list(range(12))
        and sorted(half) == list(range(0, 12, 2))
        and sorted(rest) == list(range(1, 12, 2))
    )
    for image, visits in (half | rest).items():
        assert len(visits) == TINY.epochs
        for mine, theirs in zip(visits, whole[image], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    for image in (0, 1):  # epochs differ, and some visits are flipped
        assert len({t.item() for _, t, _ in whole[image]}) > 1
    flipped = [
        not torch.equal(x[:, 1:], IMAGES[i, :, 1:])
        for i, visits in whole.items()
        for x, _, _ in visits
    ]
    assert 0.2 < sum(flipped) / len(flipped) < 0.8


def test_visits_are_random():
    order, timesteps, noise, flips = training.visits((500, 1, 8, 8), 0, 0)
    assert torch.equal(order.sort().values, torch.arange(500)) and not torch.equal(
        order, torch.arange(500)
    )
    assert timesteps.min() >= 0 and timesteps.max() <= 999 and 350 < timesteps.float().mean() < 650
    assert (
        abs(noise.mean()) < 0.05
        and abs(noise.std() - 1) < 0.05
        and 0.4 < flips.float().mean() < 0.6
    )


class Interrupted(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_interrupted_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, ema, bf16):
    recipe, store = replace(TINY, ema=ema, bf16=bf16), Store(tmp_path)
    model, curve = train(IMAGES, recipe, keep=KEEP, train_seed=2)
    run_epoch, epochs = Training.run_epoch, []

    def stop_in_the_last_epoch(self):
        if self.epoch == 3:
            raise Interrupted
        epochs.append(self.epoch)
        run_epoch(self)

    monkeypatch.setattr(Training, "run_epoch", stop_in_the_last_epoch)
    with pytest.raises(Interrupted):
        train(IMAGES, recipe, keep=KEEP, train_seed=2, store=store)
    assert epochs == [0, 1, 2] and set(store.names()) == {"model-state", "model-50"}
    monkeypatch.setattr(
        Training, "run_epoch", lambda self: (epochs.append(self.epoch), run_epoch(self))
    )
    resumed, whole_curve = train(IMAGES, recipe, keep=KEEP, train_seed=2, store=store)
    assert epochs == [0, 1, 2, 2, 3]  # from the checkpoint, not from the start
    assert same(resumed, model) and torch.equal(whole_curve, curve)


@pytest.mark.parametrize("change", ["recipe", "seed", "keep", "images"])
def test_state_of_another_training_is_not_resumed(tmp_path, monkeypatch, change):
    def call(store, recipe=TINY, images=IMAGES, keep=KEEP, seed=0):
        return train(images, recipe, keep=keep, train_seed=seed, store=store, name="x")

    other = {"recipe": replace(TINY, lr=2e-3), "seed": 1, "keep": ~KEEP, "images": -IMAGES}[change]
    run_epoch = Training.run_epoch
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(
            Training,
            "run_epoch",
            lambda self: run_epoch(self) if self.epoch < 3 else (_ for _ in ()).throw(Interrupted),
        )
        call(Store(tmp_path))
    assert "x-state" in Store(tmp_path)
    assert same(call(Store(tmp_path), **{change: other})[0], call(None, **{change: other})[0])


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    """The state is replaced, never removed first: a full disk or a kill in the middle of a write
    costs one checkpoint."""
    recipe, saved = replace(TINY, checkpoints=(0.25, 0.5, 1.0)), []
    save = Store.save

    def full_at_the_second(self, name, *values, **settings):
        saved.append(name)
        if len(saved) == 2:
            raise Interrupted
        save(self, name, *values, **settings)

    monkeypatch.setattr(Store, "save", full_at_the_second)
    with pytest.raises(Interrupted):
        train(IMAGES, recipe, store=Store(tmp_path), name="x")
    assert saved == ["x-state", "x-state"] and Store(tmp_path).load("x-state")["epoch"] == 1


def test_averaged_weights_differ_from_the_last(tmp_path):
    with_ema, without = (train(IMAGES, replace(TINY, ema=ema))[0] for ema in (0.9, 0.0))
    assert not same(with_ema, without)


def test_saved_weights_make_the_same_model(tmp_path, trained):
    store = Store(tmp_path)
    store.save("model", trained.state_dict())
    again = load_model(store.load("model"), TINY, IMAGES.shape, torch.device("cpu"))
    assert same(again, trained) and not again.training


@pytest.mark.parametrize(
    ("images", "keep", "reason"),
    [
        (IMAGES * 2, None, r"images .*\[-1, 1\]"),
        (IMAGES / 0, None, "images .*NaN"),
        (IMAGES[0], None, "images"),
        (IMAGES, KEEP[:5], "keep"),
        (IMAGES, KEEP & False, "keep"),
    ],
)
def test_bad_training_input(images, keep, reason):
    with pytest.raises(InputError, match=reason):
        train(images, TINY, keep=keep)


# ---- losses


def test_losses_are_an_explicit_loop(trained):
    losses = denoising_losses(trained, IMAGES, timesteps=[100, 700], noise_seeds=[0, 3])
    assert losses.shape == (12, 2)
    scheduler, query = DDPMScheduler(), 7
    for column, timestep in enumerate((100, 700)):
        errors = []
        for noise_seed in (0, 3):
            noise = torch.randn(
                IMAGES.shape, generator=rng.generator("evaluation", noise_seed, timestep)
            )[query : query + 1]
            with torch.no_grad():
                predicted = trained(
                    scheduler.add_noise(IMAGES[query : query + 1], noise, torch.tensor([timestep])),
                    timestep,
                ).sample
            errors.append(((predicted - noise) ** 2).mean().item())
        assert losses[query, column].item() == pytest.approx(sum(errors) / 2, rel=1e-5)


@pytest.mark.parametrize("batch", [1, 5, 12])
def test_losses_do_not_depend_on_the_batch(trained, batch):
    one, other = (
        denoising_losses(trained, IMAGES, timesteps=[50, 500], noise_seeds=[0, 1], batch=size)
        for size in (256, batch)
    )
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_training_lowers_the_losses_of_train_images(trained):
    untrained = TINY.build(1, IMAGES.shape).eval()
    before, after = (
        denoising_losses(model, IMAGES, timesteps=[100, 500, 900]).mean(0)
        for model in (untrained, trained)
    )
    assert (after < before).all()


@pytest.mark.parametrize(
    ("queries", "timesteps", "noise_seeds", "reason"),
    [
        (IMAGES + 1, [5], [0], "queries"),
        (IMAGES / 0, [5], [0], "queries .*NaN"),
        (IMAGES, [1000], [0], "timestep"),
        (IMAGES, [], [0], "timesteps"),
        (IMAGES, [5], [], "noise_seeds"),
    ],
)
def test_bad_losses_input(trained, queries, timesteps, noise_seeds, reason):
    with pytest.raises(InputError, match=reason):
        denoising_losses(trained, queries, timesteps=timesteps, noise_seeds=noise_seeds)


# ---- samples


def levels(images):
    """Pixels as 0…255."""
    return (images + 1) * 127.5


def test_samples_are_images(trained):
    images = sample(trained, 5, steps=4)
    assert (
        images.shape == (5, 1, 8, 8)
        and images.min() >= -1
        and images.max() <= 1
        and images.std() > 0.1
    )
    torch.testing.assert_close(levels(images), levels(images).round(), rtol=0, atol=1e-3)
    assert len(images.flatten(1).unique(dim=0)) == 5


@pytest.mark.parametrize(("n", "batch"), [(5, 1), (5, 2), (3, 64), (9, 64)])
def test_sample_does_not_depend_on_the_others(trained, n, batch):
    """Up to one of the 256 levels, where rounding may fall on either side."""
    one, other = (
        levels(sample(trained, 5, steps=4)),
        levels(sample(trained, n, steps=4, batch=batch)),
    )
    difference = (one[: min(n, 5)] - other[:5]).abs()
    assert difference.max() < 1.01 and (difference > 0.01).float().mean() < 0.01


@pytest.mark.parametrize("settings", [{"n": 0}, {"n": 1, "steps": 0}, {"n": 1, "steps": 1001}])
def test_bad_sample_input(trained, settings):
    with pytest.raises(InputError, match="at least one image and 1…1000 steps"):
        sample(trained, **settings)


def test_sample_follows_its_seed(trained):
    a, b, c = (sample(trained, 2, steps=3, noise_seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.allclose(a, c)


def test_sample_is_diffusers_ddim(trained):
    """Against diffusers' pipeline, which starts from a generator that we seed alike."""
    from diffusers import DDIMPipeline

    pipeline = DDIMPipeline(trained, DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        generator=rng.generator("sample", 0, 0), num_inference_steps=10, output_type="np"
    ).images
    difference = (
        levels(sample(trained, 1, steps=10))[0, 0] - 255 * torch.from_numpy(theirs)[0, :, :, 0]
    )
    assert difference.abs().max() < 1.01
