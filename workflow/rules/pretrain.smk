# One encoder per (pretraining, backbone), or one for each fold where tasks are tested on its cohort in folds: a masked
# autoencoder trained here, or weights that are taken over: from elsewhere, or from part of a pretraining.


rule pretrain:
    input:
        volumes=lambda wildcards: JOBS.volumes(CONFIG.trained[wildcards.pretraining].cohort),
        # Test subjects of tasks trained on the same cohort are held out; they are the same for all seeds.
        splits=JOBS.held_out_splits,
        people=JOBS.known_people,
        start=JOBS.pretraining_start,
    output:
        encoder=layout.ENCODER,
        history=layout.PRETRAINING_HISTORY,
        cost=layout.PRETRAINING_COST,
        kept=[layout.KEPT_ENCODER.replace("{percent}", str(percent)) for percent in pretraining.KEPT],
    log:
        layout.PRETRAIN_LOG,
    benchmark:
        "results/benchmarks/pretrain/{pretraining}/{backbone}{fold_part}.tsv"
    wildcard_constraints:
        pretraining=one_of(CONFIG.trained),
    priority: 1  # much waits for it
    conda:
        "../../envs/torch.yaml"
    # A CPU's threads wait for one another longer than they compute on networks this small; profiles give more.
    threads: 1
    resources:
        mem_mb=pretrain_mb,
        runtime=pretrain_minutes,
        gpu=1,
    params:
        code=lambda wildcards: JOBS.code("train.pretrain", wildcards, "pretraining"),
        spec=lambda wildcards: grid.pretraining_spec(CONFIG, wildcards.pretraining, wildcards.backbone),
        people=lambda wildcards, input: f"--people {input.people}" if input.people else "",
        start=lambda wildcards, input: f"--start {input.start}" if input.start else "",
        # Not an output: Snakemake deletes outputs of a job that failed, and checkpoints must outlive it.
        state=layout.PRETRAINING_STATE,
        launch=lambda wildcards, resources, threads: launcher(resources, threads),
    message:
        "Pretraining {wildcards.backbone} ({wildcards.pretraining}{wildcards.fold_part})"
    shell:
        "{params.launch} -m neuropeft pretrain --spec {params.spec:q} --store $(dirname {input.volumes})"
        " --hold-out {input.splits} {params.people} {params.start} --state {params.state}"
        " --out $(dirname {output.encoder}) > {log} 2>&1"


rule import_encoder:
    input:
        weights=JOBS.weights,
    output:
        layout.ENCODER,
    log:
        "results/logs/import_encoder/{pretraining}/{backbone}{fold_part}.log",
    wildcard_constraints:
        pretraining=one_of([*CONFIG.imported, *CONFIG.kept]),
    conda:
        "../../envs/torch.yaml"
    params:
        code=lambda wildcards: JOBS.code("backbones.checkpoints", wildcards, "pretraining", "backbone"),
        backbone=lambda wildcards: json.dumps(grid.backbone_spec(CONFIG, wildcards.backbone), sort_keys=True),
    message:
        "Importing {input.weights} into {wildcards.backbone} ({wildcards.pretraining})"
    shell:
        "python -m neuropeft import-encoder --weights {input.weights:q} --backbone {params.backbone:q}"
        " --out {output} > {log} 2>&1"
