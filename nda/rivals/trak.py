"""The gradient-based attribution scores: a few lines of algebra each on inner products of features.

Everything works in the dual. With features φ_i of train images and ψ_q of queries, `gram[i, j]` =
φ_i·φ_j and `cross[q, i]` = ψ_q·φ_i, the ridge solve in parameter space is ψ_qᵀ (ΦᵀΦ + λI)⁻¹ φ_i =
[cross (gram + λI)⁻¹][q, i], exactly, however many parameters there are.

`damping` is λ relative to the mean eigenvalue of the Gram matrix, so that a value means the same
for every model, readout and number of images; `Kernel.ridge` gives λ itself. All results are
float64.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nda.errors import InputError
from nda.rivals.kernel import Kernel, _checked, _over


def dot_scores(crosses: Sequence[Float[Tensor, "query train"]]) -> Float[Tensor, "query train"]:
    """Gradient (dot product) at one checkpoint; TracInCP, the mean over checkpoints, without
    learning rates, at several.

    crosses: `gram(query_features, train_features)` of the output `"loss"` at each checkpoint.
    Sources: TracIn; D-TRAK, App. C.
    """
    if not crosses:
        raise InputError("crosses are empty; pass the inner products of at least one checkpoint")
    return torch.stack([_checked(cross, crosses[0].shape[-1]) for cross in crosses]).mean(0)


def cosine_scores(
    crosses: Sequence[Float[Tensor, "query train"]],
    query_norms: Sequence[Float[Tensor, "query"]],
    train_norms: Sequence[Float[Tensor, "train"]],
) -> Float[Tensor, "query train"]:
    """Gradient (cosine) at one checkpoint; GAS, its mean over checkpoints, at several. Sources:
    GAS; D-TRAK, App. C.

    The arguments are as in `dot_scores`, with the `norms` of the features at each checkpoint.
    """
    if not len(crosses) == len(query_norms) == len(train_norms) or [c.shape for c in crosses] != [
        (len(q), len(t)) for q, t in zip(query_norms, train_norms, strict=True)
    ]:
        raise InputError(
            "query_norms and train_norms must hold one norm per query and train image for each of"
            " the crosses"
        )
    return dot_scores(
        [
            _over(c.double(), q[:, None] * t)
            for c, q, t in zip(crosses, query_norms, train_norms, strict=True)
        ]
    )


def trak_scores(
    cross: Float[Tensor, "query train"], kernel: Kernel, *, damping: float
) -> Float[Tensor, "query train"]:
    """ψᵀ (ΦᵀΦ + λI)⁻¹ φ, of one model.

    TRAK if all features are gradients of `"loss"`; D-TRAK if of `"output_norm"`; Journey-TRAK if of
    `"loss"` with the queries' along their `journey`. Sources: TRAK (its factor Q is 1 for a loss,
    one model); D-TRAK; Journey-TRAK, as adapted in D-TRAK.
    """
    return kernel.solve(cross, damping)


def relative_if_scores(
    cross: Float[Tensor, "query train"], kernel: Kernel, *, damping: float
) -> Float[Tensor, "query train"]:
    """TRAK's scores over ‖(ΦᵀΦ + λI)⁻¹ φ‖: what a train image does per change of the parameters.
    Source: RelatIF (θ-relative)."""
    return _over(
        kernel.solve(cross, damping),
        kernel.solved_norms(damping).where(kernel.gram.diagonal() > 0, 0.0),
    )


def renormalised_if_scores(
    cross: Float[Tensor, "query train"], kernel: Kernel, *, damping: float
) -> Float[Tensor, "query train"]:
    """TRAK's scores over ‖φ‖. Sources: renormalised influence (GAS's paper); D-TRAK, App. C."""
    return _over(kernel.solve(cross, damping), kernel.gram.diagonal().double().sqrt())
