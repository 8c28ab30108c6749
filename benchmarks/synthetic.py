"""Do synthetic volumes look like real ones? Compares them with the stores of real cohorts, without any label.

Prints a table with a column per cohort: mean ± SD over the scans. Intensities are the z-scores that models
see. Draws slices, histograms and maps into a folder; these are pictures of real scans, so keep them private.

Run as: python benchmarks/synthetic.py STORE [STORE ...] [--volumes 64] [--out FOLDER]
"""

import argparse
import time
from pathlib import Path

import matplotlib
import numpy as np
from scipy import ndimage

from neuropeft.cohorts.synthetic import people
from neuropeft.cohorts.synthetic_brain import load_template, paint
from neuropeft.inputs.t1w.resample import to_model_grid
from neuropeft.progress import track
from neuropeft.store import open_store

QUANTILES = (5, 25, 50, 75, 95)
BINS = np.linspace(-1, 4, 51)
RIM = 3 / 80  # of the edge of the cube
ALL = "all of these"
SCANS_DRAWN = 6
Numbers = dict[str, np.ndarray | float]


def painted(volumes: int, size: int) -> np.ndarray:
    load_template()
    started = time.process_time()
    persons = track(people(volumes, 0), volumes, "painting")
    cubes = np.stack([to_model_grid(paint(person).image, size) for person in persons])
    print(f"painted {volumes / (time.process_time() - started):.1f} volumes per second of processor time")
    return cubes


def brains(volumes: np.ndarray) -> np.ndarray:
    """Return where each volume differs from its background, which is constant."""
    return np.abs(volumes - volumes[:, :1, :1, :1]) > 0.05


def histograms(volumes: np.ndarray) -> np.ndarray:
    inside = brains(volumes)
    counts = [np.histogram(v[m], BINS, density=True)[0] for v, m in zip(volumes, inside, strict=True)]
    return np.stack(counts)


def compare(volumes: np.ndarray, reference: np.ndarray) -> Numbers:
    """Return what the table shows of a cohort; `reference` are the volumes that all are compared with."""
    inside = brains(volumes)
    numbers: Numbers = {"brain, % of the cube": 100 * inside.mean(axis=(1, 2, 3))}
    numbers["background"] = volumes[:, 0, 0, 0]
    pairs = list(zip(volumes, inside, strict=True))
    rim_voxels = round(RIM * volumes.shape[1])
    for quantile in QUANTILES:
        numbers[f"intensity in the brain, {quantile} %"] = np.array(
            [np.percentile(v[m], quantile) for v, m in pairs]
        )
    deep = [ndimage.binary_erosion(mask, iterations=2 * rim_voxels) for mask in inside]
    numbers["CSF (deep inside, 1 %)"] = np.array(
        [np.percentile(v[m], 1) for v, m in zip(volumes, deep, strict=True)]
    )
    density = histograms(volumes)
    numbers["histogram, SD over scans"] = float(density.std(axis=0).mean())
    apart = np.abs(density.mean(axis=0) - histograms(reference).mean(axis=0)).sum() * np.diff(BINS)[0] / 2
    numbers["histogram, share apart from the first"] = float(apart)
    deviation = volumes.std(axis=0)
    everyone = inside.mean(axis=0)
    core = ndimage.binary_erosion(everyone > 0.5, iterations=rim_voxels)
    rim = (everyone > 0.05) & ~core
    numbers["SD over scans, inside"] = float(deviation[core].mean())
    numbers["SD over scans, rim"] = float(deviation[rim].mean())
    for name, sigma in (("finest", 0.7), ("fine", 1.5), ("coarse", 3.0)):
        energy = []
        for volume, mask in pairs:
            inner = ndimage.binary_erosion(mask, iterations=rim_voxels)
            energy.append((volume - ndimage.gaussian_filter(volume, sigma))[inner].std())
        numbers[f"detail inside, {name}"] = np.array(energy)
    flat = volumes[:, everyone > 0.5]
    pairwise = np.corrcoef(flat)[np.triu_indices(len(flat), 1)]
    numbers["correlation between scans"] = pairwise
    mean = reference.mean(axis=0)[everyone > 0.5]
    numbers["mean volume, correlation with the first's"] = float(np.corrcoef(flat.mean(axis=0), mean)[0, 1])
    deviation_there = reference.std(axis=0)[everyone > 0.5]
    numbers["SD map, correlation with the first's"] = float(
        np.corrcoef(flat.std(axis=0), deviation_there)[0, 1]
    )
    return numbers


def show(value: np.ndarray | float) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value.mean():.3f} ± {value.std():.3f}"


def draw(cohorts: dict[str, np.ndarray], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        3 * len(cohorts), SCANS_DRAWN + 2, figsize=(2 * (SCANS_DRAWN + 2), 6 * len(cohorts))
    )
    middle = next(iter(cohorts.values())).shape[1] // 2
    for row, (name, volumes) in enumerate(cohorts.items()):
        shown = [*volumes[:SCANS_DRAWN], volumes.mean(axis=0), volumes.std(axis=0)]
        for column, volume in enumerate(shown):
            limits = {"vmin": -0.8, "vmax": 3} if column <= SCANS_DRAWN else {"vmin": 0, "vmax": 1}
            slices = (volume[:, :, middle], volume[middle], volume[:, middle])
            for offset, image in enumerate(slices):
                axis = axes[3 * row + offset, column]
                axis.imshow(image.T, origin="lower", cmap="gray", **limits)
                axis.set_axis_off()
        for column, title in ((0, name), (SCANS_DRAWN, "mean"), (SCANS_DRAWN + 1, "SD")):
            axes[3 * row, column].set_title(title)
    figure.tight_layout(pad=0.3)
    figure.savefig(path / "slices.png", dpi=60)
    figure, axis = pyplot.subplots(figsize=(7, 4))
    for name, volumes in cohorts.items():
        density = histograms(volumes)
        mean, deviation = density.mean(axis=0), density.std(axis=0)
        centres = (BINS[1:] + BINS[:-1]) / 2
        axis.plot(centres, mean, label=name)
        axis.fill_between(centres, mean - deviation, mean + deviation, alpha=0.2)
    axis.set_xlabel("intensity in the brain, z-scored (band: SD over scans)")
    axis.legend()
    figure.savefig(path / "histograms.png", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stores", nargs="+", type=Path, help="results/cohorts/COHORT/store of real cohorts")
    parser.add_argument("--volumes", type=int, default=64, help="synthetic volumes")
    parser.add_argument("--out", type=Path, help="folder for the pictures; without it, none are drawn")
    options = parser.parse_args()
    cohorts = {
        path.resolve().parent.name: np.asarray(open_store(path).volumes[:, 0], np.float32)
        for path in options.stores
    }
    first = next(iter(cohorts.values()))
    if len(cohorts) > 1:
        cohorts[ALL] = np.concatenate(list(cohorts.values()))
    cohorts["synthetic"] = painted(options.volumes, first.shape[1])
    columns = {name: compare(volumes, first) for name, volumes in cohorts.items()}
    print("\t".join(["", *(f"{name} (n = {len(cohorts[name])})" for name in columns)]))
    for key in columns["synthetic"]:
        print("\t".join([key, *(show(numbers[key]) for numbers in columns.values())]))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        draw({name: cohort for name, cohort in cohorts.items() if name != ALL}, options.out)


if __name__ == "__main__":
    main()
