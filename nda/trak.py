"""The gradient-based attribution scores: a few lines of algebra each on inner products of features.

Everything works in the dual. With features φ_i of train images and ψ_q of queries, `gram[i, j]` = φ_i·φ_j and `cross[q, i]` = ψ_q·φ_i, the
ridge solve in parameter space is ψ_qᵀ (ΦᵀΦ + λI)⁻¹ φ_i = [cross (gram + λI)⁻¹][q, i], exactly, however many parameters there are.

`damping` is λ relative to the mean eigenvalue of the Gram matrix, so that a value means the same for every model, readout and number of
images; `Kernel.ridge` gives λ itself. All results are float64.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from nda import diffusion
from nda.checks import InputError
from nda.schedule import sigma, signal

DAMPINGS = tuple(10 ** (k / 2) for k in range(-10, 7))  # 1e-5 … 1e3 of the mean eigenvalue
SLICE = 1 << 16  # dimensions that are brought to float64 at a time


def _blocks(a: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [a] if isinstance(a, Tensor) else a


def _double(x: Float[Tensor, "example dim"]) -> Iterator[Float[Tensor, "example slice"]]:
    """Slices of the features in float64; on the CPU if the device has none."""
    return (part.to("cpu" if part.is_mps else part.device, torch.float64) for part in x.split(SLICE, 1))


def _inner(x: Float[Tensor, "a dim"], y: Float[Tensor, "b dim"]) -> Float[Tensor, "a b"]:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise InputError(f"features must be [example, dim] of one dim, not {tuple(x.shape)} and {tuple(y.shape)}; make both alike")
    return torch.stack([p @ q.T for p, q in zip(_double(x), _double(y), strict=True)]).sum(0)


def gram(a: Tensor | Sequence[Tensor], b: Tensor | Sequence[Tensor] | None = None) -> Float[Tensor, "a b"]:
    """Inner products of all examples of `a` with all of `b` (default: with `a` itself).

    Both are features `[example, dim]`, or blocks of them in a list or on disk (`nda.gradients.Blocks`): two are in memory at a time.
    """
    left, right = _blocks(a), _blocks(a if b is None else b)
    rows: list[list[Tensor]] = []
    for i, x in enumerate(tqdm(left, desc="inner products", unit="block", leave=False)):
        mirrored = [row[i].T for row in rows] if b is None else []
        rest = range(len(mirrored), len(right))
        rows.append(mirrored + [_inner(x, x if b is None and j == i else right[j]) for j in rest])
    return torch.cat([torch.cat(row, 1) for row in rows])


def norms(a: Tensor | Sequence[Tensor]) -> Float[Tensor, "example"]:
    """Euclidean norm of every example's features."""
    return torch.cat([torch.stack([part.square().sum(1) for part in _double(x)]).sum(0).sqrt() for x in _blocks(a)])


@dataclass(frozen=True, eq=False)
class Kernel:
    """The Gram matrix of the train features, decomposed once for every damping and every set of queries."""

    gram: Float[Tensor, "train train"]

    def __post_init__(self) -> None:
        if self.gram.ndim != 2 or self.gram.shape[0] != self.gram.shape[1] or not len(self.gram):
            raise InputError(f"gram must be [train, train], not {tuple(self.gram.shape)}; see gram(train_features)")
        if not torch.isfinite(self.gram).all():
            raise InputError("gram has NaN or infinite entries; the features of some train image are broken")
        if (self.gram - self.gram.T).abs().max() > 1e-4 * self.gram.abs().max() or self.gram.diagonal().sum() <= 0:
            raise InputError("gram must be symmetric with a positive trace; pass the inner products of the train features with themselves")

    @cached_property
    def eigen(self) -> tuple[Float[Tensor, "eigen"], Float[Tensor, "train eigen"]]:
        """Eigenvalues, those that rounding made negative as 0, and eigenvectors."""
        values, vectors = torch.linalg.eigh(self.gram.double())
        return values.clamp_min(0), vectors

    def ridge(self, damping: float) -> float:
        """λ: `damping` times the mean eigenvalue, which is the mean squared norm of the train features."""
        if not 0 < damping < math.inf:
            raise InputError(f"damping must be positive and finite, not {damping!r}; it is relative to the mean eigenvalue")
        return damping * self.gram.diagonal().double().mean().item()

    def solve(self, cross: Float[Tensor, "query train"], damping: float, power: int = 1) -> Float[Tensor, "query train"]:
        """cross (gram + λI)⁻ᵖ: the inner products ψᵀ (ΦᵀΦ + λI)⁻ᵖ φ."""
        values, vectors = self.eigen
        return _checked(cross, len(values)).to(vectors) @ vectors / (values + self.ridge(damping)) ** power @ vectors.T

    def leverage(self, damping: float) -> Float[Tensor, "train"]:
        """h_i = φ_iᵀ (ΦᵀΦ + λI)⁻¹ φ_i, in [0, 1)."""
        values, vectors = self.eigen
        return vectors.square() @ (values / (values + self.ridge(damping)))

    def solved_norms(self, damping: float) -> Float[Tensor, "train"]:
        """‖(ΦᵀΦ + λI)⁻¹ φ_i‖."""
        values, vectors = self.eigen
        return (vectors.square() @ (values / (values + self.ridge(damping)) ** 2)).sqrt()


