"""Nonparametric data attribution for diffusion models: a thin module behind a book of notebooks.

The names below are imported when they are first used, so that `import nda` is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nda.data.images import load as load
    from nda.data.pixels import Images as Images
    from nda.errors import InputError as InputError
    from nda.evidence.scorecard import load_scores as load_scores
    from nda.evidence.scorecard import score as score
    from nda.evidence.truth import Truth as Truth
    from nda.methods import METHODS as METHODS
    from nda.methods import Method as Method
    from nda.nonparametric.config import NDAConfig as NDAConfig
    from nda.nonparametric.config import Scale as Scale
    from nda.nonparametric.partial import merge as merge
    from nda.nonparametric.partial import partial_scores as partial_scores
    from nda.nonparametric.provenance import provenance as provenance
    from nda.nonparametric.provenance import used_pixels as used_pixels
    from nda.nonparametric.scores import nda_scores as nda_scores
    from nda.store import Store as Store
    from nda.trace import Trace as Trace

__version__ = "0.1.0"
_FILES = {
    "data.images": ["load"],
    "data.pixels": ["Images"],
    "errors": ["InputError"],
    "evidence.scorecard": ["load_scores", "score"],
    "evidence.truth": ["Truth"],
    "methods": ["METHODS", "Method"],
    "nonparametric.config": ["NDAConfig", "Scale"],
    "nonparametric.partial": ["merge", "partial_scores"],
    "nonparametric.provenance": ["provenance", "used_pixels"],
    "nonparametric.scores": ["nda_scores"],
    "store": ["Store"],
    "trace": ["Trace"],
}
_FILE = {name: f"nda.{file}" for file, names in _FILES.items() for name in names}
__all__ = sorted(_FILE)


def __getattr__(name: str) -> Any:
    if name not in _FILE:
        raise AttributeError(f"module 'nda' has no attribute {name!r}")
    return getattr(import_module(_FILE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
