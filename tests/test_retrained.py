"""Scores read off retrained models, against explicit loops and against a truth that is known."""

import pytest
import torch

from nda import rng
from nda.errors import InputError
from nda.evidence.lds import lds
from nda.evidence.truth import group_effects
from nda.rivals.retrained import datamodel, empirical_influence


def halves(subsets: int, train: int, name: str = "masks") -> torch.Tensor:
    """Masks that keep half of the train images each."""
    source = rng.generator(name, subsets, train)
    order = torch.stack([torch.randperm(train, generator=source) for _ in range(subsets)])
    return order < train // 2


def planted(masks: torch.Tensor, effects: torch.Tensor, noise: float = 0.0) -> torch.Tensor:
    """Losses `[subset, query]` that each kept image lowers by its effect `[query, train]`."""
    source = rng.generator("planted", len(masks))
    errors = torch.randn(len(masks), len(effects), dtype=torch.float64, generator=source)
    return 0.3 - 0.001 * (masks.double() @ effects.T + noise * errors)


MASKS = halves(14, 9)
EFFECTS = torch.randn(4, 9, dtype=torch.float64, generator=rng.generator("effects"))
LOSSES = planted(MASKS, EFFECTS, noise=1.0)


def test_empirical_influence_is_a_difference_of_means():
    scores = empirical_influence(LOSSES, MASKS)
    assert scores.shape == (4, 9)
    for q in range(4):
        for n in range(9):
            kept, left_out = LOSSES[MASKS[:, n], q].mean(), LOSSES[~MASKS[:, n], q].mean()
            torch.testing.assert_close(scores[q, n], left_out - kept)


def ridge(masks, losses, penalty):
    """Intercept and coefficients, by the normal equations, the intercept not penalised."""
    design = torch.cat([torch.ones(len(masks), 1, dtype=torch.float64), masks.double()], 1)
    weights = penalty * torch.eye(design.shape[1], dtype=torch.float64)
    weights[0, 0] = 0
    return torch.linalg.solve(design.T @ design + weights, design.T @ losses)


@pytest.mark.parametrize(("subsets", "train"), [(14, 9), (10, 16)])
def test_datamodel_is_the_ridge_regression_with_the_least_leave_one_out_error(subsets, train):
    masks = halves(subsets, train)
    effects = torch.randn(6, train, dtype=torch.float64, generator=rng.generator("effects", train))
    losses = planted(masks, effects * torch.tensor([0.01, 0.1, 0.3, 1, 3, 10])[:, None], noise=1.0)
    penalties, chosen = [0.1, 1.0, 10.0, 100.0], []
    scores = datamodel(losses, masks, penalties=penalties)
    for q in range(6):
        errors = []
        for penalty in penalties:
            error = 0.0
            for m in range(subsets):
                rest = torch.arange(subsets) != m
                fit = ridge(masks[rest], losses[rest, q], penalty)
                error += (losses[m, q] - fit[0] - masks[m].double() @ fit[1:]).square().item()
            errors.append(error)
        chosen.append(min(range(4), key=errors.__getitem__))
        torch.testing.assert_close(
            scores[q], -ridge(masks, losses[:, q], penalties[chosen[-1]])[1:], atol=1e-9, rtol=1e-6
        )
    assert len(set(chosen)) > 1  # queries choose for themselves


@pytest.mark.parametrize("reference", [empirical_influence, datamodel])
def test_a_planted_linear_effect_is_recovered_on_fresh_masks(reference):
    effects = torch.randn(20, 30, dtype=torch.float64, generator=rng.generator("planted effects"))
    select, report = halves(3000, 30, "select"), halves(200, 30, "report")
    scores = reference(planted(select, effects, noise=0.5), select)
    values = lds(group_effects(scores, report), planted(report, effects))
    assert values.min() > 0.97
    few = reference(planted(select[:20], effects, noise=0.5), select[:20])
    # that much retraining is not enough
    assert 0.2 < lds(group_effects(few, report), planted(report, effects)).mean() < 0.9


@pytest.mark.parametrize("reference", [empirical_influence, datamodel])
def test_the_image_that_lowers_the_loss_scores_highest_and_its_order_does_not_matter(reference):
    effects = torch.zeros(1, 9, dtype=torch.float64)
    effects[0, 4], effects[0, 7] = 1, -1
    losses = planted(MASKS, effects)
    scores = reference(losses, MASKS)
    assert scores.argmax() == 4 and scores.argmin() == 7
    order, subsets = (
        torch.randperm(9, generator=rng.generator("order")),
        torch.randperm(14, generator=rng.generator("subsets")),
    )
    torch.testing.assert_close(
        reference(losses[subsets], MASKS[subsets][:, order]), scores[:, order]
    )
    assert reference(losses.float(), MASKS).dtype == torch.float32


def test_an_image_that_is_always_or_never_kept_tells_nothing():
    masks = MASKS.clone()
    masks[:, 2], masks[:, 5] = True, False
    assert datamodel(LOSSES, masks)[:, [2, 5]].abs().max() < 1e-15
    with pytest.raises(
        InputError, match=r"2 train images in all or in none of the subsets, 2 first"
    ):
        empirical_influence(LOSSES, masks)


@pytest.mark.parametrize("reference", [empirical_influence, datamodel])
@pytest.mark.parametrize(
    ("losses", "masks", "reason"),
    [
        (LOSSES[:, 0], MASKS, r"\[subset, query\]"),
        (LOSSES[:5], MASKS, r"\[subset, query\]"),
        (LOSSES, MASKS.double(), "bool"),
        (LOSSES[:2], MASKS[:2], "at least 3"),
        (LOSSES / 0, MASKS, "NaN"),
    ],
)
def test_bad_input(reference, losses, masks, reason):
    with pytest.raises(InputError, match=reason):
        reference(losses, masks)


@pytest.mark.parametrize("penalties", [[], [0.0, 1.0], [-1.0], [float("nan")]])
def test_bad_penalties(penalties):
    with pytest.raises(InputError, match="penalties"):
        datamodel(LOSSES, MASKS, penalties=penalties)
