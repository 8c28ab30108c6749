"""What GPUs can do at most: the one place that knows their peaks."""

import re

# Dense bfloat16 products summed in float32, 1e12 operations a second, from the makers' data sheets. Longer
# names stand before the names that they hold.
PEAKS = {
    "H200 NVL": 835, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312, "L40S": 362,
    "RTX A6000": 155, "A40": 150, "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip
# Parts of a GPU, and lesser or better sisters of the same name.
OTHERS = re.compile(r"\b(?:MIG|Laptop|Max-Q|Ti|D)\b|-\d+[ABCQ]$")


def peak_of(name: str) -> float | None:
    """Return the operations a second that a GPU reaches at most; None where that is not known here.

    Args:
        name: as the driver gives it, such as `NVIDIA H100 80GB HBM3`, or a name of `PEAKS`; of a CPU, whose
            peak nobody tells, `cpu`.
    """
    if OTHERS.search(name):
        return None
    return next((peak * 1e12 for key, peak in PEAKS.items() if re.search(rf"\b{key}\b", name)), None)
