"""Influence functions: the curvature against dense matrices and hand-written factors, scores
against solves, and what must not matter."""

import hashlib
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.nn import Conv2d, Linear, Module, MSELoss
from torch.nn.utils import parameters_to_vector

from nda import rng
from nda.errors import InputError
from nda.model.outputs import OUTPUTS
from nda.model.unet import Recipe
from nda.rivals.influence import compress, decompress, influence_scores, measurement_gradients
from nda.rivals.kfac import fit_curvature, mean_eigenvalue, restore
from nda.schedule import add_noise, alpha_bar
from nda.store import Store

TIMESTEPS = [100, 600]


class Line(Module):
    """One linear layer on the pixels; the timestep is ignored."""

    def __init__(self, pixels, bias=True):
        super().__init__()
        self.layer = Linear(pixels, pixels, bias=bias)

    def forward(self, x, timesteps):
        return SimpleNamespace(sample=self.layer(x.flatten(1)).reshape(x.shape))


class Net(Module):
    """Two convolutions, the first shifted by the timestep: every kind of layer of a U-Net."""

    def __init__(self, chan=2):
        super().__init__()
        self.first, self.time, self.last = (
            Conv2d(chan, 3, 3, padding=1, stride=2),
            Linear(2, 3),
            Conv2d(3, chan, 1),
        )

    def forward(self, x, timesteps):
        angle = timesteps[:, None].to(x) / 1000
        shift = self.time(torch.cat([angle.sin(), angle.cos()], 1))[:, :, None, None]
        hidden = torch.tanh(self.first(x) + shift)
        return SimpleNamespace(sample=F.interpolate(self.last(hidden), x.shape[2:]))


def make(model_class, *args, **kwargs):
    """A float64 model with seeded weights, ready to evaluate."""
    with rng.seeded("influence model"):
        return model_class(*args, **kwargs).double().eval()


def random_images(n, *shape, name="influence", dtype=torch.float64):
    """Uniform pixels in [-1, 1]."""
    return (2 * torch.rand(n, *shape, generator=rng.generator(name), dtype=torch.float64) - 1).to(
        dtype
    )


def curvature_cases(images, timesteps, draws, noise_seed=0):
    """The noise of the curvature by definition, by image: (x_t, timestep, noise, sample)."""
    for image in images:
        digest = hashlib.sha256(image.float().numpy().tobytes()).hexdigest()
        for timestep in timesteps:
            for draw in range(draws):
                source = rng.generator("curvature noise", noise_seed, timestep, draw, digest)
                noise, sample = torch.randn(2, *image.shape, generator=source).to(image)
                t = torch.tensor([timestep])
                yield add_noise(image[None], t, noise[None]), t, noise[None], sample[None]


def naive_gradient(model, image, timesteps, measurement, draws=1, noise_seed=0):
    """One image's measurement gradient by autograd, draw by draw, as one long vector."""
    total = 0
    for timestep in timesteps:
        for draw in range(draws):
            noise = torch.randn(
                image.shape, generator=rng.generator("gradient noise", noise_seed, timestep, draw)
            ).to(image)
            t = torch.tensor([timestep])
            output = model(add_noise(image[None], t, noise[None]), t).sample[0]
            betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)[: timestep + 1]
            loss = (output - noise).square().mean()
            value = {
                "loss": loss,
                "elbo_loss": loss * betas[-1] / (2 * (1 - betas[-1]) * (1 - (1 - betas).prod())),
                "output_norm": output.square().mean(),
                "output_mean": output.mean(),
                "l1": output.abs().sum(),
                "l2": output.square().sum().sqrt(),
            }[measurement]
            total = total + parameters_to_vector(
                torch.autograd.grad(value, list(model.parameters()))
            )
    return total / len(timesteps) / draws


def naive_gradients(model, images, *args, **kwargs):
    return torch.stack([naive_gradient(model, image, *args, **kwargs) for image in images])


def flat(gradients):
    """Gradients by parameter as rows `[image, parameter]`."""
    return torch.cat([values.flatten(1) for values in gradients.values()], 1)


