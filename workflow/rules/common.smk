# Names that all rules share. Runs whenever a job starts, so it imports no heavy package and reads only caches.
import json
import sys

sys.path.insert(0, str(Path(workflow.basedir, "workflow")))

from neuropeft import grid
from neuropeft.cohorts.chunks import chunk_digest
from neuropeft.cohorts.prepare import prepare, read_chunks
from neuropeft.cohorts.simulate import participants, scan_name
from neuropeft.config import load_config
from neuropeft.errors import UserError
from neuropeft.sources import source, sources
from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

# Jobs use this checkout of the package and, unless conda provides one, the Python that runs Snakemake.
PREFIX = f'export PYTHONPATH="{workflow.basedir}/workflow"; '
if DeploymentMethod.CONDA not in workflow.deployment_settings.deployment_method:
    PREFIX += f'export PATH="{Path(sys.executable).parent}:$PATH"; '
shell.prefix(PREFIX)

try:
    CONFIG_FILES = workflow.overwrite_configfiles or ["config.yaml"]
    CONFIG = load_config(config, base=Path(workflow.basedir), source=Path(CONFIG_FILES[-1]).name)
    CELLS = grid.cells(CONFIG)
    COHORTS = grid.used_cohorts(CONFIG)
    TASKS = grid.used_tasks(CONFIG)
    if workflow.is_main_process:
        prepare(CONFIG, Path("results"))
except UserError as error:
    raise WorkflowError(str(error))

SIMULATED = [cohort for cohort in COHORTS if CONFIG.cohorts[cohort].simulated is not None]


wildcard_constraints:
    cohort="|".join(COHORTS),
    chunk="x[01]*",
    task="|".join(TASKS),
    backbone="|".join(CONFIG.backbones),
    pretraining="|".join([*CONFIG.pretraining, grid.NO_PRETRAINING]),
    method="|".join(CONFIG.methods),
    fraction=r"\d+",
    seed=r"\d+",


def volumes(cohort):
    """Return the volumes of a cohort's store."""
    return f"results/cohorts/{cohort}/store/volumes.npy"


def stored_scans(cohort):
    """Return the rows of a cohort's store."""
    return f"results/cohorts/{cohort}/store/scans.tsv"


def seeds(task):
    """Return the seeds of a task."""
    return grid.seeds_of(CELLS, task)


def cells(**choice):
    """Return the cells whose fields have the given values."""
    return [cell for cell in CELLS if all(getattr(cell, field) == value for field, value in choice.items())]


def cell_folder(cell):
    """Return the folder of a cell's results."""
    return (
        f"results/cells/{cell.task}/{cell.backbone}/{cell.pretraining}/{cell.method}/"
        f"fraction-{cell.fraction}/seed-{cell.seed}"
    )


def cell_of(wildcards):
    """Return the cell that a fine-tune job's wildcards name."""
    return grid.Cell(
        wildcards.task,
        wildcards.backbone,
        wildcards.pretraining,
        wildcards.method,
        int(wildcards.fraction),
        int(wildcards.seed),
    )


def encoder(wildcards):
    """Return the pretrained encoder that a cell starts from, if it starts from one."""
    if wildcards.pretraining == grid.NO_PRETRAINING:
        return []
    return f"results/pretraining/{wildcards.pretraining}/{wildcards.backbone}/encoder.safetensors"


def chunk_rows(cohort, chunk):
    """Return the index rows of a chunk."""
    return read_chunks(Path("results"), cohort)[chunk]


def chunk_tables(wildcards):
    """Return the last chunk table of every chunk of a cohort."""
    chunks = sorted(read_chunks(Path("results"), wildcards.cohort))
    return expand(
        "results/cohorts/{cohort}/chunks/{chunk}/resample.tsv", cohort=wildcards.cohort, chunk=chunks
    )


def simulated_chunk(wildcards):
    """Return what says that a chunk's scans have been simulated, for a simulated cohort."""
    return "results/simulated/{cohort}/chunks/{chunk}.tsv" if wildcards.cohort in SIMULATED else []


