"""The algebra against explicit inverses in the space of parameters, hand calculations, traker, and
models that are solved exactly."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn
from trak.score_computers import BasicScoreComputer

from nda import rng
from nda.errors import InputError
from nda.model import sampling, unet
from nda.rivals import das, kernel, trak
from nda.rivals.gradients import Readout, features
from nda.rivals.kernel import DAMPINGS, Kernel, damping_path, gram, norms
from nda.schedule import add_noise

DAMPING = 0.03


def draw(*names: str | int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(*shape, generator=rng.generator("trak test", *names), dtype=torch.float64)


def problem(dim: int, train: int = 9, query: int = 4, name: int = 0):
    """Features of train and queries, their kernel and cross, and λ found another way."""
    phi, psi = draw("phi", name, shape=(train, dim)), draw("psi", name, shape=(query, dim))
    kernel, ridge = Kernel(gram(phi)), DAMPING * torch.linalg.eigvalsh(phi @ phi.T).mean()
    return phi, psi, kernel, gram(psi, phi), ridge


def primal(phi: torch.Tensor, ridge: torch.Tensor) -> torch.Tensor:
    """(ΦᵀΦ + λI)⁻¹, explicitly."""
    return torch.linalg.inv(phi.T @ phi + ridge * torch.eye(phi.shape[1], dtype=torch.float64))


BOTH = pytest.mark.parametrize("dim", [5, 30])  # fewer and more dimensions than train images


@BOTH
def test_trak_family_against_the_explicit_inverse(dim):
    phi, psi, kernel, cross, ridge = problem(dim)
    solved = phi @ primal(phi, ridge)  # rows K⁻¹ φ_i
    expected = psi @ solved.T
    assert kernel.ridge(DAMPING) == pytest.approx(ridge.item())
    torch.testing.assert_close(trak.trak_scores(cross, kernel, damping=DAMPING), expected)
    torch.testing.assert_close(
        trak.relative_if_scores(cross, kernel, damping=DAMPING), expected / solved.norm(dim=1)
    )
    torch.testing.assert_close(
        trak.renormalised_if_scores(cross, kernel, damping=DAMPING), expected / phi.norm(dim=1)
    )
    torch.testing.assert_close(kernel.solved_norms(DAMPING), solved.norm(dim=1))
    torch.testing.assert_close(kernel.leverage(DAMPING), (phi * solved).sum(1))
    torch.testing.assert_close(
        kernel.solve(cross, DAMPING, power=2), psi @ primal(phi, ridge) @ solved.T
    )


@BOTH
def test_traker_agrees_up_to_its_scale(dim):
    phi, psi, kernel, cross, ridge = problem(dim)
    computer = BasicScoreComputer(torch.float64, torch.device("cpu"), lambda_reg=ridge.item())
    theirs = torch.zeros(9, 4, dtype=torch.float64)
    computer.get_scores(computer.get_x_xtx_inv(phi, computer.get_xtx(phi)), psi, theirs)
    ours = trak.trak_scores(cross, kernel, damping=DAMPING).T
    scale = primal(phi, ridge).abs().mean()
    # their inverse is float32
    torch.testing.assert_close(theirs * scale, ours, rtol=1e-4, atol=1e-5 * ours.abs().max().item())


def test_great_damping_tends_to_the_dot_product():
    _, _, kernel, cross, _ = problem(12)
    errors = [
        (trak.trak_scores(cross, kernel, damping=d) * kernel.ridge(d) - cross).abs().max()
        for d in (1e2, 1e4, 1e6)
    ]
    assert errors[0] > 50 * errors[1] > 2500 * errors[2] and errors[2] < 1e-4 * cross.abs().max()
    relative = trak.relative_if_scores(cross, kernel, damping=1e8)
    torch.testing.assert_close(
        relative, cross / kernel.gram.diagonal().sqrt(), rtol=1e-5, atol=1e-5
    )


def test_damping_has_no_scale():
    phi, psi, kernel, cross, _ = problem(12)
    scaled = trak.trak_scores(gram(50 * psi, 50 * phi), Kernel(gram(50 * phi)), damping=DAMPING)
    torch.testing.assert_close(scaled, trak.trak_scores(cross, kernel, damping=DAMPING))
    # twice the images: twice the sum, twice the ridge
    doubled = Kernel(gram(torch.cat([phi, phi])))
    half = trak.trak_scores(torch.cat([cross, cross], 1), doubled, damping=2 * DAMPING)[:, :9]
    torch.testing.assert_close(half, trak.trak_scores(cross, kernel, damping=DAMPING) / 2)


def test_path_decomposes_once(monkeypatch):
    _, _, kernel, cross, _ = problem(12)
    calls, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: calls.append(1) or eigh(a))
    path = damping_path(trak.relative_if_scores, cross, kernel)
    assert (
        tuple(path) == DAMPINGS
        and min(path) == pytest.approx(1e-5)
        and max(path) == pytest.approx(1e3)
    )
    again = dict(
        damping_path(
            das.das_released_scores,
            cross,
            kernel,
            torch.ones(9),
            dampings=(0.1,),
            mode="das1_squared",
        )
    )
    assert len(calls) == 1
    torch.testing.assert_close(
        path[0.1], trak.relative_if_scores(cross, Kernel(kernel.gram), damping=0.1)
    )
    torch.testing.assert_close(again[0.1], trak.trak_scores(cross, kernel, damping=0.1) ** 2)


def test_dot_and_cosine_over_checkpoints():
    checkpoints = [problem(7, name=name)[:2] for name in range(3)]
    crosses = [gram(psi, phi) for phi, psi in checkpoints]
    query_norms, train_norms = (
        [norms(psi) for _, psi in checkpoints],
        [norms(phi) for phi, _ in checkpoints],
    )
    dot, cosine = torch.zeros(4, 9, dtype=torch.float64), torch.zeros(4, 9, dtype=torch.float64)
    for phi, psi in checkpoints:
        for q in range(4):
            for i in range(9):
                dot[q, i] += psi[q] @ phi[i] / 3
                cosine[q, i] += psi[q] @ phi[i] / psi[q].norm() / phi[i].norm() / 3
    torch.testing.assert_close(trak.dot_scores(crosses), dot)
    torch.testing.assert_close(trak.cosine_scores(crosses, query_norms, train_norms), cosine)
    torch.testing.assert_close(trak.dot_scores(crosses[:1]), crosses[0])


def test_an_image_without_a_gradient_scores_zero():
    phi, psi, *_ = problem(6)
    phi[2] = 0
    kernel, cross = Kernel(gram(phi)), gram(psi, phi)
    for scores in (
        trak.cosine_scores([cross], [norms(psi)], [norms(phi)]),
        trak.relative_if_scores(cross, kernel, damping=DAMPING),
        trak.renormalised_if_scores(cross, kernel, damping=DAMPING),
    ):
        assert (
            torch.isfinite(scores).all()
            and (scores[:, 2].abs() < 1e-12).all()
            and (scores[:, 3] != 0).all()
        )


@pytest.mark.parametrize("size", [1, 4, 9])
def test_gram_of_any_slices(monkeypatch, size):
    phi, psi, *_ = problem(13)
    monkeypatch.setattr(kernel, "SLICE", size)
    for dtype, close in ((torch.float64, {}), (torch.float32, {"rtol": 1e-6, "atol": 1e-6})):
        a, b = phi.to(dtype), psi.to(dtype)
        torch.testing.assert_close(gram(a), phi @ phi.T, **close)
        torch.testing.assert_close(gram(b, a), psi @ phi.T, **close)
        torch.testing.assert_close(norms(a), phi.norm(dim=1), **close)
    assert gram(a).dtype == torch.float64 and torch.equal(gram(a), gram(a).T)


def test_gram_is_summed_in_float64():
    """A product that float32 loses beside a large one, of which float64 keeps 1.5e-8."""
    x, y = torch.tensor([[1e4, 1.0, 1e4]]), torch.tensor([[1e4, 1e-3, -1e4]])
    assert gram(x, y).item() == pytest.approx(1e-3, abs=2e-8)


def test_das_on_two_examples_by_hand():
    """φ = (1, 2), ψ = 3, λ = 0.4 · mean(1, 4) = 1: K = 6, h = (1/6, 4/6), ψ K⁻¹ φ = (1/2, 1)."""
    phi, psi = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]])
    kernel, cross, damping = Kernel(gram(phi)), gram(psi, phi), 0.4
    residuals = torch.tensor([[1.0], [2.0]])
    paper = das.das_scores([cross], [kernel], residuals, damping=damping)
    # 0.36 and 36
    assert paper.tolist() == [pytest.approx([(1 / 2 * 1 / (5 / 6)) ** 2, (1 * 2 / (2 / 6)) ** 2])]
    signed = das.das_scores(
        [-cross, cross], [kernel, kernel], residuals.repeat(1, 2), damping=damping, squared=False
    )
    assert signed.abs().max() < 1e-12  # the mean over timesteps of opposite changes
    both = das.das_scores(
        [cross, cross], [kernel, kernel], torch.tensor([[1.0, 3.0], [2.0, 0.0]]), damping=damping
    )
    assert both.tolist() == [pytest.approx([0.36 * (1 + 9) / 2, 36 / 2])]

    # roots (1, 2) / √5 and (3, 4) / 5
    residual = das.das_residual(torch.tensor([[1.0, 4.0], [9.0, 16.0]]))
    a, b = 3 / (2 * 5**0.5), 7 / 10
    assert residual.tolist() == pytest.approx([a, b])
    expected = {
        "das1": [a / 2, b],
        "das1_squared": [a**2 / 4, b**2],
        "das0": [a * 3 / 36 * (6 / 5) ** 2, b * 6 / 36 * 3**2],
        "das0_squared": [(a * 3 / 36 * (6 / 5) ** 2) ** 2, (b * 6 / 36 * 3**2) ** 2],
    }
    for mode, values in expected.items():
        assert das.das_released_scores(
            cross, kernel, residual, damping=damping, mode=mode
        ).tolist() == [pytest.approx(values)]


def test_das_of_the_paper_is_exact_for_ridge_regression():
    """There Sherman-Morrison is no approximation: the scores are the changes of the prediction when
    an example is left out."""
    phi, psi, kernel, cross, ridge = problem(6, train=15)
    y = draw("targets", shape=(15,))

    def fit(keep: torch.Tensor) -> torch.Tensor:
        return primal(phi[keep], ridge) @ phi[keep].T @ y[keep]

    theta = fit(torch.ones(15, dtype=torch.bool))
    # [query, train]
    changes = torch.stack([psi @ (theta - fit(torch.arange(15) != i)) for i in range(15)], 1)
    residuals = (y - phi @ theta)[:, None]
    torch.testing.assert_close(
        das.das_scores([cross], [kernel], residuals, damping=DAMPING, squared=False), changes
    )
    torch.testing.assert_close(
        das.das_scores([cross], [kernel], residuals, damping=DAMPING), changes**2
    )


class Linear(nn.Module):
    """A denoiser that is solved exactly: one linear map of the noisy pixels and of a constant."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x, t):
        return SimpleNamespace(sample=(self.rows(x) @ self.weight.T).reshape(x.shape))

    @staticmethod
    def rows(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x.flatten(1), (0, 1), value=1.0)


