"""Does what was found on CIFAR-2 hold where nobody has tuned: on ten classes of photographs, on
digits, and for another architecture?

    python benchmarks/confirm.py --freeze
    NDA_DATA=/path/to/cifar10 python -m nda run --profile cifar10 --only 01 02 03
    python benchmarks/confirm.py cifar10
    python -m nda ship --profile cifar10 --without-checkpoints

The first command writes down the parameters of every profile of the confirmation and the settings
of every method. That was done, and committed, before any model was trained for them; what has been
written is never written over. The second makes the truth of a profile, the third scores with the
settings that were written down, and refuses if they are others now. Both go on where a killed run
was. The profiles are `cifar10`, `digits`, which needs no data, and `attention`.

Methods with gradients or curvature average over ten timesteps; D-TRAK and EK-FAC also over the
hundred that they have on `small`. Dampings are chosen as there: by the LDS on the `select` subsets
of the new truth, for the choosing half of the validation queries. Random-feature influence has
nothing to choose. CLIP, whose weights do not come with the book, has no row.
"""

import argparse
import json
from collections.abc import Iterator

import pandas as pd
import torch

from nda.artefact.notebooks import defaults, find, parameters
from nda.errors import InputError, check_choice
from nda.evidence import tuning
from nda.evidence.records import check_results, record
from nda.methods import CLIP, METHODS, MODELS, Method
from nda.rivals.bench import Bench
from nda.store import Store

PROFILES = ("cifar10", "digits", "attention")
FULL = ("d_trak", "ekfac")  # also at the timesteps that the profile names
FEW = {"K": 10}
FROZEN = Store.shipped("confirmation")


def methods() -> list[Method]:
    """What is scored, the quick ones first.

    Returns:
        Methods of the catalogue, in their variants.
    """
    fits = [m for m in METHODS.values() if m.needs not in (CLIP, MODELS)]
    few = [m.varied(**FEW) if m.opens_model else m for m in fits]
    return sorted(few, key=lambda m: m.opens_model) + [METHODS[key] for key in FULL]


def settings(profile: str) -> Iterator[dict[str, str]]:
    """All that decides what is found.

    Args:
        profile: its name.

    Yields:
        A row for the parameters of the truth, and one per method.
    """
    given = parameters(profile)
    makes = {name for notebook in ("01", "02", "03") for name in defaults(find(notebook))}
    truth = {name: given[name] for name in sorted(makes - {"profile", "device", "workers"})}
    yield {"profile": profile, "what": "truth", "settings": json.dumps(truth), "dampings": "[]"}
    for method in methods():
        made, tried = method.settings(given), method.tried(given)
        row = {"what": method.name, "settings": json.dumps(made), "dampings": json.dumps(tried)}
        yield {"profile": profile} | row


def check(profile: str) -> None:
    """That settings are those that were written down.

    Args:
        profile: its name.

    Raises:
        InputError: naming the first that is not.
    """
    frozen = FROZEN.load("settings").set_index(["profile", "what"])
    for row in settings(profile):
        if frozen.loc[(profile, row["what"])].to_dict() != {k: row[k] for k in frozen.columns}:
            raise InputError(
                f"settings of {row['what']} for {profile} are not those that were frozen in"
                f" {FROZEN.folder}; undo what has changed them"
            )


def score(profile: str) -> None:
    """Score and record every method that has not been recorded.

    Args:
        profile: its name.
    """
    check(profile)
    store, results = Store.working(profile), Store.results(profile)
    bench = Bench(store, parameters(profile), choose=tuning.chooser(results))
    for method in methods():
        for which in method.which:
            if f"effects/{method.name}-{which}" not in results:
                found = METHODS[method.key].score(bench, which, **method.variant)
                record(found, store=store, results=results)
                print(f"{found.name} {found.seconds:.0f} s", flush=True)
    check_results(results)


def main() -> None:
    """Parse the command line and do it."""
    root = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    root.add_argument("profile", nargs="?", help=", ".join(PROFILES))
    root.add_argument("--freeze", action="store_true", help="write the settings down")
    asked = root.parse_args()
    torch.set_num_threads(1)  # the same bits on every number of cores
    if asked.freeze:
        rows = pd.DataFrame([row for profile in PROFILES for row in settings(profile)])
        FROZEN.save("settings", rows, parameters={"profiles": PROFILES}, inputs={})
        print(FROZEN.sha256("settings")["settings"])
    else:
        check_choice("profile", asked.profile, PROFILES)
        score(asked.profile)


if __name__ == "__main__":
    main()
