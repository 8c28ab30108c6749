# What all kinds of input share: which scans are excluded, the store, and the QC page.


# The verbs below look up the chunks by the cohort's name: at the size of UK Biobank, a list of their tables is about as
# long as one argument of a command may be.
rule list_excluded:
    input:
        tables=JOBS.chunk_tables,
    output:
        layout.EXCLUDED,
    log:
        "results/logs/list_excluded/{cohort}.log",
    conda:
        "../../envs/preprocessing.yaml"
    params:
        code=lambda wildcards: numerics.version("inputs.store"),
        last_step=JOBS.last_step,
    message:
        "Listing the scans of cohort {wildcards.cohort} that could not be processed"
    shell:
        "python -m neuropeft list-excluded --cohort {wildcards.cohort} --last-step {params.last_step} --out {output}"
        " > {log} 2>&1"


rule pack_cohort:
    input:
        tables=JOBS.chunk_tables,
        # A job of its own writes this list, so that it outlives a run that stops here.
        excluded=layout.EXCLUDED,
    output:
        volumes=layout.VOLUMES,
        signatures=layout.SIGNATURES,
        scans=layout.STORED_SCANS,
    log:
        "results/logs/pack_cohort/{cohort}.log",
    benchmark:
        "results/benchmarks/pack_cohort/{cohort}.tsv"
    wildcard_constraints:
        cohort=one_of(JOBS.scanned),
    conda:
        "../../envs/preprocessing.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=cohort_minutes(0.01),
    params:
        code=lambda wildcards: JOBS.code("inputs.store", wildcards, "cohort"),
        kind=JOBS.input_kind,
        last_step=JOBS.last_step,
        max_excluded_share=CONFIG.preprocessing.max_excluded_share,
        size=CONFIG.preprocessing.size,
    message:
        "Packing cohort {wildcards.cohort}"
    shell:
        "python -m neuropeft pack --cohort {wildcards.cohort} --input {params.kind} --last-step {params.last_step}"
        " --excluded {input.excluded} --max-excluded-share {params.max_excluded_share} --size {params.size}"
        " --volumes {output.volumes} --scans {output.scans} > {log} 2>&1"


rule qc:
    input:
        tables=JOBS.chunk_tables,
    output:
        table=layout.QC_TABLE,
        page=report(layout.QC_PAGE, category="QC", labels={"cohort": "{cohort}"}),
    log:
        "results/logs/qc/{cohort}.log",
    conda:
        "../../envs/preprocessing.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=cohort_minutes(0.02),
    params:
        code=lambda wildcards: JOBS.code("inputs.qc", wildcards, "cohort"),
        kind=JOBS.input_kind,
        last_step=JOBS.last_step,
        simulated=lambda wildcards: "--simulated" if wildcards.cohort in JOBS.simulated else "",
    message:
        "Drawing the QC page of cohort {wildcards.cohort}"
    shell:
        "python -m neuropeft qc --cohort {wildcards.cohort} --input {params.kind} --last-step {params.last_step}"
        " {params.simulated} --table {output.table} --page {output.page} > {log} 2>&1"