def simulated_participants(cohort, chunk):
    """Return the participants of a simulated cohort whose scans are in a chunk, as JSON."""
    wanted = {row["scan_id"] for row in chunk_rows(cohort, chunk)}
    everyone = participants(**CONFIG.cohorts[cohort].simulated.model_dump(exclude={"effect"}))
    return json.dumps([person for person in everyone if scan_name(person) in wanted])


def held_out_splits(wildcards):
    """Return a split of every task trained on the cohort that is pretrained on."""
    cohort = CONFIG.pretraining[wildcards.pretraining].cohort
    return [
        f"results/splits/{task}/seed-{seeds(task)[0]}.tsv"
        for task in TASKS
        if CONFIG.tasks[task].train == cohort
    ]


def launcher(resources):
    """Return what starts one training process per GPU of a job."""
    gpus = int(resources.get("gpu", 0))
    return f"-m torch.distributed.run --standalone --nproc-per-node {gpus}" if gpus > 1 else ""


def group_cells(wildcards):
    """Return the cells that are predicted together, since they share a base."""
    return cells(
        task=wildcards.task,
        backbone=wildcards.backbone,
        pretraining=wildcards.pretraining,
        method=wildcards.method,
    )


def group_deltas(wildcards):
    """Return the deltas of the cells that are predicted together."""
    return [f"{cell_folder(cell)}/delta.safetensors" for cell in group_cells(wildcards)]


def task_cohorts(task):
    """Return the training cohort and the zero-shot cohorts of a task."""
    return [CONFIG.tasks[task].train, *CONFIG.tasks[task].zero_shot]


def task_labels(task):
    """Return the label tables of a task, one per cohort."""
    return [f"results/tasks/{task}/{cohort}.tsv" for cohort in task_cohorts(task)]


def evaluated_subjects(wildcards):
    """Return what says who is predicted: the splits in the training cohort, everybody elsewhere."""
    if wildcards.cohort != CONFIG.tasks[wildcards.task].train:
        return f"results/tasks/{wildcards.task}/{wildcards.cohort}.tsv"
    return expand("results/splits/{task}/seed-{seed}.tsv", task=wildcards.task, seed=group_seeds(wildcards))


def group_seeds(wildcards):
    """Return the seeds of the cells that are predicted together."""
    return sorted({cell.seed for cell in group_cells(wildcards)})


def leak_checks(task, cohort, seeds):
    """Return the reports that no subject or image of a cohort is on two sides of a task's splits."""
    return [f"results/splits/{task}/leaks/{cohort}-seed-{seed}.tsv" for seed in seeds]


def compared_volumes(wildcards):
    """Return the volumes that a training cohort is compared with; with itself it always is."""
    return [] if wildcards.cohort == CONFIG.tasks[wildcards.task].train else volumes(wildcards.cohort)


def result_files():
    """Return everything that tables and figures derive from."""
    predictions = [
        f"results/predictions/{cell.task}/{cell.backbone}/{cell.pretraining}/{cell.method}/{cohort}.tsv"
        for cell in CELLS
        for cohort in task_cohorts(cell.task)
    ]
    trained = [f"{cell_folder(cell)}/{name}" for cell in CELLS for name in ("cost.json", "history.csv")]
    pretrained = [
        f"results/pretraining/{pretraining}/{backbone}/{name}"
        for pretraining, backbone in grid.pretrained(CONFIG)
        for name in ("cost.json", "history.csv", "reconstructions.npz")
    ]
    controls = [f"results/controls/{task}/seed-{seed}" for task in TASKS for seed in seeds(task)]
    labels = [table for task in TASKS for table in task_labels(task)]
    stores = [stored_scans(cohort) for cohort in COHORTS]
    stores += [f"results/cohorts/{cohort}/subjects.tsv" for cohort in COHORTS]
    return list(dict.fromkeys([*predictions, *trained, *pretrained, *controls, *labels, *stores]))


RESULT_FILES = result_files()
