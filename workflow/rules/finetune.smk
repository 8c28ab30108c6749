# Adapt a backbone to a task by a method, with a subset of the data, a seed and a fold: a cell. One job trains a pack of
# cells, which share volumes and base weights; what it has trained it keeps, whatever becomes of the others.


# Every method tries the same few learning rates, on each fold, before its cells are trained.
rule search:
    input:
        volumes=lambda wildcards: JOBS.volumes(CONFIG.tasks[wildcards.task].train),
        splits=lambda wildcards: JOBS.split_files(
            wildcards.task, grid.splits_of(JOBS.searched_cells(wildcards))
        ),
        leaks=lambda wildcards: JOBS.leak_checks(
            wildcards.task,
            CONFIG.tasks[wildcards.task].train,
            grid.splits_of(JOBS.searched_cells(wildcards)),
        ),
        encoder=lambda wildcards: JOBS.encoders(JOBS.searched_cells(wildcards)),
    output:
        layout.SEARCH,
    log:
        "results/logs/search/{task}/{backbone}/{pretraining}/{method}{fold_part}.log",
    benchmark:
        "results/benchmarks/search/{task}/{backbone}/{pretraining}/{method}{fold_part}.tsv"
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: training_mb(CONFIG.tasks[wildcards.task].train, attempt),
        runtime=search_minutes,
        gpu=1,
    params:
        code=lambda wildcards: JOBS.code("train.search", wildcards, "task", "backbone", "method"),
        specs=lambda wildcards: grid.cell_specs(CONFIG, JOBS.searched_cells(wildcards)),
        encoder=lambda wildcards, input: f"--encoder {input.encoder}" if input.encoder else "",
        # Not an output: Snakemake deletes outputs of a job that failed.
        state=layout.SEARCH_STATE,
    message:
        "Trying learning rates of {wildcards.method} for {wildcards.task} ({wildcards.backbone},"
        " {wildcards.pretraining}{wildcards.fold_part})"
    shell:
        "python -m neuropeft search --specs {params.specs:q} --store $(dirname {input.volumes})"
        " --splits {input.splits} {params.encoder} --state {params.state} --table {output} > {log} 2>&1"


rule finetune:
    input:
        volumes=lambda wildcards: JOBS.volumes(CONFIG.tasks[wildcards.task].train),
        splits=lambda wildcards: JOBS.split_files(wildcards.task, JOBS.pack_splits(wildcards)),
        leaks=lambda wildcards: JOBS.leak_checks(
            wildcards.task, CONFIG.tasks[wildcards.task].train, JOBS.pack_splits(wildcards)
        ),
        encoder=JOBS.pack_encoder,
        search=JOBS.pack_search,
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
        search=lambda wildcards, input: f"--search {input.search}" if input.search else "",
        # Not an output: Snakemake deletes outputs of a job that failed, and trained cells must outlive it.
        state=layout.CELL_STATES,
    message:
        "Fine-tuning {wildcards.backbone} for {wildcards.task} by {wildcards.method} (pack {wildcards.pack})"
    shell:
        "python -m neuropeft finetune --specs {params.specs:q} --store $(dirname {input.volumes})"
        " --splits {input.splits} {params.encoder} {params.search} --state {params.state} --table {output} > {log} 2>&1"


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
