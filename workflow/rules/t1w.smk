# T1-weighted brain MRI, from raw scans to the template grid: four steps over chunks of scans.


rule n4_bias_correction:
    input:
        simulated=JOBS.simulated_chunk,
    output:
        table=temp(layout.chunk_table("n4")),
        scans=temp(directory(layout.N4_FOLDER)),
    log:
        "results/logs/n4_bias_correction/{cohort}/{chunk}.log",
    benchmark:
        "results/benchmarks/n4_bias_correction/{cohort}/{chunk}.tsv"
    conda:
        "../../envs/preprocessing.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=step_minutes(1.0),
    params:
        step=lambda wildcards: JOBS.step_module(wildcards, "n4"),
        code=lambda wildcards: JOBS.step_code(wildcards, "n4"),
        index=layout.SCANS,
        derivatives=layout.DERIVATIVES,
        # The rows of this chunk and the size and time of their files: a changed scan reruns its chunk alone.
        chunk=lambda wildcards: JOBS.chunk_state(wildcards, MADE_AGAIN),
    message:
        "N4 bias correction of cohort {wildcards.cohort} (chunk {wildcards.chunk})"
    shell:
        "python -m neuropeft prepare --step {params.step} --rows {params.index} --chunk {wildcards.chunk}"
        " --temporary {output.scans} --derivatives {params.derivatives} --table {output.table} > {log} 2>&1"


rule skull_strip:
    input:
        table=layout.chunk_table("n4"),
        scans=layout.N4_FOLDER,
    output:
        table=temp(layout.chunk_table("skull_strip")),
    log:
        "results/logs/skull_strip/{cohort}/{chunk}.log",
    benchmark:
        "results/benchmarks/skull_strip/{cohort}/{chunk}.tsv"
    conda:
        "../../envs/preprocessing.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=step_minutes(0.5),
    params:
        step=lambda wildcards: JOBS.step_module(wildcards, "skull_strip"),
        code=lambda wildcards: JOBS.step_code(wildcards, "skull_strip"),
        settings=JOBS.step_settings,
        derivatives=layout.DERIVATIVES,
    message:
        "Skull-stripping cohort {wildcards.cohort} (chunk {wildcards.chunk})"
    shell:
        "python -m neuropeft prepare --step {params.step} --rows {input.table} --settings {params.settings:q}"
        " --temporary {input.scans} --derivatives {params.derivatives} --table {output.table} > {log} 2>&1"


rule register_to_template:
    input:
        table=layout.chunk_table("skull_strip"),
        scans=layout.N4_FOLDER,
    output:
        table=temp(layout.chunk_table("register")),
    log:
        "results/logs/register_to_template/{cohort}/{chunk}.log",
    benchmark:
        "results/benchmarks/register_to_template/{cohort}/{chunk}.tsv"
    conda:
        "../../envs/preprocessing.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=step_minutes(0.5),
    params:
        step=lambda wildcards: JOBS.step_module(wildcards, "register"),
        code=lambda wildcards: JOBS.step_code(wildcards, "register"),
        derivatives=layout.DERIVATIVES,
    message:
        "Registering cohort {wildcards.cohort} to MNI152 (chunk {wildcards.chunk})"
    shell:
        "python -m neuropeft prepare --step {params.step} --rows {input.table}"
        " --temporary {input.scans} --derivatives {params.derivatives} --table {output.table} > {log} 2>&1"


rule resample_to_template:
    input:
        table=layout.chunk_table("register"),
        scans=layout.N4_FOLDER,
    output:
        table=layout.chunk_table("resample"),
    log:
        "results/logs/resample_to_template/{cohort}/{chunk}.log",
    benchmark:
        "results/benchmarks/resample_to_template/{cohort}/{chunk}.tsv"
    conda:
        "../../envs/preprocessing.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=step_minutes(0.3),
    params:
        step=lambda wildcards: JOBS.step_module(wildcards, "resample"),
        code=lambda wildcards: JOBS.step_code(wildcards, "resample"),
        derivatives=layout.DERIVATIVES,
        # What the chunk was made from is written down beside its last table.
        sources=lambda wildcards: json.dumps(JOBS.chunk_sources(wildcards.cohort)),
        index=layout.SCANS,
    message:
        "Resampling cohort {wildcards.cohort} to the template grid (chunk {wildcards.chunk})"
    shell:
        "python -m neuropeft prepare --step {params.step} --rows {input.table}"
        " --temporary {input.scans} --derivatives {params.derivatives} --table {output.table} --sources {params.sources:q}"
        " --index {params.index} > {log} 2>&1"
