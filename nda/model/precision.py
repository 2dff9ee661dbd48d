"""Which numbers a model is trained in: those that its recipe asks for, where the processor is made
for them."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

# Instructions of x86 and ARM. Without one, a processor converts to float32 and back at every step,
# and training in bfloat16 is several times slower than in float32.
BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
log = logging.getLogger(__name__)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 and does not only imitate it.

    Args:
        device: where to train.

    Returns:
        What the processor says; true for devices that cannot be asked, such as MPS.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        ask: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
        capabilities = ask()  # an older torch cannot say: nothing
        return any(capabilities.get(unit, False) for unit in BFLOAT16_UNITS)
    return True


def choose(bf16: bool, device: torch.device) -> str:
    """The numbers that training computes in; one line of the log says so.

    Args:
        bf16: whether the recipe asks for bfloat16 autocast.
        device: where to train.

    Returns:
        `"bfloat16"` or `"float32"`.
    """
    if bf16 and not has_bfloat16(device):
        log.warning(
            "training in float32: the recipe asks for bfloat16, but this %s has no units for it",
            device.type,
        )
        return "float32"
    precision = "bfloat16" if bf16 else "float32"
    log.info("training in %s on %s", precision, device.type)
    return precision
