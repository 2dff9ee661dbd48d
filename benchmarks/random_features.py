"""What does random-feature influence owe to each of its choices, and how does its time grow? One
choice is changed at a time; `select` subsets and the choosing half of the queries judge, `report`
plays no part.

    NDA_DATA=/path/to/cifar10 python -m nda run --profile small --only 01
    python benchmarks/random_features.py [--only networks] [--ready]
    python benchmarks/random_features.py --gate
    python benchmarks/random_features.py --time 200 2000 50000 --side 8
    python benchmarks/random_features.py --ship

The first command stores the train images and the validation queries of the profile `small`. The
second adds one row after another to `data/random_features/`: a killed run goes on by the same
command, and a setting whose row is there is not computed again. `--ready` prints the rows that are
there. The third asks what the gate does. The fourth measures seconds per 1,000 train images on
made-up images, of the smallest number of timesteps that shows them: one. The fifth puts all of it
beside the results of `small`.
"""

import argparse
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from time import process_time
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from nda import rng
from nda.artefact.notebooks import parameters
from nda.evidence.bands import bands, slopes
from nda.evidence.truth import Truth
from nda.methods import METHODS
from nda.nonparametric.patches import shared_noise
from nda.nonparametric.random_features import (
    SIDE,
    TIMESTEPS,
    RandomFeatures,
    Task,
    directions,
    gate,
    gate_distances,
    moments,
    residual_products,
    rfi_scores,
    trapezoid,
)
from nda.store import Store

WHICH = ("val", "gen")
GATES = ("none", "pixels", "features", "NDA mass")  # what the gate opens on ...
SHAPES: dict[str, Callable[[Tensor], Tensor]] = {  # ... and how
    "leaky": lambda factors: 1 + factors,
    "twice as steep": torch.square,
    "half as steep": torch.sqrt,
}
THIRDS = ("nearest", "middle", "farthest")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "leaky relu": F.leaky_relu,
    "tanh": torch.tanh,
    "none": lambda values: values,
}


@dataclass(frozen=True)
class Setting:
    """The choices that are not the gate's; the defaults are those of the method."""

    widths: tuple[int, ...] = (128, 256)
    kernel: int = SIDE
    norm: str = "group"  # or "none", "layer" (all channels together), "instance" (each alone)
    activation: str = "silu"
    pixels: bool = True  # whether the features have those of the noisy window
    padding: str = "constant"
    networks: int = 1
    timesteps: tuple[int, ...] = TIMESTEPS
    weights: str = "trapezoid"
    damping: float = 3e-3
    flips: bool = True
    draws: int = 1
    noise: str = "one"  # "two": one for the queries, one for the train images


