"""All choices of the method, checked."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from nda.errors import InputError, check_timestep
from nda.nonparametric.patches import Windows, check_posterior, shared_noise


@dataclass(frozen=True)
class Scale:
    """Windows of side `patch` in pixels; `coarse` compares them at half the resolution. `weight` is
    relative to the other scales'."""

    patch: int
    coarse: bool = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.patch, bool) or not isinstance(self.patch, int):
            raise InputError(f"patch must be an integer number of pixels, not {self.patch!r}")
        if not isinstance(self.weight, int | float) or not 0 <= self.weight < float("inf"):
            raise InputError(f"weights of scales must be finite, not negative: {self.weight!r}")


@dataclass(frozen=True)
class Term:
    """One posterior of a configuration and its weight in the score."""

    timestep: int
    scale: Scale
    draw: int | None  # number of the noise image, None: no noise
    weight: float


@dataclass(frozen=True)
class NDAConfig:
    """All choices of the method.

    Args:
        scales: for every timestep, the windows whose scores are mixed; timesteps have equal weight.
        top_k: weights of a train image that count at each position; None: all.
        borders: `"match"` or `"zero"`, see `nda.nonparametric.patches.patch_posterior`.
        draws: noise images per timestep, which all queries share; the released code has one; 0: no
            noise.
        noise_seed: name of the noise.
        temperature: factor on the variance 1-ᾱ_t of the softmax (paper: 1).
        flips: the bank holds mirrored train images too, and their mass counts for their original.
        per_position: scores are means over the positions of a query, so that scales with different
            grids mix as their weights say; False is the released code's plain sum.

    Raises:
        InputError: for what cannot be.
    """

    scales: Mapping[int, Sequence[Scale]] = field(default_factory=dict)
    top_k: int | None = 100
    borders: str = "match"
    draws: int = 1
    noise_seed: int = 0
    temperature: float = 1.0
    flips: bool = False
    per_position: bool = True

    def __post_init__(self) -> None:
        if not self.scales or not all(self.scales.values()):
            raise InputError(
                "scales must map at least one timestep to at least one scale, for example {100:"
                " [Scale(5)]}"
            )
        for timestep, scales in self.scales.items():
            check_timestep(timestep)
            if not isinstance(scales, Sequence) or not all(
                isinstance(scale, Scale) for scale in scales
            ):
                raise InputError(
                    f"scales must list Scale(patch, coarse, weight) at timestep {timestep}, not"
                    f" {scales!r}"
                )
        ordered = {t: tuple(self.scales[t]) for t in sorted(self.scales)}
        object.__setattr__(self, "scales", ordered)  # one order of the terms
        if isinstance(self.noise_seed, bool) or not isinstance(self.noise_seed, int):
            raise InputError(f"noise_seed must be an integer, not {self.noise_seed!r}")
        if isinstance(self.draws, bool) or not isinstance(self.draws, int) or self.draws < 0:
            raise InputError(f"draws must be an integer of at least 0, not {self.draws!r}")
        weights = [scale.weight for scales in self.scales.values() for scale in scales]
        if not all(sum(s.weight for s in scales) > 0 for scales in self.scales.values()):
            raise InputError(f"the weights of scales must not all be 0 at a timestep: {weights}")
        check_posterior(self.top_k, self.temperature)

    @classmethod
    def single(
        cls, patches: Mapping[int, int], *, coarse: bool = False, **settings: Any
    ) -> "NDAConfig":
        """One scale.

        Args:
            patches: the window of each timestep.
            coarse: whether windows are compared at half the resolution.
            settings: other fields of this class.

        Returns:
            The configuration.
        """
        return cls({t: (Scale(patch, coarse),) for t, patch in patches.items()}, **settings)

    @classmethod
    def two_scale(
        cls,
        patches: Mapping[int, int],
        coarse_patches: Mapping[int, int],
        scale_mix: float | Mapping[int, float],
        **settings: Any,
    ) -> "NDAConfig":
        """Full and coarse scale.

        Args:
            patches: the full scale's window of each timestep.
            coarse_patches: the coarse scale's.
            scale_mix: weight of the full one (papers: α_t), one number or one per timestep.
            settings: other fields of this class.

        Returns:
            The configuration.

        Raises:
            InputError: if the timesteps differ or the mix is not between 0 and 1.
        """
        if patches.keys() != coarse_patches.keys():
            raise InputError(
                f"patches and coarse_patches must have the same timesteps, not {[*patches]} and"
                f" {[*coarse_patches]}"
            )
        mix = scale_mix if isinstance(scale_mix, Mapping) else dict.fromkeys(patches, scale_mix)
        if mix.keys() != patches.keys() or not all(
            isinstance(share, int | float) and 0 <= share <= 1 for share in mix.values()
        ):
            raise InputError(
                f"scale_mix must be between 0 and 1 at every timestep, not {scale_mix}"
            )
        both = {
            t: (Scale(patches[t], False, mix[t]), Scale(coarse_patches[t], True, 1 - mix[t]))
            for t in patches
        }
        return cls(both, **settings)

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> "NDAConfig":
        """From a profile's mapping.

        Args:
            settings: fields of this class, with scales as `{timestep: [{patch: 7}, {patch: 14,
                coarse: true}]}`, or the settings of `single` or `two_scale`.

        Returns:
            The configuration.

        Raises:
            InputError: for unknown settings, or those that do not go together.
        """
        windows = ("patches", "coarse_patches", "scale_mix")
        if unknown := sorted(settings.keys() - {f.name for f in fields(cls)} - {*windows}):
            raise InputError(
                f"the NDA configuration has an unknown setting {unknown[0]!r}; give scales, or"
                f" {', '.join(windows)}"
            )
        given = {
            k: _by_timestep(k, v) if k in (*windows, "scales") else v for k, v in settings.items()
        }
        scales, patches, coarse, mix = (name in given for name in ("scales", *windows))
        if scales == patches or coarse != mix:
            raise InputError(
                "give scales, or patches, or patches with coarse_patches and scale_mix, not"
                f" {', '.join(given) or 'nothing'}"
            )
        if not scales:
            return cls.two_scale(**given) if mix else cls.single(**given)
        try:
            given["scales"] = {
                t: tuple(Scale(**scale) for scale in listed)
                for t, listed in given["scales"].items()
            }
        except (TypeError, AttributeError):
            raise InputError(
                "scales must map timesteps to lists such as [{patch: 7, weight: 0.5}], not"
                f" {given['scales']}"
            ) from None
        return cls(**given)

    def terms(self) -> Iterator[Term]:
        """Every posterior that a score is made of.

        Yields:
            Terms whose weights sum to 1.
        """
        noises: list[int | None] = list(range(self.draws)) or [None]
        for timestep, scales in self.scales.items():
            every = sum(scale.weight for scale in scales) * len(noises) * len(self.scales)
            yield from (
                Term(timestep, s, draw, s.weight / every)
                for s in scales
                if s.weight
                for draw in noises
            )

    def options(self, queries: Tensor, term: Term) -> dict[str, Any]:
        """Arguments of `patch_posterior` for a term.

        Args:
            queries: the images.
            term: one of `terms`.

        Returns:
            All but the images.
        """
        noise = None
        if term.draw is not None:
            noise = shared_noise(queries, term.timestep, self.noise_seed, term.draw)
        window = {"timestep": term.timestep, "patch": term.scale.patch, "coarse": term.scale.coarse}
        return window | {
            "top_k": self.top_k,
            "borders": self.borders,
            "temperature": self.temperature,
            "noise": noise,
        }

    def weight(self, term: Term, shape: Sequence[int]) -> float:
        """Of a term's `scores`.

        Args:
            term: one of `terms`.
            shape: of the images, `[…, row, col]`.

        Returns:
            The factor.
        """
        windows = Windows(shape[-2], shape[-1], term.scale.patch, term.scale.coarse, self.borders)
        return term.weight / (windows.positions if self.per_position else 1)


def _by_timestep(name: str, values: Any) -> Any:
    """With integers as keys: papermill writes those of dictionaries as strings."""
    if name == "scale_mix" and not isinstance(values, Mapping):
        if isinstance(values, bool) or not isinstance(values, int | float):
            raise InputError(
                f"scale_mix must be a number between 0 and 1 or one per timestep, not {values!r}"
            )
        return values
    keys = [str(key) for key in values] if isinstance(values, Mapping) else [""]
    if not all(key.isdecimal() for key in keys):
        raise InputError(f"{name} must map timesteps (integers) to values, not {values!r}")
    return dict(zip(map(int, keys), values.values(), strict=True))


# The paper's two scales and timesteps. Its text gives the windows of timestep 100, 7 and 14, and
# says that the best ones grow with the noise; the other windows and the mix are our guess.
PAPER = NDAConfig.two_scale(
    {100: 7, 200: 7, 300: 9, 400: 11, 500: 15}, {100: 14, 200: 14, 300: 18, 400: 22, 500: 30}, 0.5
)
