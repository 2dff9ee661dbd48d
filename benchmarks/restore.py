"""Put what is shipped of `data/results/small` back into a working folder, so that scores and
ablations can be computed again from the model that all shipped numbers are about, without training.

    export NDA_HOME=/some/empty/folder NDA_DATA=/path/to/cifar10-jpeg.tar.xz
    python -m nda run --profile small --only 01     # the images
    python benchmarks/restore.py                    # the model, generated queries, masks and losses
    python -m nda run --profile small --only 05 06 08b

Checkpoints were shipped in 16 bits; all else comes back bit for bit, and the script says so.
"""

from typing import Any

from torch import Tensor

from nda.errors import InputError
from nda.store import COPIED, Store

PROFILE = "small"


def original(name: str, value: Any) -> Tensor | dict[str, Tensor]:
    """A shipped copy as the working store had it.

    Args:
        name: of the result.
        value: of the shipped results.

    Returns:
        Images in [-1, 1], or weights in 32 bits.
    """
    if isinstance(value, Tensor):
        return value.float() / 127.5 - 1
    return {part: weights.float() for part, weights in value.items()}


def main() -> None:
    """Restore the working store, then masks and losses beside it."""
    shipped, store, results = (f(PROFILE) for f in (Store.shipped, Store.working, Store.results))
    if shipped.info("model")["inputs"]["train"] != store.sha256("train")["train"]:
        raise InputError(f"train in {store.folder} is not what the shipped model was trained on")
    for name in ("model", "model-25", "model-50", "model-75", "gen"):
        info = shipped.info(name)
        inputs = {key: sha for key, sha in info["inputs"].items() if key != COPIED.format(name)}
        made = {key: info[key] for key in ("axes", "parameters", "seconds")}
        store.save(name, original(name, shipped.load(name)), inputs=inputs, **made)
        same = store.info(name)["sha256"] == info["inputs"][COPIED.format(name)]
        print(f"{name}: {'as it was' if same else 'from 16 bits'}")
    for name in shipped.names():
        if name.startswith(("masks/", "losses/")):
            info = shipped.info(name)
            made = {key: info[key] for key in ("axes", "parameters", "inputs", "seconds")}
            results.save(name, shipped.load(name), **made)


if __name__ == "__main__":
    main()
