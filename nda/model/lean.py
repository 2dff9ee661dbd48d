"""diffusers' U-Net and DDIM scheduler, imported without the other models of that library.

Two of its packages import each of their members, of which a U-Net needs three; the others take
about half the time of starting, and bring transformers, torchvision and scipy. Here these two
packages are put into `sys.modules` before they have run. They run, as they are, when somebody asks
for anything that they define, so that all of diffusers works as it does without this module.
"""

import sys
from importlib.util import find_spec, module_from_spec
from typing import Any

from nda.errors import needs

PACKAGES = ("diffusers.models.unets", "diffusers.models.transformers")


def postpone(package: str) -> None:
    """Run a package's `__init__` when something that it defines is asked for, and not before. Its
    modules can be imported meanwhile.

    Args:
        package: dotted name; if it is imported already, or is not there, nothing happens.
    """
    spec = None if package in sys.modules else find_spec(package)
    if spec is None or (loader := spec.loader) is None:
        return
    module = sys.modules[package] = module_from_spec(spec)

    def run(name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # asked of every module by some tools
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        del module.__dict__["__getattr__"]
        try:
            loader.exec_module(module)
        except BaseException:
            module.__dict__["__getattr__"] = run
            raise
        return getattr(module, name)

    module.__dict__["__getattr__"] = run
    parent, _, own_name = package.rpartition(".")
    if parent:
        setattr(sys.modules[parent], own_name, module)


needs("diffusers", "model")
for _package in PACKAGES:
    postpone(_package)

from diffusers import DDIMScheduler, UNet2DModel  # noqa: E402

__all__ = ["DDIMScheduler", "UNet2DModel"]
