"""K-FAC and EK-FAC: the Gauss-Newton matrix of a denoiser in Kronecker-factored blocks, fitted by
curvlinops, kept as plain tensors.

There is one block for every weight and one for every bias of the Linear and Conv2d layers, known by
eigenvectors and eigenvalues, so that a damping can be added to the eigenvalues exactly and one fit
serves all dampings. Sources: Martens and Grosse 2015 (K-FAC), George et al. 2018 (EK-FAC),
Mlodozeniec et al. 2024 (for diffusion models, arXiv 2410.13850).
"""

import hashlib
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Conv2d, Linear, Module, MSELoss
from tqdm import tqdm

from nda import rng
from nda.checks import check_images
from nda.errors import InputError, check_choice, check_draws, needs
from nda.schedule import add_noise

KINDS = ("ekfac", "kfac")
# our name: what curvlinops calls it, see _Data
FISHERS = {"mc": "empirical", "empirical": "empirical", "exact": "type-2"}
SHARING = ("expand", "reduce")


def covered(model: Module) -> dict[str, Tensor]:
    """The parameters that K-FAC covers: trainable weights and biases of Linear and Conv2d layers.

    Args:
        model: in eval mode.

    Returns:
        They, by name.

    Raises:
        InputError: if there are none, if a layer is of a kind without Kronecker factors, or if the
            model is in training mode.
    """
    if model.training:
        raise InputError(
            "model is in training mode, where dropout makes gradients random; call model.eval()"
            " first"
        )
    found: dict[str, Tensor] = {}
    for layer, module in model.named_modules():
        if isinstance(module, Conv2d) and (module.groups > 1 or module.padding_mode != "zeros"):
            raise InputError(
                f"model has a Conv2d {layer!r} with groups or non-zero padding, which K-FAC does"
                " not cover; replace that layer"
            )
        if isinstance(module, Linear | Conv2d):
            parts = {part: getattr(module, part) for part in ("weight", "bias")}
            found |= {
                f"{layer}.{part}": value
                for part, value in parts.items()
                if value is not None and value.requires_grad
            }
    if not found:
        raise InputError(
            "model has no trainable Linear or Conv2d layer, and only those have a K-FAC block; pass"
            " another model"
        )
    return found


class Block(NamedTuple):
    """One parameter's block of the curvature, eigenvectors basis_out ⊗ basis_in; `in` is 1 for a
    bias."""

    basis_out: Float[Tensor, "out out"]
    basis_in: Float[Tensor, "in in"]
    eigenvalues: Float[Tensor, "out in"]

    def rotate(self, gradients: Float[Tensor, "image *shape"]) -> Float[Tensor, "image out in"]:
        """Gradients in the eigenbasis, where the curvature is diagonal.

        Args:
            gradients: of the block's parameter.

        Returns:
            They, rotated.
        """
        return self.basis_out.T @ gradients.reshape(-1, *self.eigenvalues.shape) @ self.basis_in

    def precondition(
        self, gradients: Float[Tensor, "image *shape"], damping: float
    ) -> Float[Tensor, "image *shape"]:
        """(C + damping I)⁻¹ g.

        Args:
            gradients: of the block's parameter.
            damping: absolute.

        Returns:
            As `gradients`.
        """
        rotated = self.rotate(gradients) / (self.eigenvalues + damping)
        return (self.basis_out @ rotated @ self.basis_in.T).reshape(gradients.shape)


class _Flat(Module):
    """The model as curvlinops wants it: a mapping in, `[example, pixel]` out; `centred` on zero for
    sampled targets, see _Data."""

    def __init__(self, model: Module, centred: bool):
        super().__init__()
        self.model, self.centred = model, centred

    def forward(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "example pixel"]:
        output = self.model(inputs["x_t"], inputs["timesteps"]).sample.flatten(1)
        return output - output.detach() if self.centred else output


