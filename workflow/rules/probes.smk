# Probes on frozen backbones, pretrained and untrained: seconds for each, so they run beside all fine-tunes.


rule features:
    input:
        volumes=lambda wildcards: JOBS.volumes(wildcards.cohort),
        encoder=JOBS.frozen_encoder,
    output:
        layout.FEATURES,
    log:
        "results/logs/features/{pretraining}/{backbone}{fold_part}/{cohort}.log",
    benchmark:
        "results/benchmarks/features/{pretraining}/{backbone}{fold_part}/{cohort}.tsv"
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: estimates.MODEL_MB * attempt,
        runtime=features_minutes,
        gpu=1,
    params:
        code=lambda wildcards: JOBS.code("train.features", wildcards, "backbone"),
        backbone=lambda wildcards: json.dumps(grid.backbone_spec(CONFIG, wildcards.backbone), sort_keys=True),
        encoder=lambda wildcards, input: f"--encoder '{input.encoder}'" if input.encoder else "",
    message:
        "Computing features of {wildcards.cohort} ({wildcards.backbone}, start {wildcards.pretraining})"
    shell:
        "python -m neuropeft features --backbone {params.backbone:q} {params.encoder}"
        " --store $(dirname {input.volumes:q}) --out {output} > {log} 2>&1"


rule probes:
    input:
        split=layout.SPLIT,
        labels=lambda wildcards: JOBS.task_labels(wildcards.task),
        stored=lambda wildcards: [JOBS.stored_scans(cohort) for cohort in JOBS.task_cohorts(wildcards.task)],
        features=JOBS.task_features,
    output:
        directory(layout.PROBES),
    log:
        "results/logs/probes/{task}/{backbone}/{pretraining}/{split}.log",
    benchmark:
        "results/benchmarks/probes/{task}/{backbone}/{pretraining}/{split}.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=probes_mb,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        code=lambda wildcards: JOBS.code("evaluate.probes", wildcards, "task"),
        kind=lambda wildcards: JOBS.task_kind_arguments(wildcards.task),
        subsets=lambda wildcards: grid.subsets_of(JOBS.table, wildcards.task),
        cohorts=lambda wildcards: JOBS.task_cohorts(wildcards.task),
    message:
        "Fitting probes of {wildcards.backbone} (start {wildcards.pretraining}) on {wildcards.task}"
        " ({wildcards.split})"
    shell:
        "python -m neuropeft probes {params.kind} --split {input.split}"
        " --subsets {params.subsets} --cohorts {params.cohorts} --features {input.features}"
        " --out {output} > {log} 2>&1"
