"""Per-example gradients of a model output: the features that all gradient-based attribution methods
share."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from nda import rng
from nda.checks import check_images
from nda.errors import InputError, check_positive, check_timestep
from nda.model.outputs import OUTPUTS, uniform_timesteps
from nda.schedule import add_noise

# noisy images that share a gradient: with fewer, vmap over many gradients is faster than one after
# the other
FEW = 5
# (parameters, noisy images, timesteps, noise) -> the sum of a model output over the rows
Summed = Callable[[dict[str, Tensor], Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Readout:
    """What is differentiated: a model output at some timesteps, averaged over them and over noise
    draws.

    model_output: `"loss"` (mean squared error of the predicted noise), `"elbo_loss"` (times the
    ELBO weight), `"output_norm"` and `"output_mean"` (mean square and mean of the prediction over
    pixels), `"l1"` and `"l2"` (its norms, sums over pixels). draws: noise images per timestep; each
    is named (`noise_seed`, timestep, draw) and common to all examples, train and query. unit_norm:
    scale the gradient at each timestep to norm 1 before the average (DAS). parts: only parameters
    whose name starts with one of these, such as `("up_blocks",)`; default all. Sources: D-TRAK (the
    outputs); DAS, Eq. 17 (`unit_norm`).
    """

    model_output: str = "loss"
    timesteps: Sequence[int] = uniform_timesteps(10)
    draws: int = 1
    noise_seed: int = 0
    unit_norm: bool = False
    parts: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.model_output not in OUTPUTS:
            raise InputError(
                f"model_output must be one of {', '.join(OUTPUTS)}, not {self.model_output!r}"
            )
        check_positive("draws", self.draws)
        if isinstance(self.parts, str):
            raise InputError(
                f"parts must be a tuple of names' beginnings, for example ({self.parts!r},), not a"
                " string"
            )
        if not self.timesteps:
            raise InputError(
                "timesteps are empty; a readout needs at least one, for example"
                " uniform_timesteps(10)"
            )
        for timestep in self.timesteps:
            check_timestep(timestep)
        for name in ("timesteps", "parts"):  # lists, as JSON has them, could not be looked up
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def noise(self, shape: Sequence[int]) -> Float[Tensor, "timestep draw chan row col"]:
        """The noise images that all examples share.

        Args:
            shape: of an image.

        Returns:
            One for each timestep and draw.
        """
        names = [
            ("gradient noise", self.noise_seed, t, draw)
            for t in self.timesteps
            for draw in range(self.draws)
        ]
        flat = torch.stack([torch.randn(*shape, generator=rng.generator(*name)) for name in names])
        return flat.unflatten(0, (-1, self.draws))


def _chosen(model: nn.Module, parts: Sequence[str]) -> dict[str, Tensor]:
    """The parameters whose name starts with one of `parts`."""
    chosen = {
        n: p.detach().requires_grad_()
        for n, p in model.named_parameters()
        if not parts or n.startswith(tuple(parts))
    }
    for part in parts:
        if not any(name.startswith(part) for name in chosen):
            known = dict.fromkeys(name.split(".")[0] for name, _ in model.named_parameters())
            raise InputError(
                f"parts has {part!r}, with which no parameter's name starts; the model has"
                f" {', '.join(known)}"
            )
    return chosen


def _looped(
    output: Summed, parameters: dict[str, Tensor], rows: Sequence[Tensor], batch: int
) -> Float[Tensor, "group param"]:
    """Gradient of the output's sum over each group of rows, at most `batch` rows together."""
    vectors = []
    for group in zip(*rows, strict=True):
        pieces = [
            torch.autograd.grad(
                output(parameters, *piece), list(parameters.values()), materialize_grads=True
            )
            for piece in zip(*(v.split(batch) for v in group), strict=True)
        ]
        vectors.append(
            torch.stack([torch.cat([g.flatten() for g in piece]) for piece in pieces]).sum(0)
        )
    return torch.stack(vectors)


def _vmapped(
    output: Summed, parameters: dict[str, Tensor], rows: Sequence[Tensor], batch: int
) -> Float[Tensor, "group param"]:
    """The same for all groups at once, whatever `batch`: the caller sends no more."""
    gradients = vmap(grad(output), in_dims=(None, 0, 0, 0))(
        {n: p.detach() for n, p in parameters.items()}, *rows
    )
    return torch.cat([g.flatten(1) for g in gradients.values()], 1)


