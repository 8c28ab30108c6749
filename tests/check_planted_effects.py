"""Check a finished demo: planted effects are found, pretraining helps, and shuffled labels teach nothing.

    python tests/check_planted_effects.py results/tables/scores.csv

Better than chance means that the 95 % interval over test subjects leaves chance out.
"""

import csv
import sys
from pathlib import Path

TRAINED_COHORT = "SimA"
START = "factors"
PRETRAINED = ("full", "attention", "lora", "layernorm")  # methods that start from it
LEARNT = 0.5  # correlation of predicted and true age from which ageing counts as learnt

Scores = dict[tuple[str, str, str, str, int], dict[str, str]]  # task, metric, start, method, percent -> row


def read(scores: Path) -> Scores:
    """Return the rows of scores.csv on the cohort that is trained on."""
    with scores.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["cohort"] == TRAINED_COHORT]
    return {
        (
            row["task"],
            row["metric"],
            row["pretraining"],
            row["method"],
            int(row["subset"].removeprefix("fraction-")),
        ): row
        for row in rows
    }


def claims(scores: Scores) -> list[tuple[str, bool]]:
    """Return what the demo must show, and whether it does."""

    def low(task: str, metric: str, start: str, method: str) -> float:
        return float(scores[task, metric, start, method, 100]["ci_low"])

    def mean(metric: str, start: str, method: str, fraction: int) -> float:
        return float(scores["age", metric, start, method, fraction]["mean"])

    found = []
    for task, metric, chance in (("ad", "auc", 0.5), ("age", "r", 0.0)):
        voxels, shuffled = low(task, metric, "none", "ridge_voxels"), low(task, metric, "none", "shuffled")
        best = max(PRETRAINED, key=lambda method: low(task, metric, START, method))
        tuned = low(task, metric, START, best)
        found += [
            (f"{task}: the linear model beats chance ({metric} above {voxels:.2f})", voxels > chance),
            (f"{task}: {best} beats chance ({metric} above {tuned:.2f})", tuned > chance),
            (f"{task}: shuffled labels do not ({metric} above {shuffled:.2f})", shuffled <= chance),
        ]
    for method in PRETRAINED:
        r = mean("r", START, method, 100)
        found.append((f"age: {method} learns the planted ageing (r {r:.2f})", r > LEARNT))
    smallest = min(fraction for *_, fraction in scores)
    scratch = mean("mae", "none", "scratch", smallest)
    helped = min(mean("mae", START, method, smallest) for method in ("full", "lora"))
    text = f"age: pretraining helps with {smallest} % of the subjects ({helped:.1f} for {scratch:.1f} years)"
    return [*found, (text, helped < scratch)]


def main(scores: Path) -> int:
    """Print what holds and what does not; return the number of failures."""
    checked = claims(read(scores))
    for text, holds in checked:
        print(f"{'holds' if holds else 'FAILS'}: simulated {text}")
    return sum(not holds for _, holds in checked)


if __name__ == "__main__":
    raise SystemExit(1 if main(Path(sys.argv[1])) else 0)