class _Data:
    """Batches (inputs, targets), the same on every pass.

    An image's noise is named by the image itself, so that neither batches nor the order of the
    images matter. Targets are the noise that was added; or, if `sampled`, the model's own output
    plus noise of variance ½, whose loss gradients have covariance 2I / pixels. curvlinops can draw
    such samples as well, but one after the other: they would depend on the batches.
    """

    def __init__(
        self,
        images: Tensor,
        timesteps: Sequence[int],
        draws: int,
        noise_seed: int,
        sampled: bool,
        batch: int,
    ):
        digests = [
            hashlib.sha256(image.float().cpu().numpy().tobytes()).hexdigest() for image in images
        ]
        self.cases = [
            (row, (t, draw, digest))
            for row, digest in enumerate(digests)
            for t in timesteps
            for draw in range(draws)
        ]
        self.images, self.noise_seed, self.sampled, self.batch = images, noise_seed, sampled, batch

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for start in tqdm(
            range(0, len(self.cases), self.batch), desc="curvature", unit="batch", leave=False
        ):
            rows, names = zip(*self.cases[start : start + self.batch], strict=True)
            sources = [rng.generator("curvature noise", self.noise_seed, *name) for name in names]
            pairs = torch.stack(
                [torch.randn(2, *self.images.shape[1:], generator=source) for source in sources]
            )
            noise, sample = pairs.to(self.images).unbind(1)
            timesteps = torch.tensor([name[0] for name in names], device=self.images.device)
            x_t = add_noise(self.images[list(rows)], timesteps, noise)
            yield (
                {"x_t": x_t, "timesteps": timesteps},
                (0.5**0.5 * sample if self.sampled else noise).flatten(1),
            )


def _curvlinops(
    model: _Flat,
    parameters: Mapping[str, Tensor],
    data: _Data,
    kind: str,
    fisher: str,
    sharing: str,
) -> Iterator[tuple[str, Block]]:
    """The one place that knows curvlinops 3."""
    needs("curvlinops", "rivals")
    # importing it calls torch.jit.script
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        from curvlinops import EKFACLinearOperator, KFACLinearOperator
    settings: dict[str, Any] = {
        "fisher_type": FISHERS[fisher],
        "kfac_approx": sharing,
        "num_data": len(data.cases),
        "num_per_example_loss_terms": 1,
        # that check draws from the global state
        "batch_size_fn": lambda inputs: len(inputs["x_t"]),
        "check_deterministic": False,
    }
    operator_class = EKFACLinearOperator if kind == "ekfac" else KFACLinearOperator
    operator = operator_class(model, MSELoss(), list(parameters.values()), data, **settings)
    operator.compute_kronecker_factors()
    if kind == "ekfac":
        operator.compute_eigenvalue_correction()
    state = operator.state_dict()
    ending = "_eigenvectors" if kind == "ekfac" else ""
    for position, (name, parameter) in enumerate(parameters.items()):
        layer, _, part = name.rpartition(".")
        outputs = state[f"gradient_covariances{ending}"][f"model.{layer}"]
        inputs = parameter.new_ones(1, 1)  # of a bias
        if part == "weight":
            inputs = state[f"input_covariances{ending}"][f"model.{layer}"]
        if kind == "ekfac":
            basis_out, basis_in = outputs, inputs
            corrected = state["corrected_eigenvalues"][f"model.{layer}"]
            values = corrected[position].reshape(len(parameter), -1)
        else:
            (out, basis_out), (into, basis_in) = map(torch.linalg.eigh, (outputs, inputs))
            values = torch.outer(out, into)
        # for squared errors curvlinops' "empirical" is that of √pixels · ℓ
        scale = 1 / data.images[0].numel() if fisher == "empirical" else 1.0
        yield name, Block(basis_out.clone(), basis_in.clone(), scale * values.clamp_min(0))


