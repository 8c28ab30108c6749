"""How a run differs from the recipe of Dhinagar et al. 2024, whose figures stand beside ours."""

from collections.abc import Iterator

from neuropeft.config import Config
from neuropeft.config.inputs import T1w
from neuropeft.grid import cells, pretrained, seeds_of, used_cohorts, used_tasks
from neuropeft.publish.sheet import Sheet

Deviation = tuple[str, str, str]  # the setting, what it is here, what it is in the paper

# What the paper says of its recipe (section 3); what it leaves open is no deviation.
SIZE, MASKED, FEWEST_EPOCHS, MOST_EPOCHS, PATIENCE, SEEDS = 80, 0.75, 30, 50, 10, 3


def deviation_sheet(config: Config) -> Sheet:
    """List the settings that differ from what the paper says of its own."""
    found = [*_of_data(config), *_of_pretraining(config), *_of_training(config)]
    return Sheet(
        "deviations",
        "Where this run differs from the recipe of Dhinagar et al. 2024.",
        ("Setting", "Here", "In the paper"),
        found,
        ("Published figures stand beside ours where task, cohort, backbone and method are the paper's.",),
        text_columns=3,
    )


def _of_data(config: Config) -> Iterator[Deviation]:
    if config.preprocessing.size != SIZE:
        yield "preprocessing.size", f"{config.preprocessing.size} voxels", f"{SIZE} voxels"
    for name in used_cohorts(config):
        if not isinstance(given := config.cohorts[name].input, T1w):
            yield f"cohorts.{name}.input", given.kind, "T1-weighted heads"
    if config.splits.folds:
        yield "splits.folds", f"{config.splits.folds}-fold cross-validation", "one split"
    for task in used_tasks(config):
        if (seeds := len(seeds_of(cells(config), task))) != SEEDS:
            yield f"grid: seeds of {task}", f"{seeds}", f"{SEEDS}"


def _of_pretraining(config: Config) -> Iterator[Deviation]:
    for name in dict.fromkeys(name for name, _ in pretrained(config)):
        one, key = config.trained[name], f"pretraining.{name}"
        if one.kind != "mae" or one.cohort != "UKB":
            yield key, f"{one.kind} on {one.cohort}", "masked autoencoder on UK Biobank"
        if (hidden := getattr(one, "mask_ratio", MASKED)) != MASKED:
            yield f"{key}.mask_ratio", f"{hidden:g}", f"{MASKED:g}"
        if (mask := getattr(one, "mask", "all")) != "all":
            yield f"{key}.mask", mask, "all patches"
    for name in config.imported:
        yield f"pretraining.{name}", "imported weights", "masked autoencoder on UK Biobank"


def _of_training(config: Config) -> Iterator[Deviation]:
    training = config.training
    if not FEWEST_EPOCHS <= training.epochs <= MOST_EPOCHS:
        yield "training.epochs", f"{training.epochs}", f"{FEWEST_EPOCHS} to {MOST_EPOCHS}"
    if training.min_steps:
        yield "training.min_steps", f"at least {training.min_steps:,} steps", "epochs alone"
    if training.patience != PATIENCE:
        yield "training.patience", f"{training.patience} validations", f"{PATIENCE} epochs"
    if training.pool != "mean":
        yield "training.pool", training.pool, "one vector of a token's width"
    sampler = "none" if training.search is None else training.search.sampler
    if sampler != "random":
        yield "training.search", sampler, "random search"