def dense(curvature, model):
    """A fit as one matrix."""
    blocks = restore(curvature, model).values()
    return torch.block_diag(
        *[
            (u := torch.kron(b.basis_out, b.basis_in)) @ torch.diag(b.eigenvalues.flatten()) @ u.T
            for b in blocks
        ]
    )


def gauss_newton(model, images, timesteps, draws, fisher):
    """The definition: mean of Jᵀ (2I / pixels) J, or of ∇ℓ ∇ℓᵀ."""
    total = 0
    for x_t, t, noise, _ in curvature_cases(images, timesteps, draws):
        output = model(x_t, t).sample.flatten()
        if fisher == "empirical":
            rows = [(output - noise.flatten()).square().mean()]
        else:
            rows = [value * (2 / len(output)) ** 0.5 for value in output]
        jacobian = [
            torch.autograd.grad(row, list(model.parameters()), retain_graph=True) for row in rows
        ]
        jacobian = torch.stack([parameters_to_vector(parts) for parts in jacobian])
        total = total + jacobian.T @ jacobian
    return total / (len(images) * len(timesteps) * draws)


def without_cross_terms(matrix, model):
    """Weight and bias are blocks of their own."""
    return matrix * torch.block_diag(
        *[torch.ones(p.numel(), p.numel()) for p in model.parameters()]
    )


# ---- the curvature


@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
@pytest.mark.parametrize("bias", [False, True])
def test_scores_are_the_dense_damped_solve_on_a_linear_layer(kind, bias):
    """Exact, since J = x_t ⊗ I makes the Gauss-Newton matrix of the model the Kronecker product
    E[x_t x_tᵀ] ⊗ 2I / pixels."""
    model, train, queries = (
        make(Line, 6, bias=bias),
        random_images(5, 1, 2, 3),
        random_images(2, 1, 2, 3, name="queries"),
    )
    curvature = fit_curvature(
        model, train, timesteps=TIMESTEPS, draws=2, kind=kind, fisher="exact", batch=3
    )
    matrix = without_cross_terms(gauss_newton(model, train, TIMESTEPS, 2, "model"), model)
    torch.testing.assert_close(dense(curvature, model), matrix, rtol=1e-9, atol=1e-12)
    damping = 0.3 * matrix.trace() / len(matrix)
    inverse = torch.linalg.inv(matrix + damping * torch.eye(len(matrix), dtype=torch.float64))
    expected = (
        naive_gradients(model, queries, TIMESTEPS, "loss")
        @ inverse
        @ naive_gradients(model, train, TIMESTEPS, "loss").T
    )
    scores = influence_scores(
        model, queries, train, curvature=curvature, timesteps=TIMESTEPS, damping=0.3
    )
    torch.testing.assert_close(scores, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
def test_sampled_curvature_tends_to_the_exact_one(kind):
    """In expectation over samples only: sixteen times as many have about a quarter of the error."""
    model, train = make(Line, 4), random_images(5, 1, 2, 2)
    exact = dense(
        fit_curvature(
            model, train, timesteps=[300], draws=400, kind=kind, fisher="exact", batch=500
        ),
        model,
    )
    errors = []
    for draws in (25, 400):
        sampled = dense(
            fit_curvature(
                model, train, timesteps=[300], draws=draws, kind=kind, fisher="mc", batch=500
            ),
            model,
        )
        errors.append(((sampled - exact).norm() / exact.norm()).item())
    assert errors[1] < 0.1 and errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
def test_empirical_curvature_of_one_draw_is_the_dense_one(kind):
    """Exact, since one gradient of a linear layer is an outer product; with several, K-FAC takes
    residuals for independent of inputs."""
    model, train = make(Line, 6), random_images(1, 1, 2, 3)
    curvature = fit_curvature(model, train, timesteps=[400], kind=kind, fisher="empirical")
    matrix = without_cross_terms(gauss_newton(model, train, [400], 1, "empirical"), model)
    torch.testing.assert_close(dense(curvature, model), matrix, rtol=1e-9, atol=1e-12)


def pseudo_gradients(model, images, fisher, draws):
    """Per draw: inputs `[position, in]` and output gradients `[position, out]` of every layer, and
    parameter gradients."""
    layers = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, Linear | Conv2d)
    }
    for x_t, t, noise, sample in curvature_cases(images, TIMESTEPS, draws):
        seen = {}
        hooks = [
            layer.register_forward_hook(
                lambda layer, args, output, name=name, seen=seen: seen.update(
                    {name: (args[0], output)}
                )
            )
            for name, layer in layers.items()
        ]
        output = model(x_t, t).sample
        for hook in hooks:
            hook.remove()
        value = (
            (output - noise).square().mean()
            if fisher == "empirical"
            else (output * sample).sum() * (2 / output.numel()) ** 0.5
        )
        at_outputs = torch.autograd.grad(
            value, [output for _, output in seen.values()], retain_graph=True
        )
        parameters = dict(model.named_parameters())
        gradients = dict(
            zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True)
        )
        pairs = {}
        for (name, (inputs, _)), gradient in zip(seen.items(), at_outputs, strict=True):
            layer = layers[name]
            if isinstance(layer, Conv2d):
                inputs = F.unfold(
                    inputs, layer.kernel_size, padding=layer.padding, stride=layer.stride
                )[0].T
                gradient = gradient[0].flatten(1).T
            pairs[name] = inputs, gradient
        yield pairs, gradients