def _checked(cross: Tensor, train: int) -> Tensor:
    if cross.ndim != 2 or cross.shape[1] != train:
        raise InputError(f"cross must be [query, train={train}], not {tuple(cross.shape)}; see gram(query_features, train_features)")
    if not torch.isfinite(cross).all():
        raise InputError("cross has NaN or infinite entries; the features of some query or train image are broken")
    return cross.double()


def _finite(values: Tensor) -> Tensor:
    if not torch.isfinite(values).all():
        raise InputError("residuals or errors have NaN or infinite entries; the model's weights or some train image are broken")
    return values.double()


def _over(scores: Float[Tensor, "query train"], scale: Tensor) -> Float[Tensor, "query train"]:
    """Divided by a norm; an image without a gradient scores 0."""
    return torch.where(scale > 0, scores / scale, 0.0)


def dot_scores(crosses: Sequence[Float[Tensor, "query train"]]) -> Float[Tensor, "query train"]:
    """Gradient (dot product) at one checkpoint; TracInCP, the mean over checkpoints, without learning rates, at several.

    crosses: `gram(query_features, train_features)` of the output `"loss"` at each checkpoint. Sources: TracIn; D-TRAK, App. C.
    """
    if not crosses:
        raise InputError("crosses are empty; pass the inner products of at least one checkpoint")
    return torch.stack([_checked(cross, crosses[0].shape[-1]) for cross in crosses]).mean(0)


def cosine_scores(
    crosses: Sequence[Float[Tensor, "query train"]],
    query_norms: Sequence[Float[Tensor, "query"]],
    train_norms: Sequence[Float[Tensor, "train"]],
) -> Float[Tensor, "query train"]:
    """Gradient (cosine) at one checkpoint; GAS, its mean over checkpoints, at several. Sources: GAS; D-TRAK, App. C.

    The arguments are as in `dot_scores`, with the `norms` of the features at each checkpoint.
    """
    if not len(crosses) == len(query_norms) == len(train_norms) or [c.shape for c in crosses] != [
        (len(q), len(t)) for q, t in zip(query_norms, train_norms, strict=True)
    ]:
        raise InputError("query_norms and train_norms must hold one norm per query and train image for each of the crosses")
    return dot_scores([_over(c.double(), q[:, None] * t) for c, q, t in zip(crosses, query_norms, train_norms, strict=True)])


def trak_scores(cross: Float[Tensor, "query train"], kernel: Kernel, *, damping: float) -> Float[Tensor, "query train"]:
    """ψᵀ (ΦᵀΦ + λI)⁻¹ φ, of one model.

    TRAK if all features are gradients of `"loss"`; D-TRAK if of `"output_norm"`; Journey-TRAK if of `"loss"` with the queries' along their
    `journey`. Sources: TRAK (its factor Q is 1 for a loss, one model); D-TRAK; Journey-TRAK, as adapted in D-TRAK.
    """
    return kernel.solve(cross, damping)


def relative_if_scores(cross: Float[Tensor, "query train"], kernel: Kernel, *, damping: float) -> Float[Tensor, "query train"]:
    """TRAK's scores over ‖(ΦᵀΦ + λI)⁻¹ φ‖: what a train image does per change of the parameters. Source: RelatIF (θ-relative)."""
    return _over(kernel.solve(cross, damping), kernel.solved_norms(damping).where(kernel.gram.diagonal() > 0, 0.0))


def renormalised_if_scores(cross: Float[Tensor, "query train"], kernel: Kernel, *, damping: float) -> Float[Tensor, "query train"]:
    """TRAK's scores over ‖φ‖. Sources: renormalised influence (the paper of GAS); D-TRAK, App. C."""
    return _over(kernel.solve(cross, damping), kernel.gram.diagonal().double().sqrt())


