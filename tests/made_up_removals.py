"""Removals that were made up, for tests of what is said of them."""

import pandas as pd
import torch

from nda import rng

QUERIES, SETS, TRAIN = 5, 6, 30


def removals(results, own, curve=()):
    """Removals for `QUERIES` queries: `own` is what an arm does to its query, by its name; those in
    `curve` have taken away 20 images, too."""
    models = [("full", "none", 0, -1)]
    models += [("removed-random", "random", 6, -1)] * SETS
    models += [(f"removed-{arm}", arm, 6, q) for arm in own for q in range(QUERIES)]
    models += [("removed-random-20", "random", 20, -1)] * (SETS if curve else 0)
    models += [(f"removed-{arm}-20", arm, 20, q) for arm in curve for q in range(2)]
    table = pd.DataFrame(models, columns=["family", "arm", "k", "target"])
    draws = torch.rand(len(table), QUERIES, generator=rng.generator("removals made up"))
    changes = 0.02 * draws.double()
    for row, (_, arm, _, target) in enumerate(models):
        if target >= 0:
            changes[row, target] += own[arm]
    changes[0] = 0
    masks = torch.ones(len(models), TRAIN, dtype=torch.bool)
    masks[1:, :6] = False
    images = (128 + 100 * changes)[..., None, None, None].expand(-1, -1, 1, 4, 4).round().byte()
    parts = {"masks": masks, "images": images, "losses": changes, "outputs": changes**2}
    parts |= {"features": 1 - changes, "classes": torch.zeros(len(models), QUERIES).int()}
    for name, part in parts.items():
        axes = " ".join("abcde"[: part.ndim])
        results.save(f"counterfactual/{name}", part, axes=axes, inputs={"a": "b"})
    made = {"parameters": {"rows": list(range(QUERIES))}, "inputs": {"a": "b"}}
    results.save("counterfactual/models", table.assign(seed=0, seconds=2.0), **made)
