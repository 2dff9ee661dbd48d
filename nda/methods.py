"""The catalogue: every method of the book, how it is named, what it needs, its settings, and the
function that scores. What is recorded of a result is written here, from these same settings.

To add a method is to write one function and one entry: see the book's page *Add a method*.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from time import perf_counter
from typing import Any

from jaxtyping import Float
from torch import Tensor

from nda.errors import InputError, check_choice
from nda.model.outputs import uniform_timesteps
from nda.nonparametric.config import NDAConfig
from nda.nonparametric.random_features import TIMESTEPS
from nda.rivals.bench import Bench
from nda.rivals.kernel import DAMPINGS, Choice
from nda.store import Store, plain

Parameters = Mapping[str, Any]  # those of a profile, by the names that notebooks give them
WHICH = ("val", "gen")  # names of the queries: held-out and generated
NOTHING, IMAGES, MODELS = "nothing", "train images", "retrained models"
MODEL, CHECKPOINTS = f"{IMAGES}, model", f"{IMAGES}, checkpoints"
EFFICIENTNET, CLIP = f"{IMAGES}, weights of EfficientNet", f"{IMAGES}, weights of CLIP"


@dataclass(frozen=True, eq=False)
class Method:
    """One attribution method.

    key: its name in Python and on disk. label, colour: in every table and figure. family: its page
    of the book. needs: what it has to see beside the query. run: the function that scores, or where
    it is, as `"module:function"`, imported when it is first used. takes: what that function is
    given. `"images"`: it is `(queries, train, **settings) -> scores`. `"bench"`: it is
    `(bench, which, **settings)` and returns `nda.rivals.bench.Scored`; with `dampings`, those that
    it is asked for, if it has any. `"losses"`: it is `(losses, masks) -> scores`, fitted to
    retrained models on the page of the LDS. fixed: settings that make it this method. reads: the
    settings that follow a profile, from its parameters. dampings: the parameters' grid of dampings,
    of a method that has to choose one. which: names of the queries that it can be asked about; the
    first choose the damping. variant: settings of a run beside the standard one, as `{"K": 10}`.
    """

    key: str
    label: str
    colour: str
    family: str
    needs: str
    run: str | Callable[..., Any]
    takes: str = "images"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    reads: Callable[[Parameters], Mapping[str, Any]] = lambda parameters: {}
    dampings: Callable[[Parameters], Sequence[float]] | None = None
    which: Sequence[str] = WHICH
    variant: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What its runs are recorded under: the key, and the variant if it is one, `d_trak-k10`."""
        return "-".join([self.key, *(f"{k}{v}".lower() for k, v in self.variant.items())])

    @property
    def function(self) -> Callable[..., Any]:
        """The function that scores."""
        if not isinstance(self.run, str):
            return self.run
        module, _, function = self.run.partition(":")
        return getattr(import_module(module), function)

    @property
    def opens_model(self) -> bool:
        """Whether it looks into a trained model."""
        return self.needs in (MODEL, CHECKPOINTS)

    def varied(self, **variant: Any) -> "Method":
        """This method with other settings, in a paler colour; without any, itself.

        Args:
            variant: `K`, the number of evenly spaced timesteps that gradients are averaged over.

        Returns:
            The method, whose name and label say how it differs.

        Raises:
            InputError: for a setting other than K, or a method without gradients.
        """
        if not variant:
            return self
        if set(variant) != {"K"} or not self.opens_model:
            raise InputError(
                f"variant of {self.key} must be K, the number of timesteps of a method with"
                f" gradients, not {variant}"
            )
        label = f"{self.label}, K\u00a0=\u00a0{variant['K']}"
        return replace(self, label=label, colour=_paler(self.colour), variant=variant)

    def settings(self, parameters: Parameters) -> dict[str, Any]:
        """What the method is run with and what is recorded: its own settings and those that follow
        the profile.

        Args:
            parameters: of the profile, by the names that notebooks give them.

        Returns:
            Plain values, as JSON holds them.

        Raises:
            InputError: if a parameter is missing.
        """
        try:
            made = {**self.fixed, **self.reads({**parameters, **self.variant})}
        except KeyError as error:
            raise InputError(
                f"parameters lack {error.args[0]!r}, which {self.key} reads; give it the profile's"
            ) from None
        return plain(made)

    def tried(self, parameters: Parameters) -> list[float]:
        """The grid of dampings, empty for a method without.

        Args:
            parameters: of the profile.

        Returns:
            The dampings, in the order in which they are tried.
        """
        return [float(damping) for damping in self.dampings(parameters)] if self.dampings else []

    def score(self, bench: Bench, which: str, **variant: Any) -> "Result":
        """Score the queries called `which` against the train images.

        Args:
            bench: images, model and parameters of a profile.
            which: "val" or "gen".
            variant: see `varied`.

        Returns:
            The scores, and all that is recorded of them.

        Raises:
            InputError: for queries that the method cannot be asked about, and whatever its function
                refuses.
        """
        method = self.varied(**variant)
        check_choice("which", which, self.which)
        settings = method.settings(bench.parameters)
        scores, seconds, choice = method._scored(bench, which, settings)
        inputs = bench.inputs(which, model=self.opens_model)
        tried = self.tried(bench.parameters)
        return Result(method, which, scores, settings, seconds, inputs, choice, tried)

    def _scored(
        self, bench: Bench, which: str, settings: Mapping[str, Any]
    ) -> tuple[Tensor, float, Choice | None]:
        """Scores, seconds and, where there is a damping, its choice."""
        if self.takes == "losses":
            raise InputError(
                f"method {self.key} is fitted to the losses of retrained models; call its function"
                " with them, as the page of the LDS does"
            )
        if self.takes == "images":
            started = perf_counter()
            scores = self.function(bench.images(which), bench.images("train"), **settings)
            return scores, perf_counter() - started, None
        if self.dampings:
            return self._tuned(bench, which, settings)
        return *self.function(bench, which, **settings), None

    def _tuned(
        self, bench: Bench, which: str, settings: Mapping[str, Any]
    ) -> tuple[Tensor, float, Choice]:
        """Scores at the damping that the first of `which` choose; the choice is made once."""
        tried, first = self.tried(bench.parameters), self.which[0]
        made = json.dumps([self.name, settings, tried])
        if which != first and made not in bench.choices:
            self._tuned(bench, first, settings)
        asked = tried if which == first else [bench.choices[made].damping]
        path, seconds = self.function(bench, which, dampings=asked, **settings)
        if which == first:
            bench.choices[made] = bench.choose(path, which)
        choice = bench.choices[made]
        return path[choice.damping], seconds, choice


