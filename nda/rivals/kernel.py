"""Inner products of features and the ridge-regression kernel that is made of them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from nda.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

SLICE = 1 << 16  # dimensions that are brought to float64 at a time
DAMPINGS = tuple(10 ** (k / 2) for k in range(-10, 7))  # 1e-5 … 1e3 of the mean eigenvalue


def _double(x: Float[Tensor, "example dim"]) -> Iterator[Float[Tensor, "example slice"]]:
    """Slices of the features in float64; on the CPU if the device has none."""
    return (
        part.to("cpu" if part.is_mps else part.device, torch.float64) for part in x.split(SLICE, 1)
    )


def _inner(x: Float[Tensor, "a dim"], y: Float[Tensor, "b dim"]) -> Float[Tensor, "a b"]:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise InputError(
            f"features must be [example, dim] of one dim, not {tuple(x.shape)} and"
            f" {tuple(y.shape)}; make both alike"
        )
    return torch.stack([p @ q.T for p, q in zip(_double(x), _double(y), strict=True)]).sum(0)


def gram(
    a: Float[Tensor, "a dim"], b: Float[Tensor, "b dim"] | None = None
) -> Float[Tensor, "a c"]:
    """Inner products of all examples of `a` with all of `b`, summed in float64.

    Args:
        a: features.
        b: features of the same dim; default: `a` itself.

    Returns:
        Them, `[a, b]`; of `a` with itself they are symmetric.

    Raises:
        InputError: unless both are features of one dim.
    """
    if b is not None:
        return _inner(a, b)
    own = _inner(a, a)
    # rounding may differ across the diagonal: a matrix product adds in an order of its own
    return (own + own.T) / 2


def norms(a: Float[Tensor, "example dim"]) -> Float[Tensor, "example"]:
    """Euclidean norm of every example's features.

    Args:
        a: features.

    Returns:
        Their norms, in float64.
    """
    return torch.stack([part.square().sum(1) for part in _double(a)]).sum(0).sqrt()


def checked(cross: Tensor, train: int) -> Float[Tensor, "query train"]:
    """Inner products of queries with train images, checked.

    Args:
        cross: the inner products.
        train: how many train images there are.

    Returns:
        They, in float64.

    Raises:
        InputError: if they are of another shape or not finite.
    """
    if cross.ndim != 2 or cross.shape[1] != train:
        raise InputError(
            f"cross must be [query, train={train}], not {tuple(cross.shape)}; see"
            " gram(query_features, train_features)"
        )
    if not torch.isfinite(cross).all():
        raise InputError(
            "cross has NaN or infinite entries; the features of some query or train image are"
            " broken"
        )
    return cross.double()


@dataclass(frozen=True, eq=False)
class Kernel:
    """The Gram matrix of the train features, decomposed once for every damping and every set of
    queries."""

    gram: Float[Tensor, "train train"]

    def __post_init__(self) -> None:
        if self.gram.ndim != 2 or self.gram.shape[0] != self.gram.shape[1] or not len(self.gram):
            raise InputError(
                f"gram must be [train, train], not {tuple(self.gram.shape)}; see"
                " gram(train_features)"
            )
        if not torch.isfinite(self.gram).all():
            raise InputError(
                "gram has NaN or infinite entries; the features of some train image are broken"
            )
        apart, largest = (self.gram - self.gram.T).abs().max(), self.gram.abs().max()
        if apart > 1e-4 * largest or self.gram.diagonal().sum() <= 0:
            raise InputError(
                "gram must be symmetric with a positive trace; pass the inner products of the train"
                " features with themselves"
            )

    @cached_property
    def eigen(self) -> tuple[Float[Tensor, "eigen"], Float[Tensor, "train eigen"]]:
        """Eigenvalues, those that rounding made negative as 0, and eigenvectors."""
        values, vectors = torch.linalg.eigh(self.gram.double())
        return values.clamp_min(0), vectors

    def ridge(self, damping: float) -> float:
        """λ: `damping` times the mean eigenvalue, which is the mean squared norm of the train
        features.

        Args:
            damping: relative.

        Returns:
            λ itself.

        Raises:
            InputError: for a damping that is not positive and finite.
        """
        if not 0 < damping < math.inf:
            raise InputError(
                f"damping must be positive and finite, not {damping!r}; it is relative to the mean"
                " eigenvalue"
            )
        return damping * self.gram.diagonal().double().mean().item()

    def solve(
        self, cross: Float[Tensor, "query train"], damping: float, power: int = 1
    ) -> Float[Tensor, "query train"]:
        """cross (gram + λI)⁻ᵖ: the inner products ψᵀ (ΦᵀΦ + λI)⁻ᵖ φ.

        Args:
            cross: inner products of queries with train images.
            damping: relative to the mean eigenvalue.
            power: p.

        Returns:
            Them, in float64.
        """
        values, vectors = self.eigen
        rotated = checked(cross, len(values)).to(vectors) @ vectors
        return rotated / (values + self.ridge(damping)) ** power @ vectors.T

    def leverage(self, damping: float) -> Float[Tensor, "train"]:
        """h_i = φ_iᵀ (ΦᵀΦ + λI)⁻¹ φ_i, in [0, 1).

        Args:
            damping: relative to the mean eigenvalue.

        Returns:
            Of every train image.
        """
        values, vectors = self.eigen
        return vectors.square() @ (values / (values + self.ridge(damping)))

    def solved_norms(self, damping: float) -> Float[Tensor, "train"]:
        """‖(ΦᵀΦ + λI)⁻¹ φ_i‖.

        Args:
            damping: relative to the mean eigenvalue.

        Returns:
            Of every train image.
        """
        values, vectors = self.eigen
        return (vectors.square() @ (values / (values + self.ridge(damping)) ** 2)).sqrt()


class Choice(NamedTuple):
    """A damping, what it was chosen on, in words, and the LDS of all that were tried: a table with
    the columns `select` and `report` and the index damping."""

    damping: float
    on: str
    path: "pd.DataFrame"


def damping_path(
    method: Callable[..., Tensor],
    *inputs: Any,
    dampings: Sequence[float] = DAMPINGS,
    **options: Any,
) -> dict[float, Float[Tensor, "query train"]]:
    """`method(*inputs, damping=…, **options)` at each damping; a kernel among the inputs is
    decomposed once.

    Args:
        method: such as `nda.rivals.trak.trak_scores`.
        inputs: its arguments.
        dampings: those that are tried, relative to the mean eigenvalue.
        options: its other options.

    Returns:
        Scores by damping, in the order of `dampings`.
    """
    return {
        damping: method(*inputs, damping=damping, **options)
        for damping in tqdm(dampings, desc="damping", leave=False)
    }
