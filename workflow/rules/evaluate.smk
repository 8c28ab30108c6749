# Predictions on the tasks' own cohorts and on zero-shot cohorts, and the controls beside them.


rule predict:
    input:
        deltas=group_deltas,
        encoders=lambda wildcards: encoders(group_cells(wildcards)),
        volumes=lambda wildcards: volumes(wildcards.cohort),
        subjects=lambda wildcards: evaluated_subjects(
            wildcards.task, wildcards.cohort, grid.splits_of(group_cells(wildcards))
        ),
        leaks=lambda wildcards: test_checks(wildcards, group_cells(wildcards)),
        code=lambda wildcards: kind_sources("train.predict", wildcards.backbone, wildcards.method),
    output:
        "results/predictions/{task}/{backbone}/{pretraining}/{method}/{cohort}.tsv",
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
    message:
        "Predicting {wildcards.task} on {wildcards.cohort} ({wildcards.backbone}, {wildcards.method})"
    shell:
        "python -m neuropeft predict --deltas {input.deltas:q} --encoders {input.encoders:q} --store $(dirname {input.volumes:q})"
        " --subjects {input.subjects:q} --out {output} > {log} 2>&1"


rule controls:
    input:
        split="results/splits/{task}/{split}.tsv",
        labels=lambda wildcards: task_labels(wildcards.task),
        volumes=lambda wildcards: [volumes(cohort) for cohort in task_cohorts(wildcards.task)],
        code=sources("evaluate.controls"),
    output:
        directory("results/controls/{task}/{split}"),
    log:
        "results/logs/controls/{task}/{split}.log",
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        kind=lambda wildcards: CONFIG.tasks[wildcards.task].kind,
        target=lambda wildcards: CONFIG.tasks[wildcards.task].target,
        fractions=lambda wildcards: grid.fractions_of(CELLS, wildcards.task),
        cohorts=lambda wildcards: task_cohorts(wildcards.task),
    message:
        "Fitting the controls of task {wildcards.task} ({wildcards.split})"
    shell:
        "python -m neuropeft controls --kind {params.kind} --target {params.target:q} --split {input.split}"
        " --fractions {params.fractions} --cohorts {params.cohorts} --out {output} > {log} 2>&1"
