# One encoder per (pretraining, backbone): a masked autoencoder trained here, or weights from elsewhere.


rule pretrain:
    input:
        volumes=lambda wildcards: volumes(CONFIG.autoencoders[wildcards.pretraining].cohort),
        # Test subjects of tasks trained on the same cohort are held out; they are the same for all seeds.
        splits=held_out_splits,
        code=sources("train.pretrain"),
    output:
        encoder="results/pretraining/{pretraining}/{backbone}/encoder.safetensors",
        history="results/pretraining/{pretraining}/{backbone}/history.csv",
        cost="results/pretraining/{pretraining}/{backbone}/cost.json",
        reconstructions="results/pretraining/{pretraining}/{backbone}/reconstructions.npz",
    log:
        "results/logs/pretrain/{pretraining}/{backbone}.log",
    benchmark:
        "results/benchmarks/pretrain/{pretraining}/{backbone}.tsv"
    wildcard_constraints:
        pretraining=one_of(CONFIG.autoencoders),
    priority: 1  # much waits for it
    conda:
        "../../envs/torch.yaml"
    threads: 2
    resources:
        mem_mb=pretrain_mb,
        runtime=pretrain_minutes,
        gpu=1,
    params:
        spec=lambda wildcards: grid.pretraining_spec(CONFIG, wildcards.pretraining, wildcards.backbone),
        # Not an output: Snakemake deletes outputs of a job that failed, and checkpoints must outlive it.
        state="results/_state/pretraining/{pretraining}/{backbone}",
        launch=lambda wildcards, resources, threads: launcher(resources, threads),
    message:
        "Pretraining {wildcards.backbone} as a masked autoencoder ({wildcards.pretraining})"
    shell:
        "{params.launch} -m neuropeft pretrain --spec {params.spec:q} --store $(dirname {input.volumes})"
        " --hold-out {input.splits} --state {params.state} --out $(dirname {output.encoder}) > {log} 2>&1"


rule import_encoder:
    input:
        weights=lambda wildcards: CONFIG.imported[wildcards.pretraining].weights,
        code=sources("models.build", "models.checkpoints"),
    output:
        "results/pretraining/{pretraining}/{backbone}/encoder.safetensors",
    log:
        "results/logs/import_encoder/{pretraining}/{backbone}.log",
    wildcard_constraints:
        pretraining=one_of(CONFIG.imported),
    conda:
        "../../envs/torch.yaml"
    params:
        backbone=lambda wildcards: json.dumps(grid.backbone_spec(CONFIG, wildcards.backbone), sort_keys=True),
    message:
        "Importing {input.weights} into {wildcards.backbone} ({wildcards.pretraining})"
    shell:
        "python -m neuropeft import-encoder --weights {input.weights:q} --backbone {params.backbone:q}"
        " --out {output} > {log} 2>&1"
