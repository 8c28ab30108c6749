# What jobs ask of a scheduler: minutes and MB that follow from the cohort, the backbone and the attempt.


def step_minutes(each):
    """Return what tells the minutes of a step over a chunk of scans, of which each takes so many."""
    return lambda wildcards, attempt: estimates.scan_minutes(
        each, len(JOBS.chunk_rows(wildcards.cohort, wildcards.chunk)), attempt
    )


def cohort_minutes(each):
    """Return what tells the minutes of a step over a whole cohort, of whose scans each takes so many."""
    return lambda wildcards, attempt: estimates.scan_minutes(each, JOBS.scans(wildcards.cohort), attempt)


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
        len(JOBS.packs[JOBS.pack_named(wildcards)]),
        JOBS.labelled(wildcards.task, CONFIG.tasks[wildcards.task].train),
        attempt,
    )


def trial_minutes(wildcards, attempt):
    """Return the minutes of the trials of a job."""
    return estimates.finetune_minutes(
        CONFIG.backbones[wildcards.backbone],
        CONFIG.training,
        CONFIG.preprocessing.size,
        SEARCHES.trained(wildcards),
        JOBS.labelled(wildcards.task, CONFIG.tasks[wildcards.task].train),
        attempt,
    )


def predict_minutes(wildcards, attempt):
    """Return the minutes of predicting a cohort with the cells that share a base."""
    return estimates.predict_minutes(
        CONFIG.backbones[wildcards.backbone],
        CONFIG.preprocessing.size,
        len(JOBS.group_cells(wildcards)) * CONFIG.tasks[wildcards.task].passes,
        JOBS.labelled(wildcards.task, wildcards.cohort),
        attempt,
    )


def vary_minutes(wildcards, attempt):
    """Return the minutes of predicting a cohort with the variants of cells that share a base."""
    return estimates.predict_minutes(
        CONFIG.backbones[wildcards.backbone],
        CONFIG.preprocessing.size,
        len(SCORING.varied_cells(wildcards)) * len(names_of(CONFIG, wildcards.analysis)),
        JOBS.labelled(wildcards.task, wildcards.cohort),
        attempt,
    )


def saliency_minutes(wildcards, attempt):
    """Return the minutes of the gradients of some test scans: of 8 copies of each, by two networks."""
    return estimates.predict_minutes(
        CONFIG.backbones[wildcards.backbone],
        CONFIG.preprocessing.size,
        len(SCORING.varied_cells(wildcards)),
        CONFIG.analyses.saliency * 8 * 2 * 3,
        attempt,
    )


def features_minutes(wildcards, attempt):
    """Return the minutes of computing the tokens of a cohort."""
    return estimates.predict_minutes(
        CONFIG.backbones[wildcards.backbone],
        CONFIG.preprocessing.size,
        1,
        JOBS.scans(wildcards.cohort),
        attempt,
    )


def probes_mb(wildcards, attempt):
    """Return the main memory of fitting the probes of a task."""
    scans = [JOBS.scans(cohort) for cohort in JOBS.task_cohorts(wildcards.task)]
    return estimates.probes_mb(scans[0], sum(scans), attempt)


def training_mb(cohort, attempt, processes=1):
    """Return the main memory, on a node, of a job whose processes read the volumes of a cohort."""
    shape = CONFIG.cohorts[cohort].input.shape(CONFIG.preprocessing.size)
    return estimates.training_mb(JOBS.scans(cohort), shape, attempt, processes)


def pretrain_mb(wildcards, attempt):
    """Return the main memory, on a node, of a pretraining."""
    # As the rule or the profile writes them, since a resource is not told the others of its job. An expression
    # in place of a number counts as one GPU.
    written = {
        name: str(resource.raw).strip("'\"") for name, resource in rules.pretrain.rule.resources.items()
    }
    asked = {name: text for name, text in written.items() if name == "gres" or text.isdigit()}
    cohort = CONFIG.trained[wildcards.pretraining].cohort
    return training_mb(cohort, attempt, max(gpus_per_node(asked), 1))


def launcher(resources, threads):
    """Return what starts one training process per GPU of a job, on each of its nodes."""
    gpus = gpus_per_node(resources)
    # Told to stop, processes need time to finish a step, save, and ask SLURM: more than torchrun gives by itself.
    torchrun = f"-m torch.distributed.run --shutdown-timeout 110 --nproc-per-node {max(gpus, 1)}"
    if "mpi" not in resources.keys():
        return f"python -m neuropeft.train.lease {gpus} {torchrun} --standalone" if gpus > 1 else "python"
    # This shell runs on the job's first node, where the processes meet, by a name that nobody else can guess. SLURM's
    # warning before the time limit reaches torchrun too, which must not die of it.
    return (
        f"PET_RDZV_ID=$(cat /proc/sys/kernel/random/uuid) {resources.mpi} --nodes={resources.nodes} --ntasks={resources.nodes} --cpus-per-task={threads}"
        f""" bash -c 'trap "" USR1; exec "$@"' -- python {torchrun} --nnodes {resources.nodes}"""
        " --rdzv-backend c10d --rdzv-endpoint $(hostname):$((20000 + SLURM_JOB_ID % 20000))"
    )


def gpus_per_node(resources):
    """Return how many GPUs a job has on each of its nodes, from `gpu: 2`, `gres: gpu:2` or `gres: gpu:a100:2`."""
    for gres in str(resources.get("gres", "")).split(","):
        kind, *rest = gres.split(":")
        if kind == "gpu":
            return int(rest[-1]) if rest and rest[-1].isdigit() else 1
    return int(resources.get("gpu", 0))