@dataclass(frozen=True, eq=False)
class Result:
    """Scores and their record. name: what they are kept under, `<method>-<which>`. settings: those
    that the method was run with. seconds: all that it would take by itself. inputs: sha256 of what
    was looked at. choice: of the damping, if it has one, among those `tried`."""

    method: Method
    which: str
    scores: Float[Tensor, "query train"]
    settings: Mapping[str, Any]
    seconds: float
    inputs: Mapping[str, str]
    choice: Choice | None = None
    tried: Sequence[float] = ()

    @property
    def name(self) -> str:
        """Of the method's run and the queries: `d_trak-k10-gen`."""
        return f"{self.method.name}-{self.which}"

    @property
    def parameters(self) -> dict[str, Any]:
        """What is written beside scores and effects."""
        damping = self.choice and {
            "value": self.choice.damping,
            "tried": list(self.tried),
            "chosen_on": self.choice.on,
        }
        return {
            "method": self.method.key,
            "variant": dict(self.method.variant),
            "settings": dict(self.settings),
            "damping": damping,
        }


def family(name: str) -> list[Method]:
    """The methods of one page of the book, in their order.

    Args:
        name: such as "nda" or "gradients".

    Returns:
        Those of the catalogue.
    """
    return [method for method in METHODS.values() if method.family == name]


def recorded(results: Store, which: str) -> dict[str, Method]:
    """The methods of a results folder, in the order of the tables, by the name that they are
    recorded under; what they are is read from their sidecars.

    Args:
        results: the folder.
        which: "val" or "gen", the queries.

    Returns:
        `effects/<name>-<which>` are there for every name.

    Raises:
        InputError: for a sidecar that names no method of the catalogue.
    """
    found = {}
    for file in results.used_as("results").names():
        if file.startswith("effects/") and file.endswith(f"-{which}"):
            made = results.info(file)["parameters"]
            if made.get("method") not in METHODS:
                raise InputError(
                    f"{file} in {results.folder} names no method of nda.methods.METHODS in its"
                    " sidecar; record it again"
                )
            method = METHODS[made["method"]].varied(**made["variant"])
            found[file.removeprefix("effects/").removesuffix(f"-{which}")] = method
    order = list(METHODS)

    def place(pair: tuple[str, Method]) -> tuple[int, list[tuple[str, Any]]]:
        return order.index(pair[1].key), sorted(pair[1].variant.items())

    return dict(sorted(found.items(), key=place))


