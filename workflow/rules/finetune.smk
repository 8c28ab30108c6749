# Adapt a backbone to a task by a method, with a subset of the data, a seed and a fold: a cell. One job trains a pack of
# cells, which share volumes and base weights; what it has trained it keeps, whatever becomes of the others.


rule finetune:
    input:
        volumes=lambda wildcards: JOBS.volumes(CONFIG.tasks[wildcards.task].train),
        splits=lambda wildcards: JOBS.split_files(wildcards.task, JOBS.pack_splits(wildcards)),
        leaks=lambda wildcards: JOBS.leak_checks(
            wildcards.task, CONFIG.tasks[wildcards.task].train, JOBS.pack_splits(wildcards)
        ),
        encoder=JOBS.pack_encoder,
        choices=JOBS.pack_choices,
    output:
        layout.PACK,
    log:
        layout.FINETUNE_LOG,
    benchmark:
        "results/benchmarks/finetune/{task}/{backbone}/{pretraining}/{method}/{pack}.tsv"
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: training_mb(CONFIG.tasks[wildcards.task].train, attempt),
        runtime=finetune_minutes,
        gpu=1,
    params:
        code=lambda wildcards: JOBS.code("train.pack", wildcards, "task", "backbone", "method"),
        specs=lambda wildcards: grid.cell_specs(CONFIG, JOBS.packs[JOBS.pack_named(wildcards)]),
        encoder=lambda wildcards, input: f"--encoder {input.encoder}" if input.encoder else "",
        choices=lambda wildcards, input: f"--choices {input.choices}" if input.choices else "",
        # Not an output: Snakemake deletes outputs of a job that failed, and trained cells must outlive it.
        state=layout.CELL_STATES,
    message:
        "Fine-tuning {wildcards.backbone} for {wildcards.task} by {wildcards.method} (pack {wildcards.pack})"
    shell:
        "python -m neuropeft finetune --specs {params.specs:q} --store $(dirname {input.volumes})"
        " --splits {input.splits} {params.encoder} {params.choices} --state {params.state} --table {output} > {log} 2>&1"


rule cell:
    input:
        lambda wildcards: JOBS.pack_table(JOBS.cell_of(wildcards)),
    output:
        delta=layout.DELTA,
        history=layout.HISTORY,
        cost=layout.COST,
    log:
        "results/logs/cell/{task}/{backbone}/{pretraining}/{method}/{subset}/{split}.log",
    localrule: True
    conda:
        "../../envs/torch.yaml"
    params:
        spec=lambda wildcards: json.dumps(grid.cell_spec(CONFIG, JOBS.cell_of(wildcards)), sort_keys=True),
        state=lambda wildcards: state_folder(RESULTS, JOBS.cell_of(wildcards)),
        sources=lambda wildcards: JOBS.cell_sources(JOBS.cell_of(wildcards)),
    message:
        "Taking over {wildcards.task}/{wildcards.backbone}/{wildcards.pretraining}/{wildcards.method}"
        " ({wildcards.subset}, {wildcards.split})"
    shell:
        "python -m neuropeft take-cell --spec {params.spec:q} --state {params.state} {params.sources}"
        " --out $(dirname {output.delta}) > {log} 2>&1"
