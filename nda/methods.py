"""All methods of the book: one label, one colour, one order, and what each needs to see."""

from typing import NamedTuple


class Method(NamedTuple):
    """How a method appears in every table and figure."""

    label: str
    colour: str
    needs: str  # beside the query


IMAGES, MODEL, CHECKPOINTS, MODELS = (
    "train images",
    "train images, model",
    "train images, checkpoints",
    "retrained models",
)
EFFICIENTNET, CLIP = "train images, weights of EfficientNet", "train images, weights of CLIP"
# The order here is the order in every table and figure; families share a hue.
ALL = {
    "random": Method("Random (null)", "#9a9a9a", "nothing"),
    "pixel_dot": Method("Raw pixels, dot", "#c98b2b", IMAGES),
    "pixel_cosine": Method("Raw pixels, cosine", "#8a5a13", IMAGES),
    "pixel_patches": Method("Raw patches, nearest", "#e0b878", IMAGES),
    "efficientnet_dot": Method("EfficientNet, dot", "#b7a33a", EFFICIENTNET),
    "efficientnet_cosine": Method("EfficientNet, cosine", "#857520", EFFICIENTNET),
    "clip_dot": Method("CLIP, dot", "#a9b665", CLIP),
    "clip_cosine": Method("CLIP, cosine", "#6f7d34", CLIP),
    "nda_imagewise": Method("NDA, whole images", "#a9d3de", IMAGES),
    "nda": Method("NDA, single scale", "#1f6f8b", IMAGES),
    "nda_coarse": Method("NDA, coarse", "#6fb1c4", IMAGES),
    "nda_two_scale": Method("NDA, two scales", "#0b3c4f", IMAGES),
    "gradient_dot": Method("Gradient, dot", "#e3a3b4", MODEL),
    "gradient_cosine": Method("Gradient, cosine", "#cf7f96", MODEL),
    "tracincp": Method("TracInCP", "#d9a7d0", CHECKPOINTS),
    "gas": Method("GAS", "#b87fae", CHECKPOINTS),
    "trak": Method("TRAK", "#b0476b", MODEL),
    "relative_if": Method("Relative IF", "#94507f", MODEL),
    "renormalised_if": Method("Renormalised IF", "#7a3f73", MODEL),
    "journey_trak": Method("Journey-TRAK", "#c95a49", MODEL),
    "d_trak": Method("D-TRAK", "#8c2346", MODEL),
    "das": Method("DAS", "#5e1230", MODEL),
    "das_code": Method("DAS, as released", "#a33b2c", MODEL),
    "kfac": Method("K-FAC influence", "#7fae6a", MODEL),
    "ekfac": Method("EK-FAC influence", "#3f7a35", MODEL),
    "empirical_influence": Method("Empirical influence", "#6d6d8f", MODELS),
    "datamodel": Method("Datamodel", "#3d3d66", MODELS),
}
FEWER = "_k10"  # key of a method's second run in one profile, with gradients at ten timesteps


def _paler(colour: str) -> str:
    return "#" + "".join(f"{(int(colour[i : i + 2], 16) + 255) // 2:02x}" for i in (1, 3, 5))


METHODS = {
    key + suffix: (
        method
        if not suffix
        else Method(f"{method.label}, K\u00a0=\u00a010", _paler(method.colour), method.needs)
    )
    for key, method in ALL.items()
    for suffix in (("", FEWER) if method.needs in (MODEL, CHECKPOINTS) else ("",))
}