@pytest.mark.parametrize("fisher", ["mc", "empirical"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_kfac_factors_by_hand(fisher, sharing):
    """Inputs: mean over positions of outer products, or outer product of the mean over positions;
    output gradients: the same with sums."""
    model, train = make(Net), random_images(3, 2, 4, 4)
    curvature = fit_curvature(
        model,
        train,
        timesteps=TIMESTEPS,
        draws=2,
        kind="kfac",
        fisher=fisher,
        sharing=sharing,
        batch=5,
    )
    sums, n = {}, 0
    for pairs, _ in pseudo_gradients(model, train, fisher, 2):
        n += 1
        for name, (a, b) in pairs.items():
            if sharing == "reduce":
                a, b = a.mean(0, keepdim=True), b.sum(0, keepdim=True)
            factors = torch.einsum("si,sj->ij", a, a) / len(a), torch.einsum("si,sj->ij", b, b)
            sums[name] = [x + y for x, y in zip(sums.get(name, (0, 0)), factors, strict=True)]
    means = [(sums[name][0] / n, sums[name][1] / n) for name in ("first", "time", "last")]
    blocks = [
        torch.kron(b, a) if part == "weight" else b for a, b in means for part in ("weight", "bias")
    ]
    torch.testing.assert_close(
        dense(curvature, model), torch.block_diag(*blocks), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("fisher", ["mc", "empirical"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_ekfac_eigenvalues_by_hand(fisher, sharing):
    """The basis is K-FAC's; the eigenvalues are mean squares of gradients in that basis."""
    model, train = make(Net), random_images(3, 2, 4, 4)
    settings = {"timesteps": TIMESTEPS, "draws": 2, "fisher": fisher, "sharing": sharing}
    kfac, ekfac = (
        restore(fit_curvature(model, train, kind=kind, **settings), model)
        for kind in ("kfac", "ekfac")
    )
    samples = [gradients for _, gradients in pseudo_gradients(model, train, fisher, 2)]
    for name, block in ekfac.items():
        squares = [
            block.basis_out.T @ g[name].reshape(block.eigenvalues.shape) @ block.basis_in
            for g in samples
        ]
        torch.testing.assert_close(
            block.eigenvalues, torch.stack(squares).square().mean(0), rtol=1e-8, atol=1e-14
        )
        for mine, theirs in zip(block[:2], kfac[name][:2], strict=True):
            torch.testing.assert_close(mine.abs(), theirs.abs(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
def test_damped_inverse_is_that_of_curvlinops(kind):
    from curvlinops import EKFACLinearOperator, KFACInverseLinearOperator, KFACLinearOperator

    class Mapped(Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, inputs):
            return self.model(inputs["x"], inputs["t"]).sample.flatten(1)

    model, train = make(Net), random_images(4, 2, 4, 4)
    data = [
        ({"x": x, "t": t}, noise.flatten(1))
        for x, t, noise, _ in curvature_cases(train, TIMESTEPS, 1)
    ]
    operator = (EKFACLinearOperator if kind == "ekfac" else KFACLinearOperator)(
        Mapped(model),
        MSELoss(),
        list(model.parameters()),
        data,
        fisher_type="empirical",
        batch_size_fn=lambda inputs: len(inputs["x"]),
    )
    gradients = measurement_gradients(model, train, timesteps=TIMESTEPS)
    pixels = train[0].numel()  # theirs is that much larger
    inverse = KFACInverseLinearOperator(operator, damping=0.01 * pixels, use_exact_damping=True)
    expected = inverse @ flat(gradients).T * pixels
    blocks = restore(
        fit_curvature(model, train, timesteps=TIMESTEPS, kind=kind, fisher="empirical"), model
    )
    found = flat(
        {name: blocks[name].precondition(values, 0.01) for name, values in gradients.items()}
    )
    torch.testing.assert_close(found, expected.T, rtol=1e-7, atol=1e-10)


# ---- gradients and scores


@pytest.mark.parametrize("measurement", OUTPUTS)
def test_gradients_are_those_of_an_autograd_loop(measurement):
    model, images = make(Net), random_images(3, 2, 4, 4)
    expected = naive_gradients(model, images, [0, 100, 900], measurement, draws=2, noise_seed=5)
    for batch in (1, 4, 64):
        settings = {"timesteps": [0, 100, 900], "draws": 2, "noise_seed": 5, "batch": batch}
        found = flat(measurement_gradients(model, images, measurement=measurement, **settings))
        # the schedule is kept in float32
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)
        alone = flat(measurement_gradients(model, images[1:2], measurement=measurement, **settings))
        torch.testing.assert_close(found[1:2], alone, rtol=1e-11, atol=1e-13)


@pytest.fixture(scope="module")
def case():
    """A net, queries, train images, and the curvature."""
    model, train = make(Net), random_images(7, 2, 4, 4)
    queries = torch.cat([random_images(3, 2, 4, 4, name="queries"), train[2:3]])
    return model, queries, train, fit_curvature(model, train, timesteps=TIMESTEPS, draws=4)


@pytest.mark.parametrize("measurement", OUTPUTS)
@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
def test_scores_are_dense_solves(case, measurement, kind):
    model, queries, train, _ = case
    curvature = fit_curvature(model, train, timesteps=TIMESTEPS, kind=kind)
    matrix = dense(curvature, model)
    assert mean_eigenvalue(curvature) == pytest.approx(
        matrix.trace().item() / len(matrix), rel=1e-12
    )
    left, right = (
        naive_gradients(model, images, [50, 700], name, 2)
        for images, name in ((queries, measurement), (train, "loss"))
    )
    inverse = torch.linalg.inv(
        matrix + 0.2 * mean_eigenvalue(curvature) * torch.eye(len(matrix), dtype=torch.float64)
    )
    settings = {"curvature": curvature, "timesteps": [50, 700], "draws": 2, "damping": 0.2}
    scores = influence_scores(model, queries, train, measurement=measurement, **settings)
    torch.testing.assert_close(scores, left @ inverse @ right.T, rtol=1e-4, atol=1e-7)


def test_large_damping_leaves_the_gradient_dot_product(case):
    model, queries, train, curvature = case
    scores = influence_scores(
        model, queries, train, curvature=curvature, timesteps=TIMESTEPS, damping=1e9
    )
    left, right = (
        flat(measurement_gradients(model, images, timesteps=TIMESTEPS))
        for images in (queries, train)
    )
    torch.testing.assert_close(
        scores * 1e9 * mean_eigenvalue(curvature), left @ right.T, rtol=1e-6, atol=1e-10
    )


@pytest.mark.parametrize("compressed", [False, True])
def test_path_is_that_of_separate_dampings(case, compressed):
    model, queries, train, curvature = case
    settings = {"curvature": curvature, "timesteps": TIMESTEPS, "compressed": compressed}
    path = influence_scores(model, queries, train, damping=[1e-3, 0.1, 10], **settings)
    assert path.shape == (3, 4, 7)
    for damping, scores in zip((1e-3, 0.1, 10), path, strict=True):
        single = influence_scores(model, queries, train, damping=damping, **settings)
        assert single.shape == (4, 7)
        torch.testing.assert_close(single, scores, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("compressed", [False, True])
def test_batches_and_blocks_do_not_matter(case, compressed):
    model, queries, train, curvature = case
    settings = {
        "curvature": curvature,
        "timesteps": TIMESTEPS,
        "draws": 3,
        "compressed": compressed,
    }
    scores = influence_scores(model, queries, train, **settings)
    for sizes in (
        {"batch": 1},
        {"query_block": 1},
        {"train_block": 1},
        {"batch": 4, "query_block": 3, "train_block": 2},
    ):
        found = influence_scores(model, queries, train, **settings, **sizes)
        torch.testing.assert_close(
            found, scores, rtol=0 if not compressed else 1e-4, atol=1e-9 if not compressed else 1e-4
        )


@pytest.mark.parametrize("fisher", ["mc", "empirical"])
@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
def test_curvature_does_not_depend_on_batches_and_order(kind, fisher):
    model, train, order = make(Net), random_images(7, 2, 4, 4), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    settings = {"timesteps": TIMESTEPS, "draws": 2, "kind": kind, "fisher": fisher}
    first = fit_curvature(model, train, **settings)
    second = fit_curvature(model, train[order], batch=5, **settings)
    torch.testing.assert_close(dense(second, model), dense(first, model), rtol=1e-9, atol=1e-12)
    scores, permuted = (
        influence_scores(model, train[:2], images, curvature=curvature, timesteps=TIMESTEPS)
        for images, curvature in ((train, first), (train[order], second))
    )
    torch.testing.assert_close(permuted, scores[:, order], rtol=1e-7, atol=1e-9)


def test_score_is_the_change_of_loss_when_an_image_is_left_out():
    """Ridge regression from noisy pixels to noise: without image i a query's loss is higher by
    about score / train images."""
    model, train, queries = (
        make(Line, 4, bias=False),
        random_images(30, 1, 2, 2),
        random_images(5, 1, 2, 2, name="queries"),
    )
    timestep, draws = 300, 400
    curvature = fit_curvature(
        model, train, timesteps=[timestep], draws=100, fisher="exact", batch=500
    )
    ridge = 0.1 * mean_eigenvalue(curvature)
    noise = torch.stack(
        [
            torch.randn(1, 2, 2, generator=rng.generator("gradient noise", 0, timestep, d))
            for d in range(draws)
        ]
    ).double()
    left = alpha_bar(timestep)

    def inputs(images):  # [image, draw, pixel]
        return (left**0.5 * images[:, None] + (1 - left) ** 0.5 * noise).flatten(2)

    def fitted(keep):
        """Minimiser of the mean loss of the kept images, over *all* images' number, plus ridge / 2
        · ‖W‖²."""
        x, y = inputs(train[keep]).flatten(0, 1), noise.flatten(1).repeat(int(keep.sum()), 1)
        scale = 2 / 4 / len(train) / draws
        return torch.linalg.solve(scale * x.T @ x + ridge * torch.eye(4), scale * x.T @ y).T

    def losses(weight):
        return (inputs(queries) @ weight.T - noise.flatten(1)).square().mean((1, 2))

    everybody = torch.ones(len(train), dtype=torch.bool)
    model.layer.weight.data = fitted(everybody)
    truth = torch.stack(
        [losses(fitted(everybody & (torch.arange(len(train)) != i))) for i in range(len(train))], 1
    )
    truth = truth - losses(model.layer.weight.detach())[:, None]
    settings = {
        "curvature": curvature,
        "timesteps": [timestep],
        "draws": draws,
        "damping": 0.1,
        "batch": 400,
    }
    scores = influence_scores(model, queries, train, **settings) / len(train)
    assert torch.corrcoef(torch.stack([scores.flatten(), truth.flatten()]))[0, 1] > 0.99
    assert 0.9 < (scores * truth).sum() / scores.square().sum() < 1.2


# ---- eight bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eight_bits_are_off_by_half_a_step(dtype):
    values = (
        torch.randn(5, 3, 40, generator=rng.generator("bits"), dtype=dtype)
        * torch.tensor([1e-12, 1, 1e6, 1, 1], dtype=dtype)[:, None, None]
    )
    values[3] += 100
    values[4] = -7.0
    compressed = compress(values)
    assert compressed.codes.dtype == torch.uint8 and compressed.codes.shape == (5, 120)
    steps = (values.flatten(1).amax(1) - values.flatten(1).amin(1)) / 255
    errors = (decompress(compressed) - values.flatten(1)).abs().amax(1)
    rounding = 4 * torch.finfo(dtype).eps * values.flatten(1).abs().amax(1)
    assert (
        (errors <= steps / 2 + rounding).all()
        and (errors[:4] > steps[:4] / 4).all()
        and errors[4] == 0
    )
    assert compressed.codes[0].min() == 0 and compressed.codes[0].max() == 255


def test_error_of_compressed_scores(case):
    model, queries, train, curvature = case
    settings = {"curvature": curvature, "timesteps": TIMESTEPS, "damping": 0.1}
    plain, compressed = (
        influence_scores(model, queries, train, compressed=c, **settings) for c in (False, True)
    )
    left, right = (
        measurement_gradients(model, images, timesteps=TIMESTEPS) for images in (queries, train)
    )
    bound, blocks = 0, restore(curvature, model)
    for name, block in blocks.items():
        step = compress(
            block.precondition(left[name], 0.1 * mean_eigenvalue(curvature))
        ).step  # [query, 1]
        bound = bound + step / 2 * right[name].flatten(1).abs().sum(1)
    assert ((plain - compressed).abs() <= bound).all() and not torch.allclose(
        plain, compressed, rtol=1e-9
    )
    assert (plain - compressed).abs().max() < 0.01 * plain.abs().max()


# ---- as it is used


def test_saved_curvature_gives_the_same_scores(case, tmp_path):
    model, queries, train, curvature = case
    store = Store(tmp_path)
    store.save("curvature", curvature)
    settings = {"timesteps": TIMESTEPS, "damping": [0.01, 1]}
    scores = influence_scores(model, queries, train, curvature=store.load("curvature"), **settings)
    torch.testing.assert_close(
        scores,
        influence_scores(model, queries, train, curvature=curvature, **settings),
        rtol=1e-11,
        atol=1e-13,
    )


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_unet_end_to_end(sharing):
    unet = {
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "add_attention": sharing == "reduce",
        "down_block_types": ["DownBlock2D"] * 2,
        "up_block_types": ["UpBlock2D"] * 2,
        "resnet_time_scale_shift": "scale_shift",
    }
    images = random_images(4, 3, 8, 8, dtype=torch.float32)
    model = Recipe(unet=unet).build(0, images.shape).eval()
    weights, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    curvature = fit_curvature(model, images, timesteps=[100, 500], sharing=sharing)
    for damping in (1e-4, 0.1):
        settings = {"curvature": curvature, "timesteps": [100, 500], "damping": damping}
        scores = influence_scores(model, images, images, **settings)
        assert scores.dtype == torch.float32 and torch.isfinite(scores).all()
        assert (scores.diagonal() > 0).all()
        torch.testing.assert_close(
            scores, scores.T, rtol=1e-3, atol=1e-3 * scores.abs().max().item()
        )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    covered = [name for name, layer in model.named_modules() if isinstance(layer, Linear | Conv2d)]
    assert {name.rpartition(".")[0] for name in restore(curvature, model)} == set(covered)


def test_frozen_parameters_are_left_out(case):
    _, queries, train, _ = case
    model = make(Net)
    model.first.requires_grad_(False)
    model.last.bias.requires_grad_(False)
    curvature = fit_curvature(model, train, timesteps=TIMESTEPS)
    assert list(restore(curvature, model)) == ["time.weight", "time.bias", "last.weight"]
    assert (
        influence_scores(model, queries, train, curvature=curvature, timesteps=TIMESTEPS)[3, 2] > 0
    )


# ---- bad input


class Twice(Net):
    def forward(self, x, timesteps):
        return super().forward(super().forward(x, timesteps).sample, timesteps)


def broken(model_class=Net, **replaced):
    """A net with other layers."""
    model = make(model_class)
    for name, layer in replaced.items():
        setattr(model, name, layer.double())
    return model.eval()


IMAGES = random_images(2, 2, 4, 4)


@pytest.mark.parametrize(
    ("model", "settings", "reason"),
    [
        (make(Net), {"kind": "shampoo"}, "kind must be one of 'ekfac', 'kfac', not 'shampoo'"),
        (make(Net), {"fisher": "type-2"}, "fisher must be one of 'mc'"),
        (make(Net), {"sharing": "sum"}, "sharing must be one of"),
        (make(Net), {"timesteps": []}, "timesteps must name"),
        (make(Net), {"timesteps": [1000]}, "timestep must be an integer"),
        (make(Net), {"draws": 0}, "draws must be at least 1"),
        (make(Net), {"batch": 0}, "batch must be at least 1"),
        (make(Net), {"train": IMAGES * float("nan")}, "train has pixels that are NaN"),
        (make(Net).train(), {}, r"call model.eval\(\)"),
        (make(Net).requires_grad_(False), {}, "no trainable Linear or Conv2d"),
        (broken(first=Conv2d(2, 4, 3, groups=2)), {}, "Conv2d 'first' with groups"),
        (
            broken(first=Conv2d(2, 3, 3, padding=1, padding_mode="circular")),
            {},
            "Conv2d 'first' with groups or non-zero padding",
        ),
        (make(Twice), {}, "'(first|time|last)' 2 times"),
        (broken(spare=Linear(2, 2)), {}, "'spare' 0 times"),
    ],
)
def test_bad_input_of_the_fit(model, settings, reason):
    with pytest.raises(InputError, match=reason):
        fit_curvature(model, **{"train": IMAGES, "timesteps": TIMESTEPS} | settings)


def test_model_with_nan_weights_is_refused():
    model = make(Net)
    model.last.weight.data[0] = float("nan")
    with pytest.raises(InputError, match="model gives NaN"):
        fit_curvature(model, IMAGES, timesteps=TIMESTEPS)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"measurement": "fid"},
            "measurement must be one of 'loss', 'elbo_loss', .*, not 'fid'",
        ),
        ({"damping": 0.0}, "damping must be positive"),
        ({"damping": [0.1, -1]}, "damping must be positive and finite, not -1"),
        ({"damping": float("nan")}, "damping must be positive"),
        ({"damping": []}, "damping"),
        ({"timesteps": []}, "timesteps must name"),
        ({"train_block": 0}, "train_block must be at least 1"),
        ({"query_block": -1}, "query_block must be at least 1"),
        ({"queries": IMAGES * float("nan")}, "queries has pixels that are NaN"),
        ({"queries": IMAGES[:, :, :3]}, "resize"),
        ({"model": make(Line, 32)}, "curvature is that of another model"),
        ({"curvature": {}}, "curvature is that of another model, first.bias differs"),
        ({"model": make(Net, 2).requires_grad_(False)}, "no trainable"),
    ],
)
def test_bad_input_of_the_scores(case, settings, reason):
    model, queries, train, curvature = case
    good = {
        "model": model,
        "queries": queries,
        "train": train,
        "curvature": curvature,
        "timesteps": TIMESTEPS,
    }
    with pytest.raises(InputError, match=reason):
        influence_scores(**good | settings)


def test_curvature_of_zero_is_refused(case):
    model, queries, train, curvature = case
    with pytest.raises(InputError, match="mean eigenvalue 0"):
        influence_scores(
            model,
            queries,
            train,
            curvature={k: 0 * v for k, v in curvature.items()},
            timesteps=TIMESTEPS,
        )
