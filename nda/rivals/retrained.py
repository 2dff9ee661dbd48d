"""What retraining says by itself: scores read off the losses of models that were trained on subsets
anyway.

The caller fits them on the `select` subsets; scored on the `report` subsets they show how far that
many retrainings go by themselves.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nda.errors import InputError, needs

PENALTIES = (0.1, 1.0, 10.0)  # D-TRAK's grid


def empirical_influence(
    losses: Float[Tensor, "subset query"], masks: Bool[Tensor, "subset train"]
) -> Float[Tensor, "query train"]:
    """Mean loss of the models trained without an image minus that of the models trained with it:
    higher = keeping it lowers the loss.

    Source: Feldman & Zhang 2020; D-TRAK, App. (empirical influence).

    Args:
        losses: means over seeds and timesteps.
        masks: True = kept.

    Returns:
        Scores of all train images for every query.

    Raises:
        InputError: for losses that are not finite or of other subsets, and for an image that every
            subset keeps or none.
    """
    _check(losses, masks)
    kept = masks.to(losses.device, torch.float64)
    with_it, without_it = kept.sum(0), (1 - kept).sum(0)  # [train]
    alone = torch.nonzero((with_it == 0) | (without_it == 0))[:, 0].tolist()
    if alone:
        raise InputError(
            f"masks keep {len(alone)} train images in all or in none of the subsets, {alone[0]}"
            " first; use more subsets"
        )
    values = losses.double().T  # [query, subset]
    return (values @ (1 - kept) / without_it - values @ kept / with_it).to(losses)


def datamodel(
    losses: Float[Tensor, "subset query"],
    masks: Bool[Tensor, "subset train"],
    *,
    penalties: Sequence[float] = PENALTIES,
) -> Float[Tensor, "query train"]:
    """Minus the coefficients of a ridge regression of each query's loss on the 0/1 masks: higher =
    keeping the image lowers the loss.

    An image that every subset keeps, or none, gets 0. Source: Ilyas et al. 2022 (datamodels, there
    with a lasso); D-TRAK, App. (ridge).

    Args:
        losses: means over seeds and timesteps.
        masks: True = kept.
        penalties: the grid of squared-norm penalties λ in ‖loss - b - mask·w‖² + λ‖w‖²; every query
            takes the one with the least leave-one-out error (D-TRAK: five folds).

    Returns:
        Scores of all train images for every query.

    Raises:
        InputError: for losses that are not finite or of other subsets, and for penalties that are
            not positive.
    """
    needs("sklearn", "rivals")
    from sklearn.linear_model import RidgeCV

    _check(losses, masks)
    if not penalties or not all(0 < penalty < float("inf") for penalty in penalties):
        raise InputError(f"penalties must be positive numbers, at least one, not {list(penalties)}")
    fit = RidgeCV(alphas=penalties, alpha_per_target=True).fit(
        masks.cpu().double().numpy(), losses.cpu().double().numpy()
    )
    shape = (losses.shape[1], masks.shape[1])  # of one query the fit is flat
    return -torch.from_numpy(fit.coef_).reshape(shape).to(losses)


def _check(losses: Tensor, masks: Tensor) -> None:
    if losses.ndim != 2 or masks.ndim != 2 or len(losses) != len(masks):
        raise InputError(
            f"losses {tuple(losses.shape)} and masks {tuple(masks.shape)} must be [subset, query]"
            " and [subset, train]"
        )
    if masks.dtype != torch.bool:
        raise InputError(f"masks must be bool, True = kept, not {masks.dtype}")
    if len(losses) < 3:
        raise InputError(f"losses must be those of at least 3 subsets, not {len(losses)}")
    if not torch.isfinite(losses).all():
        raise InputError(
            "losses have NaN or infinite entries; remove those queries or models first"
        )