class Regression:
    """Ridge regression of the noise on noisy images, whose minimiser, Hessian and losses are
    explicit."""

    readout = Readout(timesteps=(200, 600), draws=2)
    ridge = 5.0

    def __init__(self, train: torch.Tensor):
        noise = self.readout.noise(train.shape[1:]).to(train).flatten(0, 1)  # [row, chan, row, col]
        times = torch.tensor([200, 200, 600, 600])
        # [train, row, in]
        self.x = torch.stack(
            [Linear.rows(add_noise(image.expand_as(noise), times, noise)) for image in train]
        )
        self.y = noise.flatten(1)  # [row, pixel]

    def hessian(self, keep: torch.Tensor) -> torch.Tensor:
        """Of the sum of the kept images' losses and ridge/2 ‖W‖², alike for every output pixel."""
        x = self.x[keep].flatten(0, 1)
        return 2 * x.T @ x / (4 * self.y.shape[1]) + self.ridge * torch.eye(
            x.shape[1], dtype=x.dtype
        )

    def fit(self, keep: torch.Tensor) -> torch.Tensor:
        moment = 2 * torch.einsum("nri,rp->pi", self.x[keep], self.y) / (4 * self.y.shape[1])
        return torch.linalg.solve(self.hessian(keep), moment.T).T

    def losses(self, weight: torch.Tensor) -> torch.Tensor:
        return (self.x @ weight.T - self.y).square().mean((1, 2))