def das_paper_scores(
    crosses: Sequence[Float[Tensor, "query train"]],
    kernels: Sequence[Kernel],
    residuals: Float[Tensor, "train timestep"],
    *,
    damping: float,
    squared: bool = True,
) -> Float[Tensor, "query train"]:
    """DAS as the paper writes it: the mean over timesteps of ‖ψ_tᵀ K_t⁻¹ φ_t r_t / (1 - h_t)‖², the change of the query's predicted noise.

    crosses, kernels: one per timestep, of gradients of `"output_mean"`, which stands for the vector of predicted noise. residuals: length
    of the vector r_t, the square root of `nda.diffusion.denoising_losses`; h_t is the leverage at the same timestep. squared: as in the
    paper, without a sign; False keeps the sign of ψᵀ K⁻¹ φ r. Eq. 17-18 are this with one cross and kernel of a readout of `unit_norm`
    over all timesteps, and `das_residual` as the only column. Source: DAS, Eq. 15-18.
    """
    if not len(crosses) == len(kernels) or not kernels or residuals.shape != (len(kernels[0].gram), len(kernels)):
        raise InputError(f"residuals {tuple(residuals.shape)} must be [train, timestep], with one of the crosses and kernels per timestep")
    changes = []
    for cross, kernel, residual in zip(crosses, kernels, _finite(residuals).T, strict=True):
        change = kernel.solve(cross, damping) * residual.to(kernel.gram.device) / (1 - kernel.leverage(damping))
        changes.append(change.square() if squared else change)
    return torch.stack(changes).mean(0)


def das_residual(errors: Float[Tensor, "train timestep"]) -> Float[Tensor, "train"]:
    """r̄: each image's root mean squared errors over the timesteps, scaled to norm 1, averaged. Only the shape of the curve is left.

    errors: `nda.diffusion.denoising_losses(model, train, …)`. Source: DAS, Eq. 17, as the released code reads it.
    """
    if errors.ndim != 2 or (errors < 0).any():
        raise InputError(f"errors must be squared errors [train, timestep], not negative, not {tuple(errors.shape)}")
    return F.normalize(_finite(errors).sqrt(), dim=1).mean(1)


def das_scores(
    cross: Float[Tensor, "query train"], kernel: Kernel, residual: Float[Tensor, "train"], *, damping: float, mode: str = "das1"
) -> Float[Tensor, "query train"]:
    """DAS as its code does it, on gradients of `"output_mean"` with `unit_norm`, averaged over timesteps.

    residual: `das_residual`, r̄. mode: `"das1"`, r̄ ψᵀ K⁻¹ φ; `"das0"`, r̄ ψᵀ K⁻² φ / (1 - h)²; either with `"_squared"`, squared. Unlike the
    release, which does not run as it is, the leverage h is that of the train image, and K⁻¹ is not divided by its mean entry, which
    would make 1 - h depend on the number of dimensions. Source: DAS's released code, `07_score.py`.
    """
    if mode.removesuffix("_squared") not in ("das1", "das0"):
        raise InputError(f"mode must be 'das1' or 'das0', with or without '_squared', not {mode!r}")
    if residual.shape != kernel.gram.shape[:1]:
        raise InputError(f"residual must be [train={len(kernel.gram)}], not {tuple(residual.shape)}; see das_residual")
    factor = _finite(residual).to(kernel.gram.device)
    if mode.startswith("das0"):
        scores = kernel.solve(cross, damping, power=2) * (factor / (1 - kernel.leverage(damping)) ** 2)
    else:
        scores = kernel.solve(cross, damping) * factor
    return scores.square() if mode.endswith("_squared") else scores


def damping_path(
    method: Callable[..., Tensor], *inputs: Any, dampings: Sequence[float] = DAMPINGS, **options: Any
) -> Iterator[tuple[float, Float[Tensor, "query train"]]]:
    """Each damping with `method(*inputs, damping=…, **options)`, one after the other; the kernel among the inputs is decomposed once."""
    for damping in tqdm(dampings, desc="damping", leave=False):
        yield damping, method(*inputs, damping=damping, **options)


def journey(
    model: UNet2DModel, n: int, *, noise_seed: int = 0, steps: int = 50, batch: int = 64
) -> tuple[Float[Tensor, "query step chan row col"], tuple[int, ...]]:
    """Clean images that the model predicts on the way of `nda.diffusion.sample` to its `n` images, clamped to [-1, 1], and their timesteps.

    The arguments are those of `sample`. For Journey-TRAK the queries' features are those of these images with a `Readout` of
    these timesteps: they are noised afresh, with the noise that all readouts share. Source: Journey-TRAK, as adapted by D-TRAK.
    """
    clean: list[Tensor] = []
    timesteps: list[int] = []

    def record(_: UNet2DModel, inputs: tuple[Tensor, Tensor], output: Any) -> None:
        noisy, t = inputs[0], int(inputs[1])
        clean.append(((noisy - sigma(t) * output.sample) / signal(t)).clamp(-1, 1))
        timesteps.append(t)

    hook = model.register_forward_hook(record)
    try:
        diffusion.sample(model, n, noise_seed=noise_seed, steps=steps, batch=batch)
    finally:
        hook.remove()
    batches = [torch.stack(clean[i : i + steps], 1) for i in range(0, len(clean), steps)]
    return torch.cat(batches), tuple(timesteps[:steps])
