# 3D images that are cut out and turned already: one step over chunks of scans.


rule prepare_volumes:
    output:
        table=layout.chunk_table("prepare_volumes"),
    log:
        "results/logs/prepare_volumes/{cohort}/{chunk}.log",
    benchmark:
        "results/benchmarks/prepare_volumes/{cohort}/{chunk}.tsv"
    conda:
        "../../envs/preprocessing.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=step_minutes(0.05),
    params:
        step=lambda wildcards: JOBS.step_module(wildcards, "prepare_volumes"),
        code=lambda wildcards: JOBS.step_code(wildcards, "prepare_volumes"),
        sources=lambda wildcards: json.dumps(JOBS.chunk_sources(wildcards.cohort)),
        settings=JOBS.step_settings,
        index=layout.SCANS,
        derivatives=layout.DERIVATIVES,
        # The rows of this chunk and the size and time of their files: a changed scan reruns its chunk alone.
        chunk=lambda wildcards: chunks.chunk_digest(JOBS.chunk_rows(wildcards.cohort, wildcards.chunk)),
    message:
        "Preparing volumes of cohort {wildcards.cohort} (chunk {wildcards.chunk})"
    shell:
        "python -m neuropeft prepare --step {params.step} --rows {params.index} --chunk {wildcards.chunk}"
        " --sources {params.sources:q} --index {params.index} --settings {params.settings:q}"
        " --derivatives {params.derivatives} --table {output.table} > {log} 2>&1"