def test_removing_a_duplicated_image_raises_its_loss_as_predicted():
    """From images to scores: image 0 is in the train set twice and is the query; the loss is
    retrained exactly without one copy."""
    train = (
        2 * torch.rand(200, 1, 2, 3, generator=rng.generator("solvable"), dtype=torch.float64) - 1
    )
    train[0] = train[0].sign()  # far from the others
    train[1] = train[0]
    everything, task = torch.ones(200, dtype=torch.bool), Regression(train)
    weight = task.fit(everything)
    rises = (
        torch.stack([task.losses(task.fit(torch.arange(200) != i))[0] for i in range(200)])
        - task.losses(weight)[0]
    )
    phi = features(Linear(weight), train, task.readout)
    # the exact influence: the Hessian in place of ΦᵀΦ
    inverse = torch.linalg.inv(
        torch.kron(torch.eye(6, dtype=torch.float64), task.hessian(everything))
    )
    predicted = phi[:1] @ inverse @ phi.T
    assert rises[1] > 0 and predicted[0, 1] == pytest.approx(rises[1].item(), rel=0.1)
    assert torch.corrcoef(torch.stack([predicted[0], rises]))[0, 1] > 0.999

    kernel, cross = Kernel(gram(phi)), gram(phi[:1], phi)
    errors = task.losses(weight)[:, None]
    for scores in (
        trak.dot_scores([cross]),
        trak.cosine_scores([cross], [norms(phi[:1])], [norms(phi)]),
        trak.trak_scores(cross, kernel, damping=0.1),
        trak.relative_if_scores(cross, kernel, damping=0.1),
        trak.renormalised_if_scores(cross, kernel, damping=0.1),
        das.das_released_scores(cross, kernel, das.das_residual(errors), damping=0.1),
        das.das_scores([cross], [kernel], errors.sqrt(), damping=0.1),
    ):
        assert scores[0, 1] > 0 and scores[0, :2].min() == pytest.approx(scores.max().item())