def _probe(model: Module, layers: Collection[str], image: Tensor) -> None:
    """Raise InputError unless the model runs each layer once."""
    # K-FAC is that of one pass; curvlinops would mix up several in silence
    runs: Counter[str] = Counter()
    hooks = [
        model.get_submodule(layer).register_forward_hook(
            lambda *_, layer=layer: runs.update([layer])
        )
        for layer in layers
    ]
    try:
        with torch.no_grad():
            start = torch.zeros(1, dtype=torch.long, device=image.device)
            output = model(image[None], start).sample
    finally:
        for hook in hooks:
            hook.remove()
    for layer in layers:
        if runs[layer] != 1:
            raise InputError(
                f"model runs its layer {layer!r} {runs[layer]} times in a pass and K-FAC needs one;"
                " freeze that layer"
            )
    if not torch.isfinite(output).all():
        raise InputError(
            "model gives NaN or infinite outputs; its training failed, or its weights are damaged"
        )


def fit_curvature(
    model: Module,
    train: Float[Tensor, "train chan row col"],
    *,
    timesteps: Sequence[int],
    kind: str = "ekfac",
    fisher: str = "mc",
    sharing: str = "expand",
    draws: int = 1,
    noise_seed: int = 0,
    batch: int = 32,
) -> dict[str, Tensor]:
    """The curvature of `model`, averaged over train images, timesteps and draws of noise.

    Source: Mlodozeniec et al. 2024.

    Args:
        model: called as `model(noisy, timesteps).sample`.
        train: clean, in [-1, 1].
        timesteps: in 0…999.
        kind: `"ekfac"`, with eigenvalues refitted in the eigenbasis of K-FAC, or `"kfac"`.
        fisher: `"mc"`, the Gauss-Newton matrix of the model, mean of Jᵀ (2I / pixels) J, from one
            sampled target for each draw; `"exact"`, the same without sampling but with one backward
            pass per pixel; `"empirical"`, that of the loss, mean of ∇ℓ ∇ℓᵀ.
        sharing: `"expand"` or `"reduce"`, how the positions of a convolution enter the factors
            (Eschenhagen et al. 2023).
        draws: noise images per train image and timestep.
        noise_seed: names them.
        batch: noisy images in one pass.

    Returns:
        `<parameter>/basis_out`, `/basis_in` and `/eigenvalues`, to be kept with `Store.save` and
        passed on as they are.
    """
    check_images(train, "train")
    check_choice("kind", kind, KINDS)
    check_choice("fisher", fisher, FISHERS)
    check_choice("sharing", sharing, SHARING)
    check_draws(timesteps, draws=draws, batch=batch)
    parameters, sampled = covered(model), fisher == "mc"
    _probe(model, {name.rpartition(".")[0] for name in parameters}, train[0])
    data = _Data(train, timesteps, draws, noise_seed, sampled, batch)
    blocks = _curvlinops(_Flat(model, sampled), parameters, data, kind, fisher, sharing)
    return {
        f"{name}/{part}": tensor
        for name, block in blocks
        for part, tensor in block._asdict().items()
    }


def restore(curvature: Mapping[str, Tensor], model: Module) -> dict[str, Block]:
    """The blocks of a fit, by parameter, on the device of `model`.

    Args:
        curvature: of `fit_curvature`.
        model: that it was fitted to.

    Returns:
        One block for each parameter.

    Raises:
        InputError: if they are those of another model.
    """
    parameters = covered(model)
    wanted = {f"{name}/eigenvalues": (len(p), p[0].numel()) for name, p in parameters.items()}
    found = {
        name: tuple(values.shape)
        for name, values in curvature.items()
        if name.endswith("/eigenvalues")
    }
    if wrong := sorted(wanted.items() ^ found.items()):
        raise InputError(
            f"curvature is that of another model, {wrong[0][0].removesuffix('/eigenvalues')}"
            " differs; fit it to this one"
        )
    return {
        name: Block(*(curvature[f"{name}/{part}"].to(p) for part in Block._fields))
        for name, p in parameters.items()
    }


def mean_eigenvalue(curvature: Mapping[str, Tensor]) -> float:
    """Trace of the curvature per parameter; dampings are relative to it, and this many times as
    large in absolute terms.

    Args:
        curvature: of `fit_curvature`.

    Returns:
        The mean of all eigenvalues.
    """
    values = [
        tensor.double().flatten()
        for name, tensor in curvature.items()
        if name.endswith("/eigenvalues")
    ]
    return torch.cat(values).mean().item()
