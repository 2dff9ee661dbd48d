"""Training a tiny U-Net: against a plain loop, coupled between subsets, resumable."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from tiny import IMAGES, TINY, UNET, same, train

from nda.errors import InputError
from nda.model import training
from nda.model.outputs import denoising_losses
from nda.model.sampling import sample
from nda.model.training import Training
from nda.store import Store

KEEP = torch.arange(12) % 2 == 0


def test_training_is_deterministic_and_leaves_the_global_state():
    before = torch.get_rng_state()
    (a, curve), (b, again), (other, _) = (
        train(IMAGES, TINY, train_seed=seed) for seed in (0, 0, 1)
    )
    assert same(a, b) and torch.equal(curve, again) and not same(a, other)
    assert curve.shape == (4 * 3,) and not a.training
    sample(a, range(2), steps=2), denoising_losses(a, IMAGES, timesteps=[5])
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


def killed(monkeypatch, epoch: int, checkpoints) -> list:
    """What an iterator of checkpoints gave before it was killed at the start of `epoch`."""
    run_epoch, found = Training.run_epoch, []

    def stop(self):
        if self.epoch == epoch:
            raise Interrupted
        run_epoch(self)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Training, "run_epoch", stop)
        for checkpoint in checkpoints:
            found.append(checkpoint)
    return found


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_interrupted_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, ema, bf16):
    recipe, store, epochs = replace(TINY, ema=ema, bf16=bf16), Store(tmp_path), []
    whole = list(training.train(IMAGES, recipe, keep=KEEP, train_seed=2))
    assert [checkpoint.share for checkpoint in whole] == [0.5, 1.0]
    found = killed(monkeypatch, 3, training.train(IMAGES, recipe, keep=KEEP, train_seed=2))
    assert [checkpoint.share for checkpoint in found] == [0.5]
    store.save("state", found[0].state)
    run_epoch = Training.run_epoch
    monkeypatch.setattr(
        Training, "run_epoch", lambda self: (epochs.append(self.epoch), run_epoch(self))
    )
    (resumed,) = training.train(IMAGES, recipe, keep=KEEP, train_seed=2, state=store.load("state"))
    assert epochs == [2, 3]  # from the checkpoint, not from the start
    for mine, theirs in ((resumed, whole[1]), (found[0], whole[0])):
        for a, b in ((mine.weights, theirs.weights), (mine.state, theirs.state)):
            assert a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())
        assert torch.equal(mine.losses, theirs.losses)


def test_a_finished_training_is_not_trained_again(monkeypatch):
    *_, last = training.train(IMAGES, TINY)
    monkeypatch.setattr(Training, "run_epoch", lambda _: pytest.fail("trained again"))
    (again,) = training.train(IMAGES, TINY, state=last.state)
    assert again.share == 1 and torch.equal(again.losses, last.losses)
    assert all(torch.equal(v, last.weights[k]) for k, v in again.weights.items())


def test_checkpoints_are_copies():
    """Training on does not change what was given before."""
    checkpoints = training.train(IMAGES, replace(TINY, ema=0.9))
    first = next(checkpoints)
    before = {k: v.clone() for k, v in (first.weights | first.state).items()}
    next(checkpoints)
    assert all(torch.equal(v, before[k]) for k, v in (first.weights | first.state).items())


def test_checkpoints_are_at_the_shares_of_the_recipe():
    recipe = replace(TINY, epochs=5, checkpoints=(0.01, 0.25, 0.5, 1.0))
    found = {c.share: len(c.losses) for c in training.train(IMAGES, recipe)}
    assert found == {0.25: 3, 0.5: 6, 1.0: 15}  # of 3 steps an epoch; 0.01 is in the first, too


@pytest.mark.parametrize("change", ["recipe", "seed", "keep", "images", "nothing of it"])
def test_state_of_another_training_is_refused(change):
    state = next(training.train(IMAGES, TINY, keep=KEEP)).state
    if change == "nothing of it":
        del state["training"]
    recipe = replace(TINY, lr=2e-3) if change == "recipe" else TINY
    images, keep = -IMAGES if change == "images" else IMAGES, ~KEEP if change == "keep" else KEEP
    with pytest.raises(InputError, match="state is that of another training"):
        training.train(images, recipe, keep=keep, train_seed=int(change == "seed"), state=state)


def test_averaged_weights_differ_from_the_last(tmp_path):
    with_ema, without = (train(IMAGES, replace(TINY, ema=ema))[0] for ema in (0.9, 0.0))
    assert not same(with_ema, without)


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
