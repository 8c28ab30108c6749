# Predictions on the tasks' own cohorts and on zero-shot cohorts, and the controls beside them.


rule predict:
    input:
        deltas=group_deltas,
        encoder=encoder,
        volumes=lambda wildcards: volumes(wildcards.cohort),
        subjects=lambda wildcards: evaluated_subjects(
            wildcards.task, wildcards.cohort, group_seeds(wildcards)
        ),
        leaks=lambda wildcards: test_checks(wildcards, group_seeds(wildcards)),
        code=sources("train.predict"),
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
    params:
        encoder=lambda wildcards, input: f"--encoder '{input.encoder}'" if input.encoder else "",
    message:
        "Predicting {wildcards.task} on {wildcards.cohort} ({wildcards.backbone}, {wildcards.method})"
    shell:
        "python -m neuropeft predict --deltas {input.deltas:q} {params.encoder} --store $(dirname {input.volumes:q})"
        " --subjects {input.subjects:q} --out {output} > {log} 2>&1"


rule controls:
    input:
        split="results/splits/{task}/seed-{seed}.tsv",
        labels=lambda wildcards: task_labels(wildcards.task),
        volumes=lambda wildcards: [volumes(cohort) for cohort in task_cohorts(wildcards.task)],
        code=sources("evaluate.controls"),
    output:
        directory("results/controls/{task}/seed-{seed}"),
    log:
        "results/logs/controls/{task}/seed-{seed}.log",
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        kind=lambda wildcards: CONFIG.tasks[wildcards.task].kind,
        target=lambda wildcards: CONFIG.tasks[wildcards.task].target,
        cohorts=lambda wildcards: task_cohorts(wildcards.task),
    message:
        "Fitting the controls of task {wildcards.task} (seed {wildcards.seed})"
    shell:
        "python -m neuropeft controls --kind {params.kind} --target {params.target:q} --split {input.split}"
        " --seed {wildcards.seed} --cohorts {params.cohorts} --out {output} > {log} 2>&1"
