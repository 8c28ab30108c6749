# Who is trained on, validated on and tested on; and a check that nobody is on two sides.


rule split:
    input:
        labels=lambda wildcards: f"results/tasks/{wildcards.task}/{CONFIG.tasks[wildcards.task].train}.tsv",
        stored=lambda wildcards: stored_scans(CONFIG.tasks[wildcards.task].train),
        code=sources("cohorts.splits"),
    output:
        "results/splits/{task}/seed-{seed}.tsv",
    log:
        "results/logs/split/{task}/seed-{seed}.log",
    conda:
        "../../envs/torch.yaml"
    params:
        kind=lambda wildcards: CONFIG.tasks[wildcards.task].kind,
        test=CONFIG.splits.test,
        validation=CONFIG.splits.validation,
    message:
        "Splitting the subjects of task {wildcards.task} (seed {wildcards.seed})"
    shell:
        "python -m neuropeft split --task {wildcards.task} --kind {params.kind} --labels {input.labels}"
        " --store-scans {input.stored} --seed {wildcards.seed} --test {params.test}"
        " --validation {params.validation} --out {output} > {log} 2>&1"


# One job per seed and cohort: a new seed, or a zero-shot cohort that grows, must not retrain what is there.
rule check_leaks:
    input:
        split="results/splits/{task}/seed-{seed}.tsv",
        volumes=lambda wildcards: volumes(CONFIG.tasks[wildcards.task].train),
        zero_shot=compared_volumes,
        code=sources("cohorts.leaks"),
    output:
        "results/splits/{task}/leaks/{cohort}-seed-{seed}.tsv",
    log:
        "results/logs/check_leaks/{task}/{cohort}-seed-{seed}.log",
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=4000,
    message:
        "Checking task {wildcards.task} (seed {wildcards.seed}) for subjects and images of {wildcards.cohort}"
        " on two sides"
    shell:
        "python -m neuropeft check-leaks --splits {input.split} --store {input.volumes}"
        " --zero-shot {input.zero_shot} --out {output} > {log} 2>&1"
