"""Check a finished demo: effects planted in the simulated cohort are found, shuffled labels teach nothing.

    python tests/check_planted_effects.py results/tables/scores.csv

Better than chance means that the 95 % interval over test subjects leaves chance out.
"""

import csv
import sys
from pathlib import Path

CHANCE = {"ad": ("auc", 0.5), "age": ("r", 0.0)}
TRAINED_COHORT = "SimA"


def intervals(scores: Path, task: str) -> dict[str, float]:
    """Return the lower end of the interval of every method of a task, in-domain, trained on everything."""
    metric, _ = CHANCE[task]
    with scores.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if (row["task"], row["metric"]) == (task, metric)]
    return {
        row["method"]: float(row["ci_low"])
        for row in rows
        if row["cohort"] == TRAINED_COHORT and row["fraction"] == "100" and row["ci_low"] != "n/a"
    }


def main(scores: Path) -> int:
    """Print what holds and what does not; return the number of failures."""
    failures = 0
    for task, (metric, chance) in CHANCE.items():
        low = intervals(scores, task)
        tuned = {
            name: value for name, value in low.items() if name in ("scratch", "full", "attention", "lora")
        }
        best = max(tuned, key=lambda name: tuned[name])
        for claim, holds in (
            (f"{best} beats chance ({metric} above {tuned[best]:.2f})", tuned[best] > chance),
            (
                f"the linear model beats chance (above {low['ridge_voxels']:.2f})",
                low["ridge_voxels"] > chance,
            ),
            (f"shuffled labels do not (above {low['shuffled']:.2f})", low["shuffled"] <= chance),
        ):
            print(f"{'holds' if holds else 'FAILS'}: simulated {task}: {claim}")
            failures += not holds
    return failures


if __name__ == "__main__":
    raise SystemExit(1 if main(Path(sys.argv[1])) else 0)
