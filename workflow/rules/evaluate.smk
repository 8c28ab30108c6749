# Predictions on the tasks' own cohorts and on zero-shot cohorts, the controls beside them, and the scores of all.


# What the networks that judge drawn images say of the cohort's own: once for all methods.
rule describe:
    input:
        volumes=lambda wildcards: JOBS.volumes(CONFIG.tasks[wildcards.task].train),
        labels=lambda wildcards: JOBS.train_labels(wildcards.task),
        networks=lambda wildcards: CONFIG.tasks[wildcards.task].scorers,
    output:
        layout.DESCRIBED,
    log:
        "results/logs/describe/{task}.log",
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: training_mb(CONFIG.tasks[wildcards.task].train, attempt),
        runtime=lambda wildcards, attempt: 120 * attempt,
        gpu=1,
    params:
        code=lambda wildcards: numerics.version("train.describe"),
        told=lambda wildcards: CONFIG.tasks[wildcards.task].told_networks,
    message:
        "Describing the images of task {wildcards.task}"
    shell:
        "python -m neuropeft describe --told {params.told:q} --labels {input.labels}"
        " --store $(dirname {input.volumes}) --out {output} > {log} 2>&1"


rule predict:
    input:
        deltas=JOBS.group_deltas,
        encoders=lambda wildcards: JOBS.encoders(JOBS.group_cells(wildcards)),
        volumes=lambda wildcards: JOBS.volumes(wildcards.cohort),
        subjects=lambda wildcards: JOBS.evaluated_subjects(
            wildcards.task, wildcards.cohort, grid.splits_of(JOBS.group_cells(wildcards))
        ),
        leaks=lambda wildcards: JOBS.test_checks(wildcards, JOBS.group_cells(wildcards)),
        described=lambda wildcards: JOBS.described(wildcards.task),
    output:
        layout.PREDICTIONS,
    log:
        "results/logs/predict/{task}/{backbone}/{pretraining}/{method}/{cohort}.log",
    benchmark:
        "results/benchmarks/predict/{task}/{backbone}/{pretraining}/{method}/{cohort}.tsv"
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: training_mb(wildcards.cohort, attempt),
        runtime=predict_minutes,
        gpu=1,
    params:
        code=lambda wildcards: JOBS.code("train.predict", wildcards, "task", "backbone", "method"),
        told=lambda wildcards: JOBS.prediction_arguments(wildcards.task),
    message:
        "Predicting {wildcards.task} on {wildcards.cohort} ({wildcards.backbone}, {wildcards.method})"
    shell:
        "python -m neuropeft predict --deltas {input.deltas:q} --encoders {input.encoders:q} --store $(dirname {input.volumes:q})"
        " --subjects {input.subjects:q}{params.told} --out {output} > {log} 2>&1"


rule controls:
    input:
        split=layout.SPLIT,
        labels=lambda wildcards: JOBS.task_labels(wildcards.task),
        volumes=lambda wildcards: [JOBS.volumes(cohort) for cohort in JOBS.task_cohorts(wildcards.task)],
        tables=JOBS.control_tables,
    output:
        directory(layout.CONTROLS),
    log:
        "results/logs/controls/{task}/{split}.log",
    wildcard_constraints:
        task=one_of(set(CONFIG.tasks) - set(grid.segmented(CONFIG))),
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        code=lambda wildcards: JOBS.code(JOBS.controls_module(wildcards.task), wildcards, "task"),
        kind=lambda wildcards: JOBS.task_kind_arguments(wildcards.task),
        targets=lambda wildcards: list(CONFIG.tasks[wildcards.task].target_columns.values()),
        subsets=lambda wildcards: grid.subsets_of(JOBS.table, wildcards.task),
        cohorts=lambda wildcards: JOBS.task_cohorts(wildcards.task),
        methods=lambda wildcards: contenders.controls_of(CONFIG, wildcards.task),
    message:
        "Fitting the controls of task {wildcards.task} ({wildcards.split})"
    shell:
        "python -m neuropeft controls {params.kind} --methods {params.methods} --targets {params.targets:q}"
        " --split {input.split} --subsets {params.subsets} --cohorts {params.cohorts} --out {output} > {log} 2>&1"


# The control of regions: they are found where most training subjects have them.
rule mean_label_map:
    input:
        split=layout.SPLIT,
        labels=lambda wildcards: JOBS.task_labels(wildcards.task),
        volumes=lambda wildcards: [JOBS.volumes(cohort) for cohort in JOBS.task_cohorts(wildcards.task)],
    output:
        directory(layout.CONTROLS),
    log:
        "results/logs/controls/{task}/{split}.log",
    wildcard_constraints:
        task=one_of(grid.segmented(CONFIG)),
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        code=lambda wildcards: JOBS.code("evaluate.mean_label_map", wildcards, "task"),
        kind=lambda wildcards: JOBS.task_kind_arguments(wildcards.task),
        methods=lambda wildcards: contenders.controls_of(CONFIG, wildcards.task),
        subsets=lambda wildcards: grid.subsets_of(JOBS.table, wildcards.task),
        cohorts=lambda wildcards: JOBS.task_cohorts(wildcards.task),
    message:
        "Comparing the mean label map of task {wildcards.task} ({wildcards.split})"
    shell:
        "python -m neuropeft mean-label-map {params.kind} --methods {params.methods} --split {input.split}"
        " --subsets {params.subsets} --cohorts {params.cohorts} --out {output} > {log} 2>&1"


# Once for all that is published: what contenders are predicted together is scored together, with its bootstrap draws.
rule score:
    input:
        SCORING.predictions_scored,
    output:
        table=layout.SCORES,
        draws=layout.SCORE_DRAWS,
    log:
        "results/logs/score/{scored}.log",
    wildcard_constraints:
        scored=r"(cells|ensembles|probes|controls|interpolation|robustness)/.+",
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=SCORING.score_code,
        spec=SCORING.score_spec,
    message:
        "Scoring {wildcards.scored}"
    shell:
        "python -m neuropeft score --spec {params.spec:q} --table {output.table} --draws {output.draws} > {log} 2>&1"


# Once for a task: whether its site and sex can be predicted from labels, features and predictions takes seconds.
rule confounds:
    input:
        SCORING.confound_inputs,
    output:
        layout.CONFOUNDS,
    log:
        "results/logs/confounds/{task}.log",
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=lambda wildcards: JOBS.code("evaluate.confounds", wildcards, "task"),
        spec=SCORING.confound_spec,
    message:
        "Predicting site and sex from labels, features and predictions of task {wildcards.task}"
    shell:
        "python -m neuropeft confounds --spec {params.spec:q} --out {output} > {log} 2>&1"
