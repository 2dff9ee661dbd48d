"""The axes that annotations name, checked in the tests: `Float[Tensor, "query train"]` means that.

A call is checked when it has returned, its arguments and its result together. Not before, since bad
input must get its InputError from the function itself: what the tests forbid is a call that
succeeds with something that its annotations rule out.
"""

from collections.abc import Callable

import jaxtyping
from beartype import BeartypeConf, beartype

CHECKED = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is good where a float is


def install() -> None:
    """Check every function of nda; to be called before nda is imported."""
    jaxtyping.install_import_hook("nda", "axes.after")


def after(function: Callable) -> Callable:
    """`function` is one of jaxtyping's two stand-ins for a function of nda. The one that it calls
    afterwards takes the result as `ret0`."""
    return CHECKED(function) if "ret0" in function.__code__.co_varnames else function
