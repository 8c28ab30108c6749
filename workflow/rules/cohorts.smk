# Tables of people and labels; and cohorts that are made here: the raw scans of simulated ones, and the stores of
# synthetic ones.


# What the main process has read from a cohort, put where jobs read it; another content is another name in the cache.
rule people:
    output:
        layout.SUBJECTS,
    log:
        "results/logs/people/{cohort}.log",
    localrule: True
    conda:
        "../../envs/report.yaml"
    params:
        cached=lambda wildcards: JOBS.cached_table(layout.SUBJECTS, wildcards),
    message:
        "Writing who is in cohort {wildcards.cohort}"
    shell:
        "(cp {params.cached} {output}.new && mv {output}.new {output}) > {log} 2>&1"


localrules:  # this is not taken over from the rule above
    labels,
    sites,
    morphometry,


use rule people as labels with:
    output:
        layout.LABELS,
    log:
        "results/logs/labels/{task}/{cohort}.log",
    params:
        cached=lambda wildcards: JOBS.cached_table(layout.LABELS, wildcards),
    message:
        "Writing the labels of task {wildcards.task} in cohort {wildcards.cohort}"


use rule people as sites with:
    output:
        layout.SITES,
    log:
        "results/logs/sites/{cohort}.log",
    params:
        cached=lambda wildcards: JOBS.cached_table(layout.SITES, wildcards),
    message:
        "Writing at which site scans of cohort {wildcards.cohort} were taken"


use rule people as morphometry with:
    output:
        layout.MORPHOMETRY,
    log:
        "results/logs/morphometry/{cohort}.log",
    params:
        cached=lambda wildcards: JOBS.cached_table(layout.MORPHOMETRY, wildcards),
    message:
        "Writing the region volumes of cohort {wildcards.cohort}"


rule simulate_scans:
    output:
        table=layout.SIMULATED_CHUNK,
    log:
        "results/logs/simulate_scans/{cohort}/{chunk}.log",
    benchmark:
        "results/benchmarks/simulate_scans/{cohort}/{chunk}.tsv"
    conda:
        "../../envs/preprocessing.yaml"
    params:
        code=lambda wildcards: numerics.version("cohorts.simulate"),
        root=layout.SIMULATED,
        # Who is in this chunk, so that a cohort that grows simulates its new scans' chunk alone.
        participants=lambda wildcards: JOBS.simulated_participants(wildcards.cohort, wildcards.chunk),
        effect=lambda wildcards: CONFIG.cohorts[wildcards.cohort].simulated.effect,
    message:
        "Simulating scans of the simulated cohort {wildcards.cohort} (chunk {wildcards.chunk})"
    shell:
        "python -m neuropeft simulate --participants {params.participants:q} --effect {params.effect}"
        " --root {params.root} --table {output.table} > {log} 2>&1"


rule simulate_tables:
    output:
        participants=layout.SIMULATED_PARTICIPANTS,
        description=layout.SIMULATED_DESCRIPTION,
    log:
        "results/logs/simulate_tables/{cohort}.log",
    conda:
        "../../envs/preprocessing.yaml"
    params:
        code=lambda wildcards: numerics.version("cohorts.simulate"),
        root=layout.SIMULATED,
        spec=lambda wildcards: CONFIG.cohorts[wildcards.cohort].simulated.model_dump_json(),
    message:
        "Writing the participants of the simulated cohort {wildcards.cohort}"
    shell:
        "python -m neuropeft simulate-tables --spec {params.spec:q} --root {params.root} > {log} 2>&1"


rule synthesize:
    output:
        volumes=layout.VOLUMES,
        tissue=layout.TISSUE,
        signatures=layout.SIGNATURES,
        scans=layout.STORED_SCANS,
    log:
        "results/logs/synthesize/{cohort}.log",
    benchmark:
        "results/benchmarks/synthesize/{cohort}.tsv"
    wildcard_constraints:
        cohort=one_of(JOBS.synthetic),
    conda:
        "../../envs/preprocessing.yaml"
    threads: 2
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=cohort_minutes(0.01),
    params:
        code=lambda wildcards: numerics.version("cohorts.synthetic_store"),
        volumes=lambda wildcards: CONFIG.cohorts[wildcards.cohort].synthetic.volumes,
        seed=lambda wildcards: CONFIG.cohorts[wildcards.cohort].synthetic.seed,
        size=CONFIG.preprocessing.size,
    message:
        "Painting the synthetic cohort {wildcards.cohort}"
    shell:
        "python -m neuropeft synthesize --volumes {params.volumes} --seed {params.seed} --size {params.size}"
        " --processes {threads} --out $(dirname {output.volumes}) > {log} 2>&1"
