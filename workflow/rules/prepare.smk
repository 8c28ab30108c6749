# The kinds of input whose scans are ready after one step, which is called prepare_*.


rule prepare_scans:
    output:
        table=layout.chunk_table("{step}"),
    log:
        "results/logs/{step}/{cohort}/{chunk}.log",
    benchmark:
        "results/benchmarks/{step}/{cohort}/{chunk}.tsv"
    wildcard_constraints:
        step="prepare_[a-z]+",
    conda:
        "../../envs/preprocessing.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=step_minutes(0.05),
    params:
        step=lambda wildcards: JOBS.step_module(wildcards, wildcards.step),
        code=lambda wildcards: JOBS.step_code(wildcards, wildcards.step),
        sources=lambda wildcards: json.dumps(JOBS.chunk_sources(wildcards.cohort)),
        settings=JOBS.step_settings,
        index=layout.SCANS,
        derivatives=layout.DERIVATIVES,
        # The rows of this chunk and the size and time of their files: a changed scan reruns its chunk alone.
        chunk=lambda wildcards: JOBS.chunk_state(wildcards, MADE_AGAIN),
    message:
        "Preparing cohort {wildcards.cohort} (chunk {wildcards.chunk})"
    shell:
        "python -m neuropeft prepare --step {params.step} --rows {params.index} --chunk {wildcards.chunk}"
        " --sources {params.sources:q} --index {params.index} --settings {params.settings:q}"
        " --derivatives {params.derivatives} --table {output.table} > {log} 2>&1"
