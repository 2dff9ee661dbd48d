"""What methods predicted, kept among the results of a profile, and whether all of it belongs
together."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from nda.errors import InputError
from nda.evidence.truth import REPORT, Truth, group_effects
from nda.methods import METHODS, Method, Result, recorded
from nda.store import Store, digest_json


def runs(results: Store) -> dict[str, Method]:
    """All that a table of a results folder may have a row for, in the order of the catalogue: the
    runs that are recorded for any queries, and the references that are fitted to retrained models.

    Args:
        results: the results store.

    Returns:
        The method, with its variant, label and colour, by the name of the run.
    """
    found = {key: method for key, method in METHODS.items() if method.takes == "losses"}
    for which in REPORT:
        found |= recorded(results, which)
    order = list(METHODS)
    return dict(sorted(found.items(), key=lambda run: (order.index(run[1].key), run[0])))


def recorded_effects(results: Store, truth: Truth) -> dict[str, Float[Tensor, "subset query"]]:
    """What the methods predict whose effects are among the results.

    Args:
        results: the results store that the truth is from.
        truth: of the `report` masks.

    Returns:
        Effects on the queries that count, in float64, by the name of the run (see
        `nda.methods.recorded`), in the order of the tables.
    """
    found = {}
    for name in recorded(results, truth.which):
        effects = results.load(f"effects/{name}-{truth.which}", "subset query")
        found[name] = effects[:, truth.rows].double()
    return found


def check_results(results: Store) -> None:
    """That the files of a results folder are as they were written and belong together: the same
    masks, images, recipe and model behind losses and effects, and each under its own name.

    Args:
        results: the folder.

    Raises:
        InputError: naming the file that was changed, or that does not belong to the others.
    """
    claims: dict[str, dict[str, list[str]]] = {}  # of what, which hash, said by whom
    for name in results.used_as("results").names():
        results.read(name)
        info = results.info(name)
        said = info["inputs"] | results.sha256(name)
        if "recipe" in info["parameters"]:
            said["recipe"] = digest_json(info["parameters"]["recipe"])
        for lacking in sorted(_needed(name, info["parameters"]) - said.keys()):
            raise InputError(
                f"{name} in {results.folder} does not say from which {lacking} it was computed; it"
                " is from another version, delete it and compute it again"
            )
        for what, sha256 in said.items():
            claims.setdefault(what, {}).setdefault(sha256, []).append(name)
    for what, hashes in claims.items():
        *others, most = sorted(hashes.values(), key=len)
        for names in others:
            odd = names[0] if len(names) < len(most) else _last(names[0], most[0])
            peer = most[0] if odd != most[0] else names[0]
            raise InputError(
                f"{odd} in {results.folder} does not belong with {peer}: it is or was computed from"
                f" another {what}; copy the whole folder again, or delete {odd} and compute it"
                " again"
            )


def _needed(name: str, parameters: Mapping[str, Any]) -> set[str]:
    """What a result among the results must name among its inputs."""
    kind, _, rest = name.partition("/")
    family, _, which = rest.rpartition("-")
    if kind == "losses":
        return {f"masks/{family}", "train", which, "recipe"}
    if kind != "effects":
        return set()
    method = METHODS.get(parameters.get("method", ""))
    if method is None or method.varied(**parameters["variant"]).name != family:
        raise InputError(
            f"{name} holds what its sidecar does not say, effects of"
            f" {parameters.get('method', 'no method')!r}; delete it and record it again"
        )
    model = {"model", "recipe"} if method.opens_model else set()
    return {"masks/report", "train", which} | model


def _last(*names: str) -> str:
    """Of files that contradict each other, the one that was made from the other kind of file."""
    kinds = ("masks", "model", "gen", "losses", "effects", "")
    return max(names, key=lambda name: [name.startswith(kind) for kind in kinds].index(True))


def record(result: Result, *, store: Store, results: Store) -> None:
    """Keep what a method found: `scores/<name>` in the working store and `effects/<name>`
    `[subset, query]`, on the `report` masks, among the results, each with the record that the
    method has written.

    Args:
        result: of `nda.methods.Method.score`.
        store: the working store.
        results: the results store, with `masks/report`.
    """
    made: dict[str, Any] = {"parameters": result.parameters, "seconds": result.seconds}
    masks = results.used_as("results").load("masks/report", "subset train")
    effects = group_effects(result.scores, masks)
    store.used_as("working").save(
        f"scores/{result.name}", result.scores, axes="query train", inputs=result.inputs, **made
    )
    results.save(
        f"effects/{result.name}",
        effects.float(),
        axes="subset query",
        inputs={**results.sha256("masks/report"), **result.inputs},
        **made,
    )
