"""What a GPU consumes, as its driver counts it."""

import ctypes
from functools import cache

import torch

# Of NVML, which comes with the driver; what Python packages offer of it is one more thing to install.
LIBRARY = "libnvidia-ml.so.1"


class Meter:
    """What a device has consumed from one reading to the next: all of a GPU, whoever uses it."""

    def __init__(self, device: torch.device) -> None:
        """Read it for the first time."""
        self.device, self.last = device, energy_joule(device)

    def since_last(self) -> float | None:
        """Return the joules since the last reading; None where the driver does not tell."""
        before, self.last = self.last, energy_joule(self.device)
        return None if before is None or self.last is None else self.last - before


def energy_joule(device: torch.device) -> float | None:
    """Return what a GPU has consumed since its driver was loaded, in joules.

    None on the CPU, of a part of a GPU (MIG), of GPUs before Volta, and where the driver's library is not
    there.
    """
    if device.type != "cuda":
        return None
    found = _handle(str(torch.cuda.get_device_properties(device).uuid))
    if found is None:
        return None
    library, handle = found
    millijoules = ctypes.c_ulonglong()
    failed = library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
    return None if failed else millijoules.value / 1000


@cache
def _handle(uuid: str) -> tuple[ctypes.CDLL, ctypes.c_void_p] | None:
    """Return the library, started, and a GPU in it: by its UUID, since visible GPUs are numbered anew."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    handle = ctypes.c_void_p()
    name = f"GPU-{uuid.removeprefix('GPU-')}".encode()
    failed = library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle))
    return None if failed else (library, handle)
