"""Bad input gets one sentence that names the argument, what was wrong and what to do."""

from collections.abc import Collection, Sequence
from importlib.util import find_spec


class InputError(ValueError):
    """The user's input cannot be used; the message is one sentence, without a traceback."""


def check_timestep(timestep: int) -> None:
    """Check that a timestep is an integer in 0…999.

    Args:
        timestep: the argument to check.

    Raises:
        InputError: if it is not.
    """
    if isinstance(timestep, bool) or not isinstance(timestep, int) or not 0 <= timestep < 1000:
        raise InputError(f"timestep must be an integer in 0…999, not {timestep!r}")


def check_positive(name: str, value: int) -> None:
    """Check that a number is an integer of at least 1.

    Args:
        name: what the caller calls it.
        value: the argument to check.

    Raises:
        InputError: if it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a positive integer, not {value!r}")


def check_choice(name: str, choice: str, allowed: Collection[str]) -> None:
    """Check that a choice is one of those that there are.

    Args:
        name: what the caller calls it.
        choice: the argument to check.
        allowed: all that it may be.

    Raises:
        InputError: if it is none of them.
    """
    if choice not in allowed:
        raise InputError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {choice!r}")


def check_draws(timesteps: Sequence[int], **counts: int) -> None:
    """Check that there are timesteps, all in 0…999, and that every count is at least 1.

    Args:
        timesteps: the argument to check.
        counts: numbers by what the caller calls them.

    Raises:
        InputError: if not.
    """
    if not timesteps:
        raise InputError("timesteps must name at least one of 0…999")
    for timestep in timesteps:
        check_timestep(timestep)
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} must be at least 1, not {count}")


def needs(package: str, extra: str) -> None:
    """Check that a package can be imported that `pip install nda` alone does not bring.

    Args:
        package: its name in an import.
        extra: the group of optional dependencies in pyproject.toml that has it.

    Raises:
        InputError: if it is not installed, with the command that installs it.
    """
    if find_spec(package) is None:
        raise InputError(
            f"the package {package} is not installed; install it with: pip install 'nda[{extra}]'"
        )
