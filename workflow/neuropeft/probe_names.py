"""What probes are called, and what those are that tell how well a probe does by chance."""

from pathlib import Path

# What tables and figures call them; nearest neighbours are those by the mean of a scan's tokens.
PROBES = {
    "probe_mean": "linear probe, mean-pooled tokens",
    "probe_concat": "linear probe, all tokens",
    "knn": "k-NN",
}
PERMUTED = ("probe_mean", "probe_concat")  # those that are also fitted on permuted targets
PERMUTATIONS = 20  # so that p is at least 1/21


def null_file(predictions: Path) -> Path:
    """Return the file of what probes predict after a fit on permuted targets, beside their predictions."""
    return predictions.with_suffix(".null.tsv")


def null_method(probe: str, permutation: int) -> str:
    """Return what stands as method in a null file for a probe on one permutation of the targets."""
    return f"{probe}/{permutation}"
