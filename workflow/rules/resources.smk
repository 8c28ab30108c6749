# What jobs ask of a scheduler: minutes and MB that follow from the cohort, the backbone and the attempt.


@cache
def rows(table):
    """Return the number of rows of a table that was written when the workflow started."""
    with open(table) as lines:
        return sum(1 for _ in lines) - 1


def cohort_scans(cohort):
    """Return the number of scans of a cohort."""
    if cohort in SYNTHETIC:
        return CONFIG.cohorts[cohort].synthetic.volumes
    return rows(f"results/cohorts/{cohort}/scans.tsv")


def step_minutes(step):
    """Return what tells the minutes of a preprocessing step over a chunk of scans."""
    return lambda wildcards, attempt: estimates.scan_minutes(
        step, len(chunk_rows(wildcards.cohort, wildcards.chunk)), attempt
    )


def cohort_minutes(step):
    """Return what tells the minutes of a step over a whole cohort."""
    return lambda wildcards, attempt: estimates.scan_minutes(step, cohort_scans(wildcards.cohort), attempt)


def pretrain_minutes(wildcards, attempt):
    """Return the minutes of a pretraining."""
    pretraining = CONFIG.trained[wildcards.pretraining]
    return estimates.pretrain_minutes(
        CONFIG.backbones[wildcards.backbone],
        pretraining,
        CONFIG.preprocessing.size,
        attempt,
    )


def finetune_minutes(wildcards, attempt):
    """Return the minutes of the cells of a pack."""
    return estimates.finetune_minutes(
        CONFIG.backbones[wildcards.backbone],
        CONFIG.training,
        CONFIG.preprocessing.size,
        len(PACKS[pack_named(wildcards)]),
        rows(f"results/tasks/{wildcards.task}/{CONFIG.tasks[wildcards.task].train}.tsv"),
        attempt,
    )


def search_minutes(wildcards, attempt):
    """Return the minutes of the candidates that a search tries."""
    wanted = CONFIG.training.search
    return estimates.finetune_minutes(
        CONFIG.backbones[wildcards.backbone],
        CONFIG.training,
        CONFIG.preprocessing.size,
        len(wanted.lr) * len(wanted.head_lr) * wanted.share,
        rows(f"results/tasks/{wildcards.task}/{CONFIG.tasks[wildcards.task].train}.tsv"),
        attempt,
    )


def predict_minutes(wildcards, attempt):
    """Return the minutes of predicting a cohort with the cells that share a base."""
    return estimates.predict_minutes(
        CONFIG.backbones[wildcards.backbone],
        CONFIG.preprocessing.size,
        len(group_cells(wildcards)),
        rows(f"results/tasks/{wildcards.task}/{wildcards.cohort}.tsv"),
        attempt,
    )


def training_mb(cohort, attempt):
    """Return the main memory of a job that holds the volumes of a cohort."""
    return estimates.training_mb(cohort_scans(cohort), CONFIG.preprocessing.size, attempt)
