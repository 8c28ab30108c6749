"""Does the coarse N4 agree with antspyx's default N4, and how much faster is it?

python benchmarks/n4.py SCAN [SCAN ...]

Fields are compared inside the brain as logarithms, up to the constant factor that N4 leaves free.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import ants
import nibabel as nib
import numpy as np

from neuropeft.inputs.io import voxel_sizes
from neuropeft.inputs.t1w.n4 import bias_field
from neuropeft.inputs.t1w.scan import load_scan
from neuropeft.inputs.t1w.skullstrip import brain_mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scans", nargs="+", type=Path)
    print("scan\tcorrelation\tSD_%\tmax_%\tCPU_s\tCPU_s_default\twall_s\twall_s_default")
    for path in parser.parse_args().scans:
        image = load_scan(path)
        data, voxel_mm = np.asarray(image.dataobj), voxel_sizes(image.affine)
        ours, *our_times = timed(lambda: bias_field(data, voxel_mm))  # noqa: B023
        default, *times = timed(lambda: default_field(data, voxel_mm))  # noqa: B023
        brain = brain_mask(nib.Nifti1Image(data / ours, image.affine), "deepbet") > 0
        one, other = np.log(ours[brain]), np.log(default[brain])
        apart = one - other
        apart = 100 * np.expm1(apart - apart.mean())
        print(
            f"{path.name}\t{np.corrcoef(one, other)[0, 1]:.4f}\t{apart.std():.2f}\t{np.abs(apart).max():.1f}"
            f"\t{our_times[0]:.1f}\t{times[0]:.1f}\t{our_times[1]:.1f}\t{times[1]:.1f}",
            flush=True,
        )


def default_field(data: np.ndarray, voxel_mm: np.ndarray) -> np.ndarray:
    image = ants.from_numpy(data, spacing=[float(size) for size in voxel_mm])
    return ants.n4_bias_field_correction(image, return_bias_field=True).numpy()


def timed(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, time.process_time() - cpu, time.perf_counter() - wall


if __name__ == "__main__":
    main()
