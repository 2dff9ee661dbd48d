"""The axes that annotations name, checked in the tests: `Float[Tensor, "query train"]` means that.

A call is checked when it has returned, its arguments and its result together. Not before, since bad
input must get its InputError from the function itself: what the tests forbid is a call that
succeeds with something that its annotations rule out.
"""

from collections.abc import Callable
from typing import Any, Self

import jaxtyping
from beartype import BeartypeConf, beartype

CHECKED = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is good where a float is


def install() -> None:
    """Check every function of nda; to be called before nda is imported."""
    jaxtyping.install_import_hook("nda", "axes.after")


def after(function: Callable) -> Callable:
    """`function` is one of jaxtyping's two stand-ins for a function of nda. The one that it calls
    afterwards takes the result as `ret0`."""
    if "ret0" not in function.__code__.co_varnames:
        return function
    hints = function.__annotations__.items()  # of a method alone, beartype cannot tell what Self is
    function.__annotations__ = {name: Any if hint is Self else hint for name, hint in hints}
    return CHECKED(function)
