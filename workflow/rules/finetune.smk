# One job per cell: adapt a backbone to a task by a method, with a fraction of the data and a seed.

CELL = "results/cells/{task}/{backbone}/{pretraining}/{method}/fraction-{fraction}/seed-{seed}/"


rule finetune:
    input:
        volumes=lambda wildcards: volumes(CONFIG.tasks[wildcards.task].train),
        split="results/splits/{task}/seed-{seed}.tsv",
        leaks=lambda wildcards: leak_checks(
            wildcards.task, CONFIG.tasks[wildcards.task].train, [wildcards.seed]
        ),
        encoder=encoder,
        code=sources("train.finetune"),
    output:
        delta=f"{CELL}delta.safetensors",
        history=f"{CELL}history.csv",
        cost=f"{CELL}cost.json",
    log:
        "results/logs/finetune/{task}/{backbone}/{pretraining}/{method}/fraction-{fraction}/seed-{seed}.log",
    benchmark:
        "results/benchmarks/finetune/{task}/{backbone}/{pretraining}/{method}/fraction-{fraction}/seed-{seed}.tsv"
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=8000,
        runtime=120,
    params:
        spec=lambda wildcards: grid.cell_spec(CONFIG, cell_of(wildcards)),
        encoder=lambda wildcards, input: f"--encoder {input.encoder}" if input.encoder else "",
        # Not an output: Snakemake deletes outputs of a job that failed, and checkpoints must outlive it.
        state="results/_state/cells/{task}/{backbone}/{pretraining}/{method}/fraction-{fraction}/seed-{seed}",
    message:
        "Fine-tuning {wildcards.backbone} for {wildcards.task} by {wildcards.method}"
        " (fraction {wildcards.fraction} %, seed {wildcards.seed})"
    shell:
        "python -m neuropeft finetune --spec {params.spec:q} --store $(dirname {input.volumes}) --split {input.split}"
        " {params.encoder} --state {params.state} --out $(dirname {output.delta}) > {log} 2>&1"
