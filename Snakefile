# neuropeft: preprocess cohorts, pretrain a masked autoencoder, fine-tune every cell, publish tables and curves.
from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")


# A file given with --configfile replaces config.yaml whole instead of being merged into it.
if not workflow.overwrite_configfiles:

    configfile: Path(workflow.basedir, "config.yaml")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


# Snakemake refuses an image in a folder whose path has a space, whether it is used or not.
if DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method:

    container: str(Path(workflow.basedir, "envs", "neuropeft.sif"))  # envs/neuropeft.def says how to build it


include: "workflow/rules/resources.smk"
include: "workflow/rules/cohorts.smk"
include: "workflow/rules/t1w.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/stores.smk"
include: "workflow/rules/splits.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/search.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/probes.smk"
include: "workflow/rules/publish.smk"
include: "workflow/rules/partial.smk"


rule all:
    default_target: True
    input:
        TABLES,
        FIGURES,
        DIAGNOSTICS,
        layout.REPORT,
        expand(layout.QC_PAGE, cohort=JOBS.scanned),
        expand(layout.SIMULATED_PARTICIPANTS, cohort=JOBS.simulated),
    localrule: True