@dataclass(frozen=True)
class Variant:
    """A random network as a setting has it. With the defaults it is `RandomFeatures`."""

    kernels: tuple[Tensor, ...]
    setting: Setting

    def __call__(self, images: Tensor) -> Tensor:
        """The features of every pixel.

        Args:
            images: with or without noise.

        Returns:
            `[image, pixel, dim]`.
        """
        made, around = self.setting, [self.setting.kernel // 2] * 4
        window = F.unfold(F.pad(images, [SIDE // 2] * 4, mode=made.padding), SIDE).mT
        layers, seen = [window] if made.pixels else [], images
        for kernel in self.kernels:
            seen = F.conv2d(F.pad(seen, around, mode=made.padding), kernel.to(images))
            groups = {"group": 8, "layer": 1, "instance": seen.shape[1]}
            if made.norm != "none":
                seen = F.group_norm(seen, groups[made.norm])
            seen = ACTIVATIONS[made.activation](seen)
            layers.append(seen.permute(0, 2, 3, 1).flatten(1, 2))
        return torch.cat([*layers, torch.ones_like(window[..., :1])], 2)


def network(setting: Setting, number: int) -> RandomFeatures | Variant:
    """A random network.

    Args:
        setting: its choices.
        number: names its weights.

    Returns:
        Features of the noisy image.
    """
    plain = RandomFeatures.draw(3, setting.widths, number)
    how = {name: getattr(setting, name) for name in ("norm", "activation", "pixels", "padding")}
    if setting.kernel == SIDE and all(getattr(Setting, name) == how[name] for name in how):
        return plain
    kernels = []
    for layer, kernel in enumerate(plain.kernels):
        shape = (*kernel.shape[:2], setting.kernel, setting.kernel)
        source = rng.generator("random features", number, layer)
        drawn = torch.randn(shape, generator=source)
        kernels.append(drawn / drawn[0].numel() ** 0.5)
    return Variant(tuple(kernels), setting)


def weights(setting: Setting) -> list[float]:
    """Of the timesteps.

    Args:
        setting: with `trapezoid`, `equal`, or `noise`: the trapezoid rule's times t.

    Returns:
        Weights that sum to 1.
    """
    if setting.weights == "equal":
        return [1 / len(setting.timesteps)] * len(setting.timesteps)
    found = trapezoid(setting.timesteps)
    if setting.weights == "noise":
        found = [w * t for w, t in zip(found, setting.timesteps, strict=True)]
    return [w / sum(found) for w in found]


def scores(queries: Tensor, train: Tensor, setting: Setting) -> Tensor:
    """`rfi_scores` with any setting.

    Args:
        queries: pixels in [-1, 1].
        train: pixels in [-1, 1].
        setting: the choices.

    Returns:
        Scores `[query, train]`.
    """
    found = torch.zeros(len(queries), len(train)).double()
    for number in range(setting.networks):
        features = network(setting, number)
        for timestep, weight in zip(setting.timesteps, weights(setting), strict=True):
            task, asked = (
                Task(features, timestep, torch.stack(noise), setting.flips)
                for noise in (
                    [shared_noise(train, timestep, seed, draw) for draw in range(setting.draws)]
                    for seed in (0, int(setting.noise == "two"))
                )
            )
            fit, damping = moments(train, task), setting.damping
            towards = directions(queries, asked, fit, damping)
            products = residual_products(train, task, fit.readout(damping))
            found += weight * towards.flatten(1) @ products.flatten(1).T
    return found


def steps(count: int) -> tuple[int, ...]:
    """Timesteps from 12 to 460 whose distances grow evenly.

    Args:
        count: how many.

    Returns:
        They.
    """
    ends = torch.linspace(12**0.5, 460**0.5, count).square().round().int()
    return tuple(ends.tolist())


def changes() -> Iterator[tuple[str, str, Setting]]:
    """What is tried.

    Yields:
        The choice, its value and the setting.
    """
    tried: dict[str, Sequence[Any]] = {
        "networks": (2, 3),
        "widths": ((), (128,), (256,), (64, 128), (128, 128), (128, 256, 256), (256, 512)),
        "damping": (3e-4, 1e-3, 1e-2, 3e-2),
        "norm": ("none", "layer", "instance"),
        "activation": ("relu", "leaky relu", "tanh", "none"),
        "kernel": (1, 5),
        "flips": (False,),
        "noise": ("two",),
        "draws": (2, 4),
        "padding": ("reflect",),
        "pixels": (False,),
        "timesteps": (steps(3), steps(6), (44,), (82,), (162,), (345,), (*TIMESTEPS, 600, 800)),
        "weights": ("equal", "noise"),
    }
    yield "as it is", "", Setting()
    for name, values in tried.items():
        for value in values:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            yield name, shown or "none", replace(Setting(), **{name: value})


def row_name(choice: str, value: str) -> str:
    """Of a file.

    Args:
        choice: what is changed.
        value: to what.

    Returns:
        The name.
    """
    return f"{choice} {value}".strip().replace(" ", "-")


def distances(kind: str, queries: Tensor, train: Tensor) -> Tensor:
    """What a gate opens on.

    Args:
        kind: of `GATES`, but "none".
        queries: pixels in [-1, 1].
        train: pixels in [-1, 1].

    Returns:
        `[query, train]`.
    """
    if kind == "pixels":
        flips = (train, train.flip(-1))
        return torch.minimum(*(torch.cdist(queries.flatten(1), x.flatten(1)) for x in flips))
    if kind == "features":
        return gate_distances(queries, train, RandomFeatures.draw(3, Setting.widths))
    method = METHODS["nda_two_scale"]
    mass = method.function(queries, train, **method.settings(parameters("small")))
    return -mass.clamp_min(1e-12).log()


class Trial:
    """Images, truths and rows.

    Args:
        store: where rows are kept.
    """

    def __init__(self, store: Store):
        images = Store.working("small")
        self.store, self.train = store, images.load("train", "image chan row col")
        generated = Store.shipped("small").load("gen", "image chan row col").float() / 127.5 - 1
        self.queries = {"val": images.load("val", "image chan row col"), "gen": generated}
        self.truths = {which: Truth.load("small", "select", which) for which in WHICH}
        self.inputs = images.sha256("train", "val") | Store.shipped("small").sha256("gen")

    def scores(self, name: str, setting: Setting) -> dict[str, Tensor]:
        """The scores of both kinds of queries, kept.

        Args:
            name: of the setting.
            setting: its choices.

        Returns:
            By the name of the queries.
        """

        def make() -> Tensor:
            return scores(torch.cat([*self.queries.values()]), self.train, setting)

        made: dict[str, Any] = {"parameters": asdict(setting), "inputs": self.inputs}
        found = self.store.kept(f"scores/{name}", make, axes="query train", **made)
        sizes = [len(queries) for queries in self.queries.values()]
        return dict(zip(self.queries, found.split(sizes), strict=True))

    def gates(self, kind: str) -> dict[str, Tensor]:
        """The factors of a gate, from distances that are kept.

        Args:
            kind: of `GATES`, and maybe after a comma its shape.

        Returns:
            By the name of the queries.
        """
        kind, _, shape = kind.partition(", ")
        found: dict[str, Tensor] = {}
        for which, queries in self.queries.items():
            if kind == "none":
                found[which] = torch.ones(len(queries), len(self.train))
                continue
            file = f"distances/{kind.replace(' ', '-')}-{which}"

            def make(queries: Tensor = queries) -> Tensor:
                return distances(kind, queries, self.train)

            made: dict[str, Any] = {"parameters": {"kind": kind}, "inputs": self.inputs}
            factors = gate(self.store.kept(file, make, axes="query train", **made).double())
            found[which] = SHAPES[shape](factors) if shape else factors
        return found

    def row(self, name: str, setting: Setting, kind: str) -> pd.DataFrame:
        """LDS with its interval, and the gain over the method as it is with the same gate; of the
        method as it is, over its own gate.

        Args:
            name: of the setting.
            setting: its choices.
            kind: the gate.

        Returns:
            One row per kind of queries, in percent.
        """
        factors, found = self.gates(kind), self.scores(name, setting)
        usual = self.scores("as-it-is", Setting())
        beside = self.gates("features") if name == "as-it-is" else factors
        rows = []
        for which, truth in self.truths.items():
            both = {
                "it": found[which] * factors[which],
                "usual": usual[which] * beside[which],
            }
            table = truth.summary(both, reference="usual").set_index("method")
            rows.append({"queries": which, "gate": kind, **table.loc["it"].round(2)})
        return pd.DataFrame(rows)

    def table(self, choice: str, value: str, setting: Setting) -> pd.DataFrame:
        """The rows of a setting, with and without the gate; all gates for the method as it is.

        Args:
            choice: what is changed.
            value: to what.
            setting: the choices.

        Returns:
            The rows, kept.
        """
        name = row_name(choice, value)

        def make() -> pd.DataFrame:
            kinds: tuple[str, ...] = ("none", "features")
            if name == "as-it-is":
                kinds = (*GATES, *(f"features, {shape}" for shape in SHAPES))
            found = pd.concat([self.row(name, setting, kind) for kind in kinds])
            found.insert(0, "choice", choice)
            found.insert(1, "value", value or "-")
            return found

        made: dict[str, Any] = {"parameters": asdict(setting), "inputs": self.inputs}
        return self.store.kept(f"rows/{name}", make, **made)


def known(scores: Tensor, factors: Tensor) -> dict[str, Tensor]:
    """Scores with gates that know less than the gate does, and parts of the scores.

    Args:
        scores: without a gate.
        factors: of the gate.

    Returns:
        Scores by what was done to them; the first two are without and with the gate.
    """
    source, thirds = rng.generator("gates"), bands(-factors)  # the gate falls with the distance
    mixed = torch.rand(factors.shape, generator=source).argsort(1)
    strangers = torch.randperm(len(factors), generator=source)
    common = scores.mean(0, keepdim=True)
    found = {"no gate": torch.ones_like(scores), "the gate": factors}
    found["shuffled among the train images"] = factors.gather(1, mixed)
    found["that of another query"] = factors[strangers]
    found["its mean over the queries"] = factors.mean(0, keepdim=True)
    found |= {f"{name} third alone": 1.0 * (thirds == i) for i, name in enumerate(THIRDS)}
    found = {name: scores * by for name, by in found.items()}
    found["on what queries share, alone"] = scores + (factors - 1) * common
    found["on all but what they share"] = common + factors * (scores - common)
    return found


def explain(trial: Trial) -> dict[str, pd.DataFrame]:
    """What the gate does: scores with other gates, and how much of the scores of each third of the
    train images comes true. A gate of three factors, those of the other kind of queries, is tried,
    too.

    Args:
        trial: images and truths.

    Returns:
        LDS in percent, gains over no gate (`gate`); slopes (`thirds`).
    """
    found, gates = trial.scores("as-it-is", Setting()), trial.gates("features")
    near = {which: bands(-factors) for which, factors in gates.items()}
    true = {w: slopes(truth, found[w], near[w]) for w, truth in trial.truths.items()}
    rows, thirds = [], []
    for which, other in zip(WHICH, WHICH[::-1], strict=True):
        truth, step = trial.truths[which], torch.tensor(true[other]["slope"].to_numpy())
        tried = known(found[which], gates[which])
        tried["slopes of the other queries"] = found[which] * step[near[which]]
        for kind, judge in {"plain": truth, "centred": truth.centred()}.items():
            table = judge.summary(tried, reference="no gate").rename(columns={"method": "scores"})
            rows.append(table.round(2).assign(queries=which, kind=kind))
        factors = [gates[which][truth.rows][near[which][truth.rows] == i].mean() for i in range(3)]
        thirds.append(true[which].assign(queries=which, gate=[f.item() for f in factors]))
    return {"gate": pd.concat(rows), "thirds": pd.concat(thirds).assign(band=[*THIRDS] * 2)}


def ship(trial: Trial) -> None:
    """Put the rows beside the results of `small`.

    Args:
        trial: images, truths and rows.
    """
    results = Store.shipped("small")
    losses = [f"losses/select-{which}" for which in WHICH]
    made: dict[str, Any] = {"inputs": trial.inputs | results.sha256("masks/select", *losses)}
    names = [row_name(choice, value) for choice, value, _ in changes()]
    rows = [trial.store.load(f"rows/{name}") for name in names]
    made["parameters"] = asdict(Setting())
    results.save("ablations/beyond", pd.concat(rows), **made)
    for name in ("gate", "thirds"):
        results.save(f"beyond/{name}", trial.store.load(name), **made)
    cost = trial.store.info("cost")["parameters"]
    results.save("beyond/cost", trial.store.load("cost"), parameters=cost, inputs={})


def clock(counts: Sequence[int], side: int) -> pd.DataFrame:
    """The time and memory of one timestep with the gate, for ten queries.

    Args:
        counts: of train images, ascending, because the peak of the memory never falls.
        side: of the images in pixels.

    Returns:
        A row per count: CPU seconds, these per 1,000 images, and the rise of the peak in MB.
    """
    rows = []
    for count in counts:
        source = rng.generator("benchmark", count)
        images = 2 * torch.rand(count + 10, 3, side, side, generator=source) - 1
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = process_time()
        rfi_scores(images[:10], images[10:], timesteps=(162,), gated=True)
        took = process_time() - started
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        row = {"train images": count, "CPU seconds": took, "per 1,000": 1000 * took / count}
        rows.append(row | {"memory, MB": more})
        print(row, flush=True)
    return pd.DataFrame(rows).round(2)


def main() -> None:
    """Print rows as they are found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="a choice, such as damping")
    parser.add_argument("--ready", action="store_true", help="print the rows that are there")
    parser.add_argument("--gate", action="store_true", help="ask what the gate does")
    parser.add_argument("--ship", action="store_true", help="put all of it among the results")
    parser.add_argument("--time", type=int, nargs="+", help="numbers of train images")
    parser.add_argument("--side", type=int, default=16, help="of timed images, in pixels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = Store.working("random_features")
    if options.time:
        made = {"side": options.side, "timesteps": 1, "queries": 10}
        store.save("cost", clock(options.time, options.side), parameters=made, inputs={})
        return
    if options.ready:
        rows = [store.load(name) for name in store.names() if name.startswith("rows/")]
        print(pd.concat(rows).to_string(index=False) if rows else "no row yet")
        return
    trial = Trial(store)
    if options.gate:
        for name, table in explain(trial).items():
            store.save(name, table, parameters=asdict(Setting()), inputs=trial.inputs)
            print(table.to_string(index=False))
        return
    if options.ship:
        return ship(trial)
    for choice, value, setting in changes():
        if options.only in (None, choice):
            print(trial.table(choice, value, setting).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