def _stream(
    model: nn.Module, images: Tensor, readout: Readout, batch: int
) -> Iterator[Float[Tensor, "example param"]]:
    """Gradients of a few examples at a time."""
    # an example is `groups` x `rows` noisy images; each group has one gradient
    model = deepcopy(model).eval().requires_grad_(False)
    parameters = _chosen(model, readout.parts)

    def output(
        parameters: dict[str, Tensor], noisy: Tensor, timesteps: Tensor, noise: Tensor
    ) -> Tensor:
        predicted = functional_call(model, parameters, (noisy, timesteps)).sample
        return OUTPUTS[readout.model_output](predicted, noise, timesteps).sum()

    times, draws = len(readout.timesteps), readout.draws
    groups, rows = (times, draws) if readout.unit_norm else (1, times * draws)
    shape = images.shape[-3:]
    noise = readout.noise(shape).to(images).reshape(groups, rows, *shape)
    timesteps = torch.tensor(readout.timesteps, device=images.device)
    timesteps = timesteps.repeat_interleave(draws).reshape(groups, rows)
    gradients = _vmapped if rows < FEW else _looped
    for clean in images.split(max(1, batch // (groups * rows))):
        n = len(clean)  # [example, 1 or timestep, chan, row, col]
        clean = clean.expand(-1, times, *shape).repeat_interleave(draws, 1)
        clean = clean.reshape(n, groups, rows, *shape)
        total = images.new_zeros(())
        for some in torch.arange(groups).split(max(1, batch // (n * rows))):
            t = timesteps[some].repeat(n, 1)  # [example * group, row]
            eps = noise[some].repeat(n, 1, 1, 1, 1)
            images_of = clean[:, some].reshape(-1, *shape)
            noisy = add_noise(images_of, t.flatten(), eps.flatten(0, 1)).reshape(eps.shape)
            # fused attention need not work under vmap
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                vectors = gradients(output, parameters, (noisy, t, eps), batch).div_(rows)
            vectors = F.normalize(vectors, dim=1) if readout.unit_norm else vectors
            total = total + vectors.unflatten(0, (n, -1)).sum(1) / groups
        yield total


def features(
    model: nn.Module,
    images: Float[Tensor, "example chan row col"] | Float[Tensor, "example timestep chan row col"],
    readout: Readout,
    *,
    projection: Callable[[Tensor], Tensor] | None = None,
    batch: int = 40,
) -> Float[Tensor, "example dim"]:
    """Every example's gradient of `readout`, with respect to all its parameters in their order or
    projected, in memory.

    Args:
        model: called as `model(noisy, timesteps).sample`; a copy in eval mode is used and it stays
            as it is.
        images: clean, in [-1, 1], of the model's dtype and device; with one axis more, other clean
            images at each of `readout.timesteps` (Journey-TRAK).
        readout: what is differentiated.
        projection: applied to the mean gradients of some examples, `[example, param]`; such as a
            `nda.rivals.projection.Projection`.
        batch: noisy images in one pass; where fewer than 5 share a gradient, as many gradients of
            the model's size are held at once. Results do not depend on it.

    Returns:
        Features, `dim` numbers for each example.

    Raises:
        InputError: for images that do not fit the readout or the model, and for gradients that are
            not finite.
    """
    if images.ndim == 5 and images.shape[1] != len(readout.timesteps):
        raise InputError(
            f"images have {images.shape[1]} timesteps but the readout has {len(readout.timesteps)};"
            " pass one image for each"
        )
    check_positive("batch", batch)
    check_images(images.flatten(0, 1) if images.ndim == 5 else images, "images")
    weight = next(model.parameters())
    if (weight.dtype, weight.device) != (images.dtype, images.device):
        raise InputError(
            f"images are {images.dtype} on {images.device} but the model is {weight.dtype} on"
            f" {weight.device}; move one"
        )
    found: list[Tensor] = []
    with tqdm(total=len(images), desc="gradients", unit="image", leave=False) as bar:
        for vectors in _stream(
            model, images if images.ndim == 5 else images[:, None], readout, batch
        ):
            if not torch.isfinite(vectors).all():
                raise InputError(
                    f"the gradients of images {bar.n}… are NaN or infinite; look at the model's"
                    " weights"
                )
            found.append(vectors if projection is None else projection(vectors))
            bar.update(len(vectors))
    return torch.cat(found)
