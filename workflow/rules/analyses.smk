# What trained cells are asked beside their predictions, if the configuration asks: `analyses`. Nothing is trained.

ANALYSES = [
    *(
        layout.TABLE.of(name=f"{name}.{kind}")
        for name in SCORING.analysis_tables
        for kind in ("csv", "md", "tex", "html")
    ),
    *(
        layout.FIGURE.of(name=f"{name}.{kind}")
        for name in SCORING.analysis_figures
        for kind in ("png", "svg", "pdf")
    ),
]


rule vary:
    input:
        deltas=SCORING.varied_deltas,
        encoders=lambda wildcards: JOBS.encoders(SCORING.varied_cells(wildcards)),
        volumes=lambda wildcards: JOBS.volumes(wildcards.cohort),
        subjects=lambda wildcards: JOBS.evaluated_subjects(
            wildcards.task, wildcards.cohort, grid.splits_of(SCORING.varied_cells(wildcards))
        ),
        leaks=lambda wildcards: JOBS.test_checks(wildcards, SCORING.varied_cells(wildcards)),
    output:
        layout.VARIED,
    log:
        "results/logs/vary/{analysis}/{task}/{backbone}/{pretraining}/{method}/{cohort}.log",
    benchmark:
        "results/benchmarks/vary/{analysis}/{task}/{backbone}/{pretraining}/{method}/{cohort}.tsv"
    wildcard_constraints:
        analysis=one_of(VARIED),
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: training_mb(wildcards.cohort, attempt),
        runtime=vary_minutes,
        gpu=1,
    params:
        code=lambda wildcards: JOBS.code("analyses.vary", wildcards, "task", "backbone", "method"),
        names=lambda wildcards: names_of(CONFIG, wildcards.analysis),
    message:
        "Predicting variants ({wildcards.analysis}) of {wildcards.task} on {wildcards.cohort}"
        " ({wildcards.backbone}, {wildcards.method})"
    shell:
        "python -m neuropeft vary --analysis {wildcards.analysis} --names {params.names} --deltas {input.deltas:q}"
        " --encoders {input.encoders:q} --store $(dirname {input.volumes:q}) --subjects {input.subjects:q}"
        " --out {output} > {log} 2>&1"


rule saliency:
    input:
        deltas=SCORING.varied_deltas,
        encoders=lambda wildcards: JOBS.encoders(SCORING.varied_cells(wildcards)),
        volumes=lambda wildcards: JOBS.volumes(wildcards.cohort),
        subjects=lambda wildcards: JOBS.evaluated_subjects(
            wildcards.task, wildcards.cohort, grid.splits_of(SCORING.varied_cells(wildcards))
        ),
    output:
        layout.SALIENCY,
    log:
        "results/logs/saliency/{task}/{backbone}/{pretraining}/{method}/{cohort}.log",
    benchmark:
        "results/benchmarks/saliency/{task}/{backbone}/{pretraining}/{method}/{cohort}.tsv"
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: training_mb(wildcards.cohort, attempt),
        runtime=saliency_minutes,
        gpu=1,
    params:
        code=lambda wildcards: JOBS.code("analyses.saliency", wildcards, "task", "backbone", "method"),
        scans=CONFIG.analyses.saliency,
    message:
        "Averaging where {wildcards.method} looks in {wildcards.cohort} for {wildcards.task} ({wildcards.backbone})"
    shell:
        "python -m neuropeft saliency --scans {params.scans} --deltas {input.deltas:q}"
        " --encoders {input.encoders:q} --store $(dirname {input.volumes:q}) --subjects {input.subjects:q}"
        " --out {output} > {log} 2>&1"


rule analyses:
    input:
        SCORING.analysed,
    output:
        [report(file, category="Analyses") if file.endswith((".csv", ".png")) else file for file in ANALYSES],
    log:
        "results/logs/analyses.log",
    conda:
        "../../envs/report.yaml"
    params:
        code=lambda wildcards: SCORING.published_code("publish.analyses"),
        config=lambda wildcards: CONFIG.model_dump_json(),
        tables=layout.TABLES,
        figures=layout.FIGURES,
    message:
        "Writing what trained cells say when they are asked more"
    shell:
        "python -m neuropeft analyses --config-json {params.config:q} --tables {params.tables}"
        " --figures {params.figures} > {log} 2>&1"
