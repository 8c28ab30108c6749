# Asked for by name while the workflow runs, without its lock: where it is, and tables of the cells that are
# finished. They read what is there and make nothing anew.


rule status:
    log:
        "results/logs/status.log",
    localrule: True
    conda:
        "../../envs/report.yaml"
    params:
        config=lambda wildcards: CONFIG.model_dump_json(),
    message:
        "Where the benchmark is"
    shell:
        "python -m neuropeft status --config-json {params.config:q} 2> {log}"


# The finished cells of a group, on a cohort that is ready.
use rule predict as predict_partial with:
    input:
        unpack(partial_inputs),
        code=lambda wildcards: kind_sources("train.predict", wildcards.backbone, wildcards.method),
    output:
        "results/partial/predictions/{task}/{backbone}/{pretraining}/{method}/{cohort}.tsv",
    log:
        "results/logs/predict_partial/{task}/{backbone}/{pretraining}/{method}/{cohort}.log",
    benchmark:
        "results/benchmarks/predict_partial/{task}/{backbone}/{pretraining}/{method}/{cohort}.tsv"


rule tables_partial:
    input:
        partial_result_files,
        counts="results/partial/parameter_counts.csv",
        code=sources("publish.tables"),
    output:
        [table.replace("results/tables/", "results/partial/tables/") for table in TABLES],
    log:
        "results/logs/tables_partial.log",
    localrule: True  # on another node, more cells would have finished than are predicted
    conda:
        "../../envs/report.yaml"
    params:
        config=lambda wildcards: CONFIG.model_dump_json(),
    message:
        "Writing the tables of the cells that are finished"
    shell:
        "python -m neuropeft tables --partial --config-json {params.config:q} --counts {input.counts}"
        " --out results/partial/tables > {log} 2>&1"


use rule parameter_counts as parameter_counts_partial with:
    output:
        "results/partial/parameter_counts.csv",
    log:
        "results/logs/parameter_counts_partial.log",
