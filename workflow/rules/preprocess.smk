# From raw scans to the store: four steps over chunks of scans, then QC and packing.


rule n4_bias_correction:
    input:
        simulated=JOBS.simulated_chunk,
    output:
        table=temp(layout.N4_TABLE),
        scans=temp(directory(layout.N4_FOLDER)),
    log:
        "results/logs/n4_bias_correction/{cohort}/{chunk}.log",
    benchmark:
        "results/benchmarks/n4_bias_correction/{cohort}/{chunk}.tsv"
    conda:
        "../../envs/preprocessing.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=step_minutes("n4"),
    params:
        # Each step depends on its own code; `preprocess.steps` imports that of all four.
        code=lambda wildcards: numerics.version("preprocess.n4", alone="preprocess.steps"),
        index=layout.SCANS,
        # The rows of this chunk and the size and time of their files: a changed scan reruns its chunk alone.
        chunk=lambda wildcards: chunks.chunk_digest(JOBS.chunk_rows(wildcards.cohort, wildcards.chunk)),
    message:
        "N4 bias correction of cohort {wildcards.cohort} (chunk {wildcards.chunk})"
    shell:
        "python -m neuropeft n4 --index {params.index} --chunk {wildcards.chunk}"
        " --out {output.scans} --table {output.table} > {log} 2>&1"


rule skull_strip:
    input:
        table=layout.N4_TABLE,
        scans=layout.N4_FOLDER,
    output:
        table=temp(layout.SKULL_STRIP_TABLE),
    log:
        "results/logs/skull_strip/{cohort}/{chunk}.log",
    benchmark:
        "results/benchmarks/skull_strip/{cohort}/{chunk}.tsv"
    conda:
        "../../envs/preprocessing.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=step_minutes("skull_strip"),
    params:
        code=lambda wildcards: numerics.version("preprocess.skullstrip", alone="preprocess.steps"),
        method=lambda wildcards: CONFIG.cohorts[wildcards.cohort].skull_strip,
        derivatives=layout.DERIVATIVES,
    message:
        "Skull-stripping cohort {wildcards.cohort} (chunk {wildcards.chunk})"
    shell:
        "python -m neuropeft skull-strip --scans {input.scans} --table-in {input.table} --method {params.method}"
        " --derivatives {params.derivatives} --table {output.table} > {log} 2>&1"


rule register_to_template:
    input:
        table=layout.SKULL_STRIP_TABLE,
        scans=layout.N4_FOLDER,
    output:
        table=temp(layout.REGISTER_TABLE),
    log:
        "results/logs/register_to_template/{cohort}/{chunk}.log",
    benchmark:
        "results/benchmarks/register_to_template/{cohort}/{chunk}.tsv"
    conda:
        "../../envs/preprocessing.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=step_minutes("register"),
    params:
        code=lambda wildcards: numerics.version(
            "preprocess.register", "preprocess.template", alone="preprocess.steps"
        ),
        derivatives=layout.DERIVATIVES,
    message:
        "Registering cohort {wildcards.cohort} to MNI152 (chunk {wildcards.chunk})"
    shell:
        "python -m neuropeft register --scans {input.scans} --table-in {input.table}"
        " --derivatives {params.derivatives} --table {output.table} > {log} 2>&1"


rule resample_to_template:
    input:
        table=layout.REGISTER_TABLE,
        scans=layout.N4_FOLDER,
    output:
        table=layout.RESAMPLE_TABLE,
    log:
        "results/logs/resample_to_template/{cohort}/{chunk}.log",
    benchmark:
        "results/benchmarks/resample_to_template/{cohort}/{chunk}.tsv"
    conda:
        "../../envs/preprocessing.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=step_minutes("resample"),
    params:
        code=lambda wildcards: numerics.version(
            "preprocess.resample", "preprocess.measures", alone="preprocess.steps"
        ),
        derivatives=layout.DERIVATIVES,
        index=layout.SCANS,
        method=lambda wildcards: CONFIG.cohorts[wildcards.cohort].skull_strip,
    message:
        "Resampling cohort {wildcards.cohort} to the template grid (chunk {wildcards.chunk})"
    shell:
        "python -m neuropeft resample --scans {input.scans} --table-in {input.table} --index {params.index}"
        " --chunk {wildcards.chunk} --method {params.method} --derivatives {params.derivatives}"
        " --table {output.table} > {log} 2>&1"


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
        code=lambda wildcards: numerics.version("preprocess.store"),
    message:
        "Listing the scans of cohort {wildcards.cohort} that could not be processed"
    shell:
        "python -m neuropeft list-excluded --cohort {wildcards.cohort} --out {output} > {log} 2>&1"


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
        runtime=cohort_minutes("pack"),
    params:
        code=lambda wildcards: numerics.version("preprocess.store"),
        max_excluded_share=CONFIG.preprocessing.max_excluded_share,
        size=CONFIG.preprocessing.size,
    message:
        "Packing cohort {wildcards.cohort}"
    shell:
        "python -m neuropeft pack --cohort {wildcards.cohort} --excluded {input.excluded} --size {params.size}"
        " --max-excluded-share {params.max_excluded_share} --volumes {output.volumes} --scans {output.scans}"
        " > {log} 2>&1"


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
        runtime=cohort_minutes("qc"),
    params:
        code=lambda wildcards: numerics.version("preprocess.qc"),
        simulated=lambda wildcards: "--simulated" if wildcards.cohort in JOBS.simulated else "",
    message:
        "Drawing the QC page of cohort {wildcards.cohort}"
    shell:
        "python -m neuropeft qc --cohort {wildcards.cohort} {params.simulated} --table {output.table}"
        " --page {output.page} > {log} 2>&1"
