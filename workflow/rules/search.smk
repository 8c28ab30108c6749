# Try settings of every method with the same budget, on each fold, before its cells are trained. Trials are cells with
# other settings and fewer steps; a few of a method share a job.
SEARCHES = Searches(CONFIG, JOBS.table)


rule trial:
    input:
        volumes=lambda wildcards: JOBS.volumes(CONFIG.tasks[wildcards.task].train),
        splits=lambda wildcards: JOBS.split_files(wildcards.task, SEARCHES.splits(wildcards)),
        leaks=lambda wildcards: JOBS.leak_checks(
            wildcards.task, CONFIG.tasks[wildcards.task].train, SEARCHES.splits(wildcards)
        ),
        encoder=lambda wildcards: JOBS.encoders(SEARCHES.cells_of(wildcards)),
        earlier=SEARCHES.earlier,
    output:
        layout.TRIALS,
    log:
        "results/logs/search/{task}/{backbone}/{pretraining}/{method}{fold_part}/trials-{first}.log",
    benchmark:
        "results/benchmarks/search/{task}/{backbone}/{pretraining}/{method}{fold_part}/trials-{first}.tsv"
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: training_mb(CONFIG.tasks[wildcards.task].train, attempt),
        runtime=trial_minutes,
        gpu=1,
    params:
        code=lambda wildcards: JOBS.code("train.search", wildcards, "task", "backbone", "method"),
        specs=lambda wildcards: grid.cell_specs(CONFIG, SEARCHES.cells_of(wildcards)),
        search=lambda wildcards: SEARCHES.settings(),
        encoder=lambda wildcards, input: f"--encoder {input.encoder}" if input.encoder else "",
        earlier=lambda wildcards, input: f"--earlier {input.earlier}" if input.earlier else "",
        # Not an output: Snakemake deletes outputs of a job that failed.
        state=layout.TRIAL_STATES,
    message:
        "Trying settings of {wildcards.method} for {wildcards.task} ({wildcards.backbone}, {wildcards.pretraining}"
        "{wildcards.fold_part}, from trial {wildcards.first})"
    shell:
        "python -m neuropeft trial --specs {params.specs:q} --search {params.search:q} --first {wildcards.first}"
        " --store $(dirname {input.volumes}) --splits {input.splits} {params.encoder} {params.earlier}"
        " --state {params.state} --table {output} > {log} 2>&1"


rule choose:
    input:
        lambda wildcards: SEARCHES.trials(SEARCHES.named(wildcards)),
    output:
        layout.CHOICES,
    log:
        "results/logs/search/{task}/{backbone}/{pretraining}/{method}{fold_part}/chosen.log",
    localrule: True
    conda:
        "../../envs/torch.yaml"
    params:
        code=lambda wildcards: numerics.version("train.choices"),
        search=lambda wildcards: SEARCHES.settings(),
    message:
        "Choosing settings of {wildcards.method} for {wildcards.task} ({wildcards.backbone}, {wildcards.pretraining}"
        "{wildcards.fold_part})"
    shell:
        "python -m neuropeft choose --trials {input} --search {params.search:q} --out {output} > {log} 2>&1"
