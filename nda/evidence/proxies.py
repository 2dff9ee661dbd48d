"""How much of what gradients say needs the model that they are asked about? The same methods on
models that stand in for it: untrained, partly trained, from another seed, of another shape."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from nda.evidence import tuning
from nda.evidence.truth import truth_inputs, truths
from nda.methods import METHODS, WHICH, Method
from nda.model import training
from nda.model.unet import Recipe
from nda.rivals.bench import Bench
from nda.store import Store

TARGET = "the target"


@dataclass(frozen=True)
class Proxy:
    """A model that stands in for the target.

    recipe, train_seed: of its training. share: of that training which it has had; between 0 and 1
    it is a checkpoint of the target.
    """

    name: str
    recipe: Recipe
    train_seed: int
    share: float = 1.0


def proxies(
    recipe: Recipe, train_seed: int, shapes: Mapping[str, Mapping[str, Any]]
) -> list[Proxy]:
    """The models that are compared, the target first.

    Args:
        recipe: of the target.
        train_seed: of the target.
        shapes: changes to its U-Net, by the name of the proxy.

    Returns:
        The target, its checkpoints, itself untrained, trained from the next seed, and in the other
        shapes.
    """
    parts = [
        Proxy(f"{share:.0%} of its training".replace("%", " %"), recipe, train_seed, share)
        for share in recipe.checkpoints[:-1]
    ]
    others = [
        Proxy(name, replace(recipe, unet={**recipe.unet, **changes}), train_seed)
        for name, changes in shapes.items()
    ]
    untrained = Proxy("untrained", recipe, train_seed, 0.0)
    another = Proxy("another seed", recipe, train_seed + 1)
    return [Proxy(TARGET, recipe, train_seed), *parts[::-1], untrained, another, *others]


def stand_in(proxy: Proxy, store: Store) -> Store:
    """A working store in which the proxy is the model, beside the images of the target's.

    A proxy that has to be trained is trained once.

    Args:
        proxy: what stands in.
        store: with images, the target and its checkpoints.

    Returns:
        The store, `proxies/<name>` in the target's.
    """
    place = Store(store.folder / "proxies" / proxy.name.replace(" ", "-"), role="working")
    for kind in ("train", *WHICH):
        inputs, loaded = store.sha256(kind), partial(store.load, kind)
        place.kept(kind, loaded, axes="image chan row col", parameters={}, inputs=inputs)
    made = {"recipe": asdict(proxy.recipe), "train_seed": proxy.train_seed, "share": proxy.share}
    inputs = store.sha256("train")
    if kept := _kept(proxy):
        inputs["target"] = store.sha256(kept)[kept]
    place.kept("model", partial(_weights, proxy, store), parameters=made, inputs=inputs)
    return place


def _kept(proxy: Proxy) -> str:
    """The name of the weights, if they are the target's own."""
    if proxy.name == TARGET:
        return "model"
    return f"model-{round(100 * proxy.share)}" if 0 < proxy.share < 1 else ""


def _weights(proxy: Proxy, store: Store) -> dict[str, Tensor]:
    if kept := _kept(proxy):  # checkpoints may be in 16 bits
        return {name: value.float() for name, value in store.load(kept).items()}
    images = store.load("train", "image chan row col")
    if not proxy.share:
        return proxy.recipe.build(proxy.train_seed, images.shape).state_dict()
    *_, last = training.train(images, proxy.recipe, train_seed=proxy.train_seed)
    return last.weights


def table(
    store: Store,
    results: Store,
    parameters: Mapping[str, Any],
    tried: Sequence[Proxy],
    methods: Sequence[Method],
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """What every method scores with every proxy's gradients in place of the target's. Each chooses
    its own damping on the `select` subsets.

    Args:
        store: the working store, with images, queries, the target and its checkpoints.
        results: masks and losses.
        parameters: of the profile.
        tried: of `proxies`, the target first.
        methods: in their variants.
        device: where images and models go.

    Returns:
        A row per proxy, method and kind of queries: parameters of the proxy, its training seconds
        where it was trained for this, seconds of the method, damping, and the columns of
        `nda.evidence.lds.summary` on `report` subsets, gains being over the target.
    """
    scores: dict[tuple[str, str], dict[str, Tensor]] = {}
    rows = []
    for proxy in tqdm(tried, desc="proxies", unit="proxy", leave=False):
        place = stand_in(proxy, store)
        bench = Bench(place, parameters, device=device, choose=tuning.chooser(results))
        size = sum(p.numel() for p in bench.model().parameters())
        own = place.info("model")["seconds"] if proxy.share and not _kept(proxy) else 0.0
        for method in methods:
            for which in WHICH:
                name = _score(bench, place, results, parameters, method, which)
                scores.setdefault((method.name, which), {})[proxy.name] = place.load(name)
                row = {"proxy": proxy.name, "method": method.name, "queries": which}
                row |= {"parameters": size, "training": own}
                rows.append(row | place.info(name)["notes"])
    judged = {
        (method, which): truths(results, which)["report"]
        .summary(by_proxy, reference=tried[0].name)
        .set_index("method")
        for (method, which), by_proxy in scores.items()
    }
    return pd.DataFrame(
        row | judged[row["method"], row["queries"]].loc[row["proxy"]].to_dict() for row in rows
    )


def _score(
    bench: Bench,
    place: Store,
    results: Store,
    parameters: Mapping[str, Any],
    method: Method,
    which: str,
) -> str:
    """The name in `place` of scores, which are computed once."""
    name, notes = f"scores/{method.name}-{which}", dict[str, Any]()

    def make() -> Tensor:
        found = METHODS[method.key].score(bench, which, **method.variant)
        notes.update(scoring=found.seconds, damping=found.choice and found.choice.damping)
        return found.scores

    made = {"settings": method.settings(parameters), "dampings": method.tried(parameters)}
    inputs = place.sha256("train", which, "model") | truth_inputs(results)
    place.kept(name, make, axes="query train", parameters=made, inputs=inputs, notes=notes)
    return name
