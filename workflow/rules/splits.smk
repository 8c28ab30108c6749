# Who is trained on, validated on and tested on; and a check that nobody is on two sides.


rule split:
    input:
        labels=lambda wildcards: JOBS.train_labels(wildcards.task),
        stored=lambda wildcards: JOBS.stored_scans(CONFIG.tasks[wildcards.task].train),
    output:
        layout.SPLIT,
    log:
        "results/logs/split/{task}/{split}.log",
    conda:
        "../../envs/torch.yaml"
    params:
        code=lambda wildcards: JOBS.code("cohorts.splits", wildcards, "task"),
        kind=lambda wildcards: JOBS.task_kind_arguments(wildcards.task),
        seed=lambda wildcards: seed_and_fold(wildcards.split)[0],
        tested=lambda wildcards: (
            f"--fold {seed_and_fold(wildcards.split)[1]} --folds {CONFIG.splits.folds}"
            if CONFIG.splits.folds
            else f"--test {CONFIG.splits.test_share}"
        ),
        validation=CONFIG.splits.validation,
    message:
        "Splitting the subjects of task {wildcards.task} ({wildcards.split})"
    shell:
        "python -m neuropeft split --task {wildcards.task} {params.kind} --labels {input.labels}"
        " --store-scans {input.stored} --seed {params.seed} {params.tested}"
        " --validation {params.validation} --out {output} > {log} 2>&1"


# One job per split and cohort: a new seed, or a zero-shot cohort that grows, must not retrain what is there.
rule check_leaks:
    input:
        split=layout.SPLIT,
        stored=lambda wildcards: JOBS.stored_scans(CONFIG.tasks[wildcards.task].train),
        zero_shot=JOBS.compared_cohort,
    output:
        layout.LEAKS,
    log:
        "results/logs/check_leaks/{task}/{cohort}-{split}.log",
    conda:
        "../../envs/torch.yaml"
    params:
        code=lambda wildcards: numerics.version("cohorts.leaks"),
        same=lambda wildcards: JOBS.same_scan(wildcards.cohort),
        zero_shot=lambda wildcards, input: (
            "--labels {} --zero-shot {}".format(*input.zero_shot) if input.zero_shot else ""
        ),
    message:
        "Checking task {wildcards.task} ({wildcards.split}) for subjects and images of {wildcards.cohort}"
        " on two sides"
    shell:
        "python -m neuropeft check-leaks --split {input.split} --stored {input.stored} {params.zero_shot}"
        " --same {params.same} --out {output} > {log} 2>&1"


# Apart from the check above, so that nothing but predictions waits for the cohort that is pretrained on. The test side,
# or that of a fold, is the same for all seeds.
rule check_pretraining:
    input:
        tested=lambda wildcards: JOBS.evaluated_subjects(
            wildcards.task,
            wildcards.cohort,
            [split_name(JOBS.seeds(wildcards.task)[0], JOBS.fold_of(wildcards))],
        ),
        stored=lambda wildcards: JOBS.stored_scans(wildcards.cohort),
        pretrained=lambda wildcards: JOBS.stored_scans(CONFIG.trained[wildcards.pretraining].cohort),
        held_out=JOBS.held_out_splits,
    output:
        layout.PRETRAINING_LEAKS,
    log:
        "results/logs/check_pretraining/{task}/{pretraining}{fold_part}/{cohort}.log",
    wildcard_constraints:
        pretraining=one_of(CONFIG.trained),
    conda:
        "../../envs/torch.yaml"
    params:
        code=lambda wildcards: numerics.version("cohorts.leaks"),
        same=lambda wildcards: JOBS.same_scan(wildcards.cohort),
    message:
        "Checking that pretraining {wildcards.pretraining} has seen no image that task {wildcards.task} tests on"
        " in {wildcards.cohort}"
    shell:
        "python -m neuropeft check-pretraining --tested {input.tested} --stored {input.stored}"
        " --pretrained {input.pretrained} --hold-out {input.held_out} --same {params.same} --out {output} > {log} 2>&1"
