"""Dice of our brain masks against those in a BIDS root's derivatives/brainmask.

python benchmarks/skull_strip.py BIDS_ROOT [--derivatives results/derivatives/COHORT]

With --derivatives the masks of a finished run are scored, otherwise deepbet runs on every scan.
"""

import argparse
from pathlib import Path

import numpy as np

from neuropeft.inputs.t1w.n4 import correct_bias
from neuropeft.inputs.t1w.scan import load_mask, load_scan
from neuropeft.inputs.t1w.skullstrip import brain_mask

SUFFIX = "_desc-brain_mask.nii.gz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--derivatives", type=Path, help="derivatives of a finished run")
    parser.add_argument("--every", type=int, default=1, help="take every n-th scan")
    options = parser.parse_args()
    scores = {}
    for path in sorted(options.root.glob("sub-*/**/*_T1w.nii*"))[:: options.every]:
        scan_id = path.name.split("_T1w.nii")[0]
        place = path.parent.relative_to(options.root) / f"{scan_id}{SUFFIX}"
        image = load_scan(path)
        reference = load_mask(options.root / "derivatives/brainmask" / place, image)
        if options.derivatives:
            mask = load_mask(options.derivatives / place, image)
        else:
            mask = brain_mask(correct_bias(image), "deepbet")
        scores[scan_id] = dice(mask, reference)
        print(f"{scan_id}\t{scores[scan_id]:.4f}", flush=True)
    values = np.array(list(scores.values()))
    print(f"{len(values)} scans: mean {values.mean():.4f}, worst {values.min():.4f}, SD {values.std():.4f}")


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Return 2 |A and B| / (|A| + |B|)."""
    both = np.count_nonzero((one > 0) & (other > 0))
    return 2 * both / (np.count_nonzero(one) + np.count_nonzero(other))


if __name__ == "__main__":
    main()