def _paler(colour: str) -> str:
    return "#" + "".join(f"{(int(colour[i : i + 2], 16) + 255) // 2:02x}" for i in (1, 3, 5))


# ---- the settings that follow a profile


def _from(**names: str) -> Callable[[Parameters], dict[str, Any]]:
    """Settings that are parameters of the profile, under other names."""
    return lambda parameters: {to: parameters[name] for to, name in names.items()}


def _nda_config(parameters: Parameters, *second: str) -> NDAConfig:
    names = ("patches", *second, "top_k", "borders", "draws", "noise_seed")
    chosen = {name: parameters[name] for name in names}
    return NDAConfig.parse(chosen | {"flips": parameters["bank_flips"]})


def _full_scale(parameters: Parameters) -> dict[str, Any]:
    return asdict(_nda_config(parameters))


def _two_scales(parameters: Parameters) -> dict[str, Any]:
    return asdict(_nda_config(parameters, "coarse_patches", "scale_mix"))


def _coarse_scale(parameters: Parameters) -> dict[str, Any]:
    both = _nda_config(parameters, "coarse_patches", "scale_mix")
    return asdict(replace(both, scales={t: scales[1:] for t, scales in both.scales.items()}))


def _readout(parameters: Parameters) -> dict[str, Any]:
    """Of gradients at K evenly spaced timesteps."""
    k = parameters.get("K", parameters["gradient_timesteps"])
    return {
        "timesteps": uniform_timesteps(k),
        "noise_seed": parameters["noise_seed"],
        "projection_dim": parameters["projection_dim"],
    }


def _journey(parameters: Parameters) -> dict[str, Any]:
    return _readout(parameters) | {"sampling_steps": parameters["sampling_steps"]}


def _curvature(parameters: Parameters) -> dict[str, Any]:
    k = parameters.get("K")
    return {
        "timesteps": uniform_timesteps(k) if k else parameters["influence_timesteps"],
        "noise_seed": parameters["noise_seed"],
        "draws": parameters["curvature_draws"],
    }


# ---- the catalogue; its order is that of every table and figure, and families share a hue


READ_LOSS: dict[str, Any] = {"model_output": "loss", "unit_norm": False}
READ_NORM: dict[str, Any] = {"model_output": "output_norm", "unit_norm": False}
READ_MEAN: dict[str, Any] = {"model_output": "output_mean", "unit_norm": False}
READ_MEAN_UNIT: dict[str, Any] = {"model_output": "output_mean", "unit_norm": True}
KERNEL: dict[str, Any] = {
    "needs": MODEL,
    "takes": "bench",
    "reads": _readout,
    "dampings": lambda parameters: DAMPINGS,
}


def _pixels(key: str, label: str, colour: str, run: str, **more: Any) -> Method:
    return Method(key, label, colour, "similarity", IMAGES, run, **more)


def _embedding(key: str, label: str, colour: str, encoder: str, normalise: bool) -> Method:
    return Method(
        key,
        label,
        colour,
        "similarity",
        {"efficientnet": EFFICIENTNET, "clip": CLIP}[encoder],
        "nda.rivals.embeddings:embedded_scores",
        takes="bench",
        fixed={"encoder": encoder, "normalise": normalise},
    )


def _nda(key: str, label: str, colour: str, reads: Callable[..., Any]) -> Method:
    run = "nda.nonparametric.scores:configured_scores"
    return Method(key, label, colour, "nda", IMAGES, run, reads=reads)


def _random_features(key: str, label: str, colour: str, gated: bool) -> Method:
    return Method(
        key,
        label,
        colour,
        "beyond",
        IMAGES,
        "nda.nonparametric.random_features:rfi_scores",
        fixed={
            "timesteps": TIMESTEPS,
            "widths": (128, 256),
            "networks": 1,
            "damping": 3e-3,
            "draws": 1,
            "gated": gated,
        },
        reads=_from(noise_seed="noise_seed", flips="flips"),
    )


def _gradient(key: str, label: str, colour: str, normalise: bool, weights: str) -> Method:
    return Method(
        key,
        label,
        colour,
        "gradients",
        MODEL if weights == "model" else CHECKPOINTS,
        "nda.rivals.trak:gradient_scores",
        takes="bench",
        fixed=READ_LOSS | {"weights": weights, "normalise": normalise},
        reads=_readout,
    )


def _kernel(key: str, label: str, colour: str, run: str, fixed: Mapping[str, Any]) -> Method:
    return Method(key, label, colour, "kernels", run=run, fixed=fixed, **KERNEL)


