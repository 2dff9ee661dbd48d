"""Results of made-up profiles, with sidecars as the pipeline writes them."""

from nda.methods import METHODS
from nda.store import digest_json

RECIPE = {"unet": {"block_out_channels": [8, 8]}, "epochs": 4, "lr": 0.001}
RECIPE["checkpoints"] = [0.05, 0.25, 0.5, 1.0]
MADE = {"train": "a" * 64, "val": "b" * 64, "gen": "c" * 64, "model": "d" * 64}
MADE["recipe"] = digest_json(RECIPE)


def save_losses(results, family, which, losses, *, timesteps=(10, 500), seconds=None, **changed):
    """Losses of retrained models. changed: inputs that are others."""
    seeds = list(range(losses.shape[1]))
    inputs = {name: changed.get(name, MADE[name]) for name in ("train", which, "recipe")}
    results.save(
        f"losses/{family}-{which}",
        losses,
        axes="subset seed query group",
        parameters={"timesteps": list(timesteps), "noise_seeds": [3], "seeds": seeds},
        inputs=results.sha256(f"masks/{family}") | inputs,
        seconds=seconds,
    )


def save_effects(results, key, which, effects, *, variant=None, seconds=None, **changed):
    """Effects of a method. changed: inputs that are others."""
    method = METHODS[key].varied(**(variant or {}))
    used = ["train", which, *(["model", "recipe"] if method.opens_model else [])]
    inputs = {name: changed.get(name, MADE[name]) for name in used}
    results.save(
        f"effects/{method.name}-{which}",
        effects,
        axes="subset query",
        parameters={"method": key, "variant": variant or {}, "settings": {}, "damping": None},
        inputs=results.sha256("masks/report") | inputs,
        seconds=seconds,
    )
