"""Random-feature influence (RFI): the influence of train images on a denoiser that needs no
training, a linear readout of a random convolutional network. No model, no gradient descent.

At a timestep the denoiser predicts the noise ε of x_t from features φ(x_t) of every pixel that are
fixed at random, as W'φ. With A the mean of φφ' and B that of φε', over pixels, noise images, both
flips and all train images, the ridge regression

    min_W  mean_i L_i(W) + μ |W|² / C,    L_i = mean over pixels and the C channels of (W'φ - ε)²

has the solution W = (A + μ)⁻¹B, and every quantity of an influence function is exact: with the
residual's product G_i = mean φ (W'φ - ε)' of image i, its gradient is 2G_i/C and the Hessian is
2(A + μ)/C. Leaving image i out, all else kept, raises the loss of query q to first order by

    score[q, i] = 2 / (C N) · <G_q, (A + μ)⁻¹ G_i>.

The features are computed twice, once for A and B and once for the residuals, so that nothing but
sums is kept. With D features, memory is that of D² + query · D · C numbers and one block of images.
Time grows in proportion to the train images.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from nda import rng
from nda.checks import check_same_shape
from nda.errors import InputError, check_draws
from nda.nonparametric.patches import shared_noise
from nda.schedule import sigma, signal

TIMESTEPS = (12, 28, 44, 62, 82, 104, 130, 162, 205, 265, 345, 460)
SIDE, GROUPS = 3, 8  # of a window in pixels; of channels that are normalised together
GATE_TIMESTEP, GATE_GRID = 62, 4  # noise level and grid of the features that the gate compares
BLOCK_BYTES = 32 * 2**20  # of the features of one block of images

Features = Callable[[Float[Tensor, "image chan row col"]], Float[Tensor, "image pixel dim"]]


@dataclass(frozen=True)
class RandomFeatures:
    """A convolutional network with random weights, and what it sees at every pixel: the pixels of a
    3 x 3 window, the channels of every layer and a constant, side by side. A layer is a 3 x 3
    convolution with zeros outside the image and no bias, GroupNorm with 8 groups, SiLU.

    kernels: of the layers, each `[to, from, row, col]`.
    """

    kernels: tuple[Tensor, ...]

    @classmethod
    def draw(cls, channels: int, widths: Sequence[int], network: int = 0) -> Self:
        """Normal weights whose variance is one over the number of a layer's inputs.

        Args:
            channels: of the images.
            widths: channels of the layers, multiples of 8.
            network: names the draw.

        Returns:
            The network, in float32 on the CPU.

        Raises:
            InputError: for other widths.
        """
        if not all(isinstance(w, int) and w > 0 and w % GROUPS == 0 for w in widths):
            raise InputError(
                f"widths must be positive multiples of {GROUPS}, the groups of the normalisation,"
                f" not {[*widths]}"
            )
        kernels, sizes = [], [channels, *widths]
        for layer, (before, width) in enumerate(zip(sizes, widths, strict=False)):
            source = rng.generator("random features", network, layer)
            kernel = torch.randn(width, before, SIDE, SIDE, generator=source)
            kernels.append(kernel / (before * SIDE**2) ** 0.5)
        return cls(tuple(kernels))

    def __call__(
        self, images: Float[Tensor, "image chan row col"]
    ) -> Float[Tensor, "image pixel dim"]:
        """The features of every pixel.

        Args:
            images: with or without noise.

        Returns:
            27 for colour images, those of the layers and 1.
        """
        count, _, rows, cols = images.shape
        layers, seen = [F.unfold(images, SIDE, padding=SIDE // 2).mT], images
        seen = seen.contiguous(memory_format=torch.channels_last)  # as rows of features are read
        for kernel in self.kernels:
            seen = F.conv2d(seen, kernel.to(images), padding=SIDE // 2)
            seen = F.silu(F.group_norm(seen, GROUPS))
            layers.append(seen.permute(0, 2, 3, 1).flatten(1, 2))
        return torch.cat([*layers, images.new_ones(count, rows * cols, 1)], 2)


@dataclass(frozen=True)
class Task:
    """What the denoiser of one timestep is fitted to: to tell the noise from the features of the
    noisy image. All images, queries included, meet the same noise images, and each is seen with its
    mirror image.

    features: of every pixel; noise: the noise images; flips: whether mirror images are seen, too.
    """

    features: Features
    timestep: int
    noise: Float[Tensor, "draw chan row col"]
    flips: bool = True

    def target(self) -> Float[Tensor, "view chan"]:
        """The noise of every pixel of one image.

        Returns:
            For every view: draw, flip and pixel.
        """
        eps = self.noise.permute(0, 2, 3, 1).flatten(1, 2)  # [draw, pixel, chan]
        return eps.repeat_interleave(1 + self.flips, 0).flatten(0, 1)

    def blocks(
        self, images: Float[Tensor, "image chan row col"]
    ) -> Iterator[Float[Tensor, "some view dim"]]:
        """Features of the images, some images at a time.

        Args:
            images: clean, in [-1, 1].

        Yields:
            For every view: draw, flip and pixel.
        """
        each = self._views(images[:1])
        size = max(1, BLOCK_BYTES // (each.numel() * each.itemsize))
        for some in images.split(size):
            yield self._views(some)

    def _views(self, images: Tensor) -> Tensor:
        flipped = [images, images.flip(-1)] if self.flips else [images]
        clean = signal(self.timestep) * torch.stack(flipped, 1)[:, None]
        noisy = clean + sigma(self.timestep) * self.noise.to(images)[:, None]
        found = self.features(noisy.flatten(0, 2))  # [image · draw · flip, pixel, dim]
        return found.unflatten(0, noisy.shape[:3]).flatten(1, 3)


@dataclass(frozen=True)
class Moments:
    """All that a fit needs of a set of images; those of disjoint sets add up to those of both.

    second: sum of φφ', cross: sum of φε', both over images, of their means over views; images: how
    many.
    """

    second: Float[Tensor, "dim dim"]
    cross: Float[Tensor, "dim chan"]
    images: int

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.second + other.second, self.cross + other.cross, self.images + other.images
        )

    def regularised(self, damping: float) -> Float[Tensor, "dim dim"]:
        """A + μ, where μ is `damping` times the mean of A's diagonal.

        Args:
            damping: λ.

        Returns:
            The matrix, positive definite for λ > 0.
        """
        mean = self.second / self.images
        return mean + damping * mean.diagonal().mean() * torch.eye(len(mean), dtype=mean.dtype)

    def readout(self, damping: float) -> Float[Tensor, "dim chan"]:
        """W, the solution of the ridge regression.

        Args:
            damping: λ.

        Returns:
            The weights.
        """
        return _solve(self.regularised(damping), self.cross / self.images)


def moments(train: Float[Tensor, "image chan row col"], task: Task) -> Moments:
    """What a block of train images adds to a fit, in float64 on the CPU.

    Args:
        train: the block, pixels in [-1, 1].
        task: what is fitted.

    Returns:
        Moments, to be added to those of other blocks.
    """
    target = task.target().to(train)
    second, cross = torch.zeros(()), torch.zeros(())
    for features in task.blocks(train):
        rows = features.flatten(0, 1)
        # products are summed in the images' precision over a block, and between blocks in float64
        second = second + (rows.T @ rows).cpu().double() / len(target)
        cross = cross + (features.sum(0).T @ target).cpu().double() / len(target)
    return Moments(second, cross, len(train))


def residual_products(
    images: Float[Tensor, "image chan row col"], task: Task, weight: Float[Tensor, "dim chan"]
) -> Float[Tensor, "image dim chan"]:
    """G = mean over views of φ (W'φ - ε)': C/2 times the gradient of each image's loss.

    Args:
        images: pixels in [-1, 1].
        task: what is fitted.
        weight: W, the readout.

    Returns:
        In float64 on the CPU.
    """
    target, weight = task.target().to(images), weight.to(images)
    found = [
        features.mT @ (features @ weight - target) / len(target) for features in task.blocks(images)
    ]
    return torch.cat(found).cpu().double()


def directions(
    queries: Float[Tensor, "query chan row col"], task: Task, fit: Moments, damping: float
) -> Float[Tensor, "query dim chan"]:
    """2 / (C N) · (A + μ)⁻¹ G_q: what scores are the inner products of train images' G with.

    Args:
        queries: pixels in [-1, 1].
        task: what was fitted.
        fit: of all train images.
        damping: λ.

    Returns:
        In float64 on the CPU.
    """
    asked = residual_products(queries, task, fit.readout(damping))
    columns = asked.movedim(1, 0).flatten(1)  # [dim, query · chan]
    solved = _solve(fit.regularised(damping), columns).view(-1, len(queries), asked.shape[2])
    return 2 / (asked.shape[2] * fit.images) * solved.movedim(0, 1)


def influence(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    task: Task,
    fit: Moments,
    damping: float,
) -> Float[Tensor, "query train"]:
    """How much leaving a train image out of a fit raises each query's loss, to first order.

    Args:
        queries: pixels in [-1, 1].
        train: pixels in [-1, 1], all images of the fit or a block of them.
        task: what was fitted.
        fit: of all train images.
        damping: λ.

    Returns:
        The scores of these train images, in float64 on the CPU.
    """
    weight, towards = fit.readout(damping), directions(queries, task, fit, damping).flatten(1)
    scores = [
        towards @ residual_products(some, task, weight).flatten(1).T
        for some in train.split(max(64, len(queries)))  # about as much memory as for the queries
    ]
    return torch.cat(scores, 1)


def gate_distances(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    features: Features,
    flips: bool = True,
) -> Float[Tensor, "query train"]:
    """Distance of random features without noise, averaged over the cells of a 4 x 4 grid, to a
    train image or its mirror image, whichever is nearer.

    Args:
        queries: pixels in [-1, 1].
        train: pixels in [-1, 1].
        features: of every pixel.
        flips: whether mirror images count.

    Returns:
        The distances, in float64 on the CPU.
    """

    def pooled(images: Tensor) -> Tensor:
        side = images.shape[2:]
        found = [
            F.adaptive_avg_pool2d(
                features(signal(GATE_TIMESTEP) * some).mT.unflatten(2, side), GATE_GRID
            )
            for some in images.split(16)
        ]
        return torch.cat(found).flatten(1).cpu().double()

    asked, exact = pooled(queries), "donot_use_mm_for_euclid_dist"  # the same for equal images
    near = []
    for some in train.split(max(64, len(queries))):
        seen = [some, some.flip(-1)] if flips else [some]
        away = [torch.cdist(asked, pooled(images), compute_mode=exact) for images in seen]
        near.append(torch.stack(away).amin(0))
    return torch.cat(near, 1)


def gate(distances: Float[Tensor, "query train"]) -> Float[Tensor, "query train"]:
    """exp(-z/2), z a query's distance to a train image, less its mean over the train images, by its
    standard deviation. Rows without any differences have z = 0.

    Args:
        distances: of every query to every train image.

    Returns:
        Factors on the scores.
    """
    away = distances - distances.mean(1, keepdim=True)
    spread = away.square().mean(1, keepdim=True).sqrt()
    return torch.exp(-away / spread.clamp_min(torch.finfo(spread.dtype).tiny) / 2)


def rfi_scores(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    *,
    timesteps: Sequence[int] = TIMESTEPS,
    widths: Sequence[int] = (128, 256),
    networks: int = 1,
    damping: float = 3e-3,
    draws: int = 1,
    noise_seed: int = 0,
    flips: bool = True,
    gated: bool = False,
) -> Float[Tensor, "query train"]:
    """Random-feature influence, a mean over timesteps with trapezoid weights and over networks.

    Args:
        queries: pixels in [-1, 1], sides multiples of 4.
        train: pixels in [-1, 1], at least two, of the queries' shape, dtype and device.
        timesteps: of the denoisers, ascending, in 0…999.
        widths: channels of the random layers.
        networks: random networks.
        damping: λ, relative to the mean diagonal of A.
        draws: noise images per timestep, which all images share.
        noise_seed: names the noise.
        flips: whether the denoisers see mirror images too, as the model to explain did in training.
        gated: multiply by `gate`, from the features of all networks.

    Returns:
        The rise of a query's loss when the train image is left out, to first order.

    Raises:
        InputError: for images or settings that cannot be used.
    """
    timesteps = _checked(queries, train, timesteps, damping, gated, draws=draws, networks=networks)
    found, apart = torch.zeros(len(queries), len(train)).double(), torch.zeros(())
    for network in range(networks):
        features = RandomFeatures.draw(train.shape[1], widths, network)
        pairs = list(zip(timesteps, trapezoid(timesteps), strict=True))
        for timestep, weight in tqdm(pairs, desc="RFI", unit="timestep", leave=False):
            noise = [shared_noise(train, timestep, noise_seed, draw) for draw in range(draws)]
            task = Task(features, timestep, torch.stack(noise), flips)
            fit = moments(train, task)
            found += weight / networks * influence(queries, train, task, fit, damping)
        if gated:
            apart = apart + gate_distances(queries, train, features, flips)
    return (found * gate(apart) if gated else found).to(train)


def trapezoid(timesteps: Sequence[int]) -> list[float]:
    """Weights that make a sum over timesteps a mean of the trapezoid rule.

    Args:
        timesteps: ascending.

    Returns:
        Weights that sum to 1; of a single timestep, 1.
    """
    if len(timesteps) == 1:
        return [1.0]
    ends = [timesteps[0], *timesteps, timesteps[-1]]
    return [
        (after - before) / (2 * (timesteps[-1] - timesteps[0]))
        for before, after in zip(ends, ends[2:], strict=False)
    ]


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:  # only by rounding
        raise InputError(
            "damping is below the rounding of the images' precision; raise it, for example to 3e-3,"
            " or pass float64 images"
        )
    return torch.cholesky_solve(right, factor)


def _checked(
    queries: Tensor,
    train: Tensor,
    timesteps: Sequence[int],
    damping: float,
    gated: bool,
    **counts: int,
) -> list[int]:
    """The timesteps as a list, if everything can be used."""
    check_same_shape(queries, train)
    check_draws(timesteps, **counts)
    if len(train) < 2:
        raise InputError(f"train must have at least 2 images to be compared, not {len(train)}")
    if any(after <= before for before, after in zip(timesteps, timesteps[1:], strict=False)):
        raise InputError(f"timesteps must be ascending, without repeats, not {[*timesteps]}")
    if min(train.shape[2:]) < SIDE:
        raise InputError(
            f"images must have at least {SIDE} x {SIDE} pixels, a window of the features, not"
            f" {tuple(train.shape[2:])}; pass larger ones"
        )
    if gated and any(side % GATE_GRID for side in train.shape[2:]):
        raise InputError(
            f"gated needs images whose sides are multiples of {GATE_GRID} pixels, the cells of its"
            f" grid, not {tuple(train.shape[2:])}; resize them, or pass gated=False"
        )
    number = isinstance(damping, int | float) and not isinstance(damping, bool)
    if not number or not 0 < damping < float("inf"):
        raise InputError(f"damping must be a positive number, for example 3e-3, not {damping!r}")
    return [*timesteps]