def _influence(key: str, label: str, colour: str) -> Method:
    return Method(
        key,
        label,
        colour,
        "influence",
        MODEL,
        "nda.rivals.influence:curvature_scores",
        takes="bench",
        fixed={"kind": key, "fisher": "mc", "sharing": "expand", "measurement": "loss"},
        reads=_curvature,
        dampings=lambda parameters: parameters["relative_dampings"],
    )


def _retrained(key: str, label: str, colour: str) -> Method:
    run = f"nda.rivals.retrained:{key}"
    return Method(key, label, colour, "retrained", MODELS, run, takes="losses")


PIXELS, KERNELS = "nda.rivals.pixels:pixel_scores", "nda.rivals.trak"
METHODS = {
    method.key: method
    for method in (
        Method(
            "random",
            "Random (null)",
            "#9a9a9a",
            "similarity",
            NOTHING,
            "nda.rivals.pixels:random_scores",
            reads=_from(seed="null_seed"),
        ),
        _pixels("pixel_dot", "Raw pixels, dot", "#c98b2b", PIXELS, fixed={"kind": "dot"}),
        _pixels("pixel_cosine", "Raw pixels, cosine", "#8a5a13", PIXELS, fixed={"kind": "cosine"}),
        _pixels(
            "pixel_patches",
            "Raw patches, nearest",
            "#e0b878",
            "nda.rivals.controls:patch_distance_scores",
            reads=_from(patch="patch"),
        ),
        _embedding("efficientnet_dot", "EfficientNet, dot", "#b7a33a", "efficientnet", False),
        _embedding("efficientnet_cosine", "EfficientNet, cosine", "#857520", "efficientnet", True),
        _embedding("clip_dot", "CLIP, dot", "#a9b665", "clip", False),
        _embedding("clip_cosine", "CLIP, cosine", "#6f7d34", "clip", True),
        Method(
            "nda_imagewise",
            "NDA, whole images",
            "#a9d3de",
            "similarity",
            IMAGES,
            "nda.rivals.controls:imagewise_scores",
            reads=_from(timesteps="timesteps_nda", noise_seed="noise_seed"),
        ),
        _nda("nda", "NDA, single scale", "#1f6f8b", _full_scale),
        _nda("nda_coarse", "NDA, coarse", "#6fb1c4", _coarse_scale),
        _nda("nda_two_scale", "NDA, two scales", "#0b3c4f", _two_scales),
        _random_features("rfi", "RFI", "#a98be0", gated=False),
        _random_features("rfi_gated", "RFI, gated", "#5b2ec4", gated=True),
        _gradient("gradient_dot", "Gradient, dot", "#e3a3b4", False, "model"),
        _gradient("gradient_cosine", "Gradient, cosine", "#cf7f96", True, "model"),
        _gradient("tracincp", "TracInCP", "#d9a7d0", False, "checkpoints"),
        _gradient("gas", "GAS", "#b87fae", True, "checkpoints"),
        _kernel("trak", "TRAK", "#b0476b", f"{KERNELS}:trak", READ_LOSS),
        _kernel("relative_if", "Relative IF", "#94507f", f"{KERNELS}:relative_if", READ_LOSS),
        _kernel(
            "renormalised_if", "Renormalised IF", "#7a3f73", f"{KERNELS}:renormalised_if", READ_LOSS
        ),
        Method(
            "journey_trak",
            "Journey-TRAK",
            "#c95a49",
            "das",
            run=f"{KERNELS}:journey_trak",
            fixed=READ_LOSS,
            which=("gen",),
            **KERNEL | {"reads": _journey},
        ),
        _kernel("d_trak", "D-TRAK", "#8c2346", f"{KERNELS}:trak", READ_NORM),
        Method(
            "das",
            "DAS",
            "#5e1230",
            "das",
            run="nda.rivals.das:das",
            fixed=READ_MEAN | {"squared": True},
            **KERNEL,
        ),
        Method(
            "das_code",
            "DAS, as released",
            "#a33b2c",
            "das",
            run="nda.rivals.das:das_released",
            fixed=READ_MEAN_UNIT | {"mode": "das1"},
            **KERNEL,
        ),
        _influence("kfac", "K-FAC influence", "#7fae6a"),
        _influence("ekfac", "EK-FAC influence", "#3f7a35"),
        _retrained("empirical_influence", "Empirical influence", "#6d6d8f"),
        _retrained("datamodel", "Datamodel", "#3d3d66"),
    )
}
