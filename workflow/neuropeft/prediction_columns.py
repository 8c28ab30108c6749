"""The columns of a prediction file, which training and controls write and evaluation reads."""

COLUMNS = ("fraction", "seed", "fold", "split", "scan_id", "subject", "session", "y")
CONTROL_METHOD = "method"  # the column that control files have beyond COLUMNS


def score_columns(kind: str, classes: int) -> list[str]:
    """Return the names of the score columns of a task of this kind."""
    return [f"score_{k}" for k in range(classes)] if kind == "multiclass" else ["score"]


def prior_columns(kind: str, classes: int) -> list[str]:
    """Return the names of the columns that hold each class's frequency in a run's training."""
    return [f"prior_{k}" for k in range(classes)] if kind == "multiclass" else []
