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
        unpack(PARTIAL.inputs),
    output:
        layout.PARTIAL_PREDICTIONS,
    log:
        "results/logs/predict_partial/{task}/{backbone}/{pretraining}/{method}/{cohort}.log",
    benchmark:
        "results/benchmarks/predict_partial/{task}/{backbone}/{pretraining}/{method}/{cohort}.tsv"


rule tables_partial:
    input:
        PARTIAL.result_files,
        counts=layout.PARTIAL_COUNTS,
    output:
        [layout.PARTIAL_TABLE.of(name=name) for name in TABLE_NAMES],
    log:
        "results/logs/tables_partial.log",
    localrule: True  # on another node, more cells would have finished than are predicted
    conda:
        "../../envs/report.yaml"
    params:
        code=lambda wildcards: SCORING.published_code("publish.tables"),
        config=lambda wildcards: CONFIG.model_dump_json(),
        out=lambda wildcards, output: os.path.dirname(output[0]),
    message:
        "Writing the tables of the cells that are finished"
    shell:
        "python -m neuropeft tables --partial --config-json {params.config:q} --counts {input.counts}"
        " --out {params.out} > {log} 2>&1"


use rule parameter_counts as parameter_counts_partial with:
    output:
        layout.PARTIAL_COUNTS,
    log:
        "results/logs/parameter_counts_partial.log",