UNET = {
    "block_out_channels": [8, 8],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "add_attention": False,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
}


def test_journey_is_that_of_the_samples():
    model = unet.Recipe(unet=UNET).build(0, (1, 4, 4)).eval()
    images, timesteps = sampling.journey(model, range(5), noise_seed=3, steps=6, batch=2)
    assert images.shape == (5, 6, 1, 4, 4) and timesteps == (830, 664, 498, 332, 166, 0)
    torch.testing.assert_close(
        sampling.journey(model, range(2), noise_seed=3, steps=6)[0],
        images[:2],
        rtol=1e-4,
        atol=1e-4,
    )
    assert images.abs().max() <= 1 and len(images.flatten(2).flatten(0, 1).unique(dim=0)) == 30
    samples = sampling.sample(model, range(5), noise_seed=3, steps=6)
    assert (
        images[:, -1] - samples
        # the last prediction is the sample, before it is rounded to 256 levels
    ).abs().max() <= 1.01 / 255
    scheduler = DDIMScheduler(num_train_timesteps=1000, clip_sample=True)
    scheduler.set_timesteps(6)
    x = torch.stack(
        [torch.randn(1, 4, 4, generator=rng.generator("sample", 3, i)) for i in range(5)]
    )
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            done = scheduler.step(model(x, t).sample, t, x, eta=0.0)
            torch.testing.assert_close(
                images[:, step], done.pred_original_sample, rtol=1e-4, atol=1e-4
            )
            x = done.prev_sample
    queries = features(model, images, Readout(timesteps=timesteps))
    assert (
        queries.shape == (5, sum(p.numel() for p in model.parameters()))
        and torch.isfinite(queries).all()
    )


PHI, PSI, KERNEL, CROSS, _ = problem(5)
NAN = torch.full((9, 5), torch.nan)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (
            lambda: gram(PHI, PSI[:, :4]),
            r"features must be .* of one dim, not \(9, 5\) and \(4, 4\)",
        ),
        (lambda: Kernel(gram(NAN)), "gram has NaN"),
        (lambda: Kernel(CROSS), r"gram must be \[train, train\]"),
        (lambda: Kernel(gram(PHI[:4], PSI)), "symmetric"),
        (lambda: Kernel(torch.zeros(3, 3)), "positive trace"),
        (
            lambda: trak.trak_scores(CROSS.T, KERNEL, damping=1),
            r"cross must be \[query, train=9\], not \(9, 4\)",
        ),
        (lambda: trak.trak_scores(gram(NAN[:4], PHI), KERNEL, damping=1), "cross has NaN"),
        (lambda: trak.trak_scores(CROSS, KERNEL, damping=0), "damping must be positive"),
        (lambda: trak.relative_if_scores(CROSS, KERNEL, damping=-1), "damping must be positive"),
        (
            lambda: das.das_released_scores(CROSS, KERNEL, torch.ones(9), damping=float("nan")),
            "damping must be positive",
        ),
        (
            lambda: das.das_released_scores(CROSS, KERNEL, torch.ones(9), damping=1, mode="das"),
            "mode must be",
        ),
        (
            lambda: das.das_released_scores(CROSS, KERNEL, torch.ones(4), damping=1),
            r"residual must be \[train=9\]",
        ),
        (
            lambda: das.das_released_scores(CROSS, KERNEL, NAN[:, 0], damping=1),
            "residuals or errors have NaN",
        ),
        (lambda: das.das_residual(-torch.ones(9, 2)), "not negative"),
        (
            lambda: das.das_scores([CROSS], [KERNEL], torch.ones(9), damping=1),
            r"residuals \(9,\) must be",
        ),
        (
            lambda: das.das_scores([CROSS, CROSS], [KERNEL], torch.ones(9, 1), damping=1),
            "residuals",
        ),
        (lambda: trak.dot_scores([]), "crosses are empty"),
        (lambda: trak.dot_scores([CROSS, CROSS[:, :3]]), "cross must be"),
        (
            lambda: trak.cosine_scores([CROSS], [norms(PHI)], [norms(PSI)]),
            "query_norms and train_norms",
        ),
    ],
)
def test_bad_input(wrong, reason):
    with pytest.raises(InputError, match=reason):
        wrong()
