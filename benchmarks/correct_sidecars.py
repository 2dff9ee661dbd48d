"""Put right what the sidecars of `data/results/small` say, without touching a single array.

    export NDA_HOME=/some/empty/folder NDA_DATA=/path/to/cifar10-jpeg.tar.xz
    python -m nda run --profile small --only 01   # the images, whose hashes are to be recorded
    python benchmarks/correct_sidecars.py

Until November 2026 one readout was written beside every method's effects, whatever the method had
differentiated; no damping was written; and losses and effects named the masks among their inputs,
but not the images, the model and its recipe. The settings are derived from the catalogue of methods
and the profile; the hashes from images that are drawn again, of which the shipped masks, indices
and fingerprints say that they are the same. Dampings that were used cannot be derived: they were
not recorded. A sidecar that is right already stays as it is, so that a second run does nothing.
"""

from dataclasses import fields
from typing import Any

from nda.artefact import notebooks, release
from nda.errors import InputError
from nda.evidence.ablations import gradients
from nda.evidence.records import check_results
from nda.evidence.truth import FAMILIES, REPORT, truth_inputs
from nda.methods import METHODS, Method
from nda.rivals.gradients import Readout
from nda.rivals.projection import Projection
from nda.store import COPIED, Store, digest_json

DATE = "2026-11-25"
PROFILE = "small"
REASONS = {
    "effects": "settings and inputs were not those of the method; damping was not written",
    "losses": "inputs named the masks alone",
    "ablations": "inputs were missing; of the gradients, output and length were not each method's",
    "model": "inputs named only what it is a copy of",
}
CHOSEN_ON = {"val": "select, choosing half of val", "gen": "select, all of gen"}


def hashes(results: Store) -> dict[str, str]:
    """What the results were computed from: images, model and recipe.

    Args:
        results: the shipped ones.

    Returns:
        The sha256 of each by its name among `inputs`.

    Raises:
        InputError: if the images in the working store are not those of the results.
    """
    store, drawn = Store.working(PROFILE), Store.results(PROFILE)
    for name in (*(f"masks/{family}" for family in FAMILIES), "indices", "fingerprints"):
        ours, theirs = drawn.info(name), results.info(name)
        if any(ours[key] != theirs[key] for key in ("sha256", "parameters")):
            raise InputError(
                f"{name} of the images in {store.folder} is not that of {results.folder}; draw them"
                " from the archive that PROVENANCE.md names"
            )
    recipe = results.info("model")["parameters"]["recipe"]
    found = store.sha256("train", "val") | results.sha256("gen", "model")
    return found | {"recipe": digest_json(recipe)}


def run_of(name: str) -> tuple[Method, str]:
    """The method, in its variant, and the queries of effects, from their name: the only place where
    they were written.

    Args:
        name: in the results, `effects/<method>-<which>`.

    Returns:
        The method, and the name of the queries.
    """
    key, *variant, which = name.removeprefix("effects/").split("-")
    return METHODS[key].varied(**({"K": int(variant[0][1:])} if variant else {})), which


def effects(name: str, sha256: dict[str, str], results: Store) -> dict[str, Any]:
    """The true parameters and inputs of one method's effects.

    Args:
        name: in the results.
        sha256: of `hashes`.
        results: the shipped ones.

    Returns:
        What is to be written.
    """
    method, which = run_of(name)
    given = notebooks.parameters(PROFILE)
    used = ["train", which, *(["model", "recipe"] if method.opens_model else [])]
    tried = method.tried(given)
    chosen_on = CHOSEN_ON["val" if "val" in method.which else which]
    damping = {"value": "not recorded", "tried": tried, "chosen_on": chosen_on} if tried else None
    return {
        "parameters": {
            "method": method.key,
            "variant": dict(method.variant),
            "settings": method.settings(given),
            "damping": damping,
        },
        "inputs": results.sha256("masks/report") | {name: sha256[name] for name in used},
    }


def gradient_ablations(results: Store) -> dict[str, Any]:
    """The parameters of the gradient ablations, as their notebook writes them today.

    Args:
        results: the shipped ones.

    Returns:
        The parameters.
    """
    said = results.info("ablations/gradients")["parameters"]
    readout = Readout(timesteps=said["timesteps"], noise_seed=said["noise_seed"])
    projection = Projection(said["projection_dim"]) if said["projection_dim"] else None
    grid = gradients.Grid(**{field.name: said[field.name] for field in fields(gradients.Grid)})
    return gradients.record(readout, projection, grid)


def main() -> None:
    """Write what differs, and if anything does, the page of provenance."""
    results = Store.shipped(PROFILE)
    sha256, right = hashes(results), {}
    for name in results.names():
        kind, _, rest = name.partition("/")
        if kind == "effects":
            right[name] = effects(name, sha256, results)
        elif kind == "losses":
            family, which = rest.split("-")
            used = {key: sha256[key] for key in ("train", which, "recipe")}
            right[name] = {"inputs": results.sha256(f"masks/{family}") | used}
        elif kind == "ablations":
            model = ("model", "recipe") if rest in ("gradients", "curvature") else ()
            used = {key: sha256[key] for key in ("train", *REPORT, *model)}
            right[name] = {"inputs": truth_inputs(results) | used}
        elif kind in ("gen", "model") or kind.startswith("model-"):
            source = "model" if kind == "gen" else "train"
            copied = {COPIED.format(kind): results.info(kind)["inputs"][COPIED.format(kind)]}
            right[name] = {"inputs": {source: sha256[source]} | copied}
    right["ablations/gradients"]["parameters"] = gradient_ablations(results)
    wrong = 0
    for name, changed in right.items():
        reason = REASONS[name.split("/")[0].split("-")[0].replace("gen", "model")]
        wrong += results.correct(name, date=DATE, reason=reason, **changed)
    check_results(results)
    print(f"{wrong} of {len(right)} sidecars were wrong")
    if wrong:
        results.write("PROVENANCE.md", release.provenance(PROFILE, results))


if __name__ == "__main__":
    main()
