# Tables and figures: everything here derives from stored scores and costs.

COMPARED = ("subsets", "comparisons", "ranks", "across_tasks", "learning_curves", "scans_to_match")
TABLE_NAMES = [
    "scores.csv",
    *(
        f"{name}.{kind}"
        for name in (
            *(f"table{number}" for number in (1, 2, 3, 4)),
            *COMPARED,
            "flow",
            "confounds",
            "costs",
            *(["search"] if CONFIG.training.search else []),
            *(["ensembles"] if CONFIG.analyses.ensembles else []),
            *(["labels"] if any(task.part_names for task in CONFIG.tasks.values()) else []),
        )
        for kind in ("csv", "md", "tex", "html")
    ),
]
FIGURE_NAMES = [
    *(
        f"{name}.{kind}"
        for name in (
            "figure1",
            "figure2",
            "figure3",
            "figure4",
            "ranks",
            "losses_pretraining",
            "losses_finetuning",
            *(f"segmentations_{task}" for task in grid.segmented(CONFIG)),
            *(f"generations_{task}" for task in grid.generated(CONFIG)),
            *(f"reconstructions_{'_'.join(pair)}" for pair in grid.autoencoded(CONFIG)),
        )
        for kind in ("png", "svg", "pdf")
    ),
    "losses_pretraining.csv",
    "losses_finetuning.csv",
]
# Of subjects, from predictions.
DIAGNOSTICS = [
    *(
        layout.TABLE.of(name=f"{name}.{kind}")
        for name in ("calibration", "subgroups", "age_matched", "brain_age", "brain_age_bins")
        for kind in ("csv", "md", "tex", "html")
    ),
    *(
        layout.FIGURE.of(name=f"{name}.{kind}")
        for name in ("reliability", "age_errors")
        for kind in ("png", "svg", "pdf")
    ),
]
TABLES = [layout.TABLE.of(name=name) for name in TABLE_NAMES]
FIGURES = [layout.FIGURE.of(name=name) for name in FIGURE_NAMES]


rule parameter_counts:
    output:
        layout.PARAMETER_COUNTS,
    log:
        "results/logs/parameter_counts.log",
    conda:
        "../../envs/torch.yaml"
    params:
        code=lambda wildcards: numerics.version(
            "methods.counts", *backbones.MODULES.values(), *methods.MODULES.values()
        ),
    message:
        "Counting the parameters of Table 1"
    shell:
        "python -m neuropeft params --format csv > {output} 2> {log}"


rule tables:
    input:
        results=SCORING.result_files,
        counts=layout.PARAMETER_COUNTS,
        search=lambda wildcards: SEARCHES.files(),
    output:
        [report(table, category="Tables") if table.endswith(".csv") else table for table in TABLES],
    log:
        "results/logs/tables.log",
    conda:
        "../../envs/report.yaml"
    params:
        code=lambda wildcards: SCORING.published_code("publish.tables"),
        config=lambda wildcards: CONFIG.model_dump_json(),
        out=lambda wildcards, output: os.path.dirname(output[0]),
    message:
        "Writing the tables"
    shell:
        "python -m neuropeft tables --config-json {params.config:q} --counts {input.counts}"
        " --out {params.out} > {log} 2>&1"


rule figures:
    input:
        results=SCORING.result_files,
    output:
        [report(figure, category="Figures") if figure.endswith(".png") else figure for figure in FIGURES],
    log:
        "results/logs/figures.log",
    conda:
        "../../envs/report.yaml"
    params:
        code=lambda wildcards: SCORING.published_code("publish.figures"),
        config=lambda wildcards: CONFIG.model_dump_json(),
        out=lambda wildcards, output: os.path.dirname(output[0]),
    message:
        "Drawing the figures"
    shell:
        "python -m neuropeft figures --config-json {params.config:q} --out {params.out} > {log} 2>&1"


rule report:
    input:
        expand(layout.QC_TABLE, cohort=JOBS.scanned),
        results=SCORING.result_files,
        tables=[table for table in (*TABLES, *DIAGNOSTICS, *ANALYSES) if table.endswith(".html")],
        figures=[figure for figure in (*FIGURES, *DIAGNOSTICS, *ANALYSES) if figure.endswith(".png")],
        templates=expand(
            f"{workflow.basedir}/workflow/neuropeft/publish/templates/{{name}}",
            name=["report.html", "style.css"],
        ),
    output:
        report(layout.REPORT, category="Report"),
    log:
        "results/logs/report.log",
    conda:
        "../../envs/report.yaml"
    params:
        code=lambda wildcards: SCORING.published_code("publish.report.page"),
        config=lambda wildcards: CONFIG.model_dump_json(),
    message:
        "Writing the report"
    shell:
        "python -m neuropeft report --config-json {params.config:q} --tables {input.tables}"
        " --figures {input.figures} --out {output} > {log} 2>&1"


rule diagnostics:
    input:
        SCORING.diagnosed,
    output:
        [
            report(file, category="Subjects") if file.endswith((".csv", ".png")) else file
            for file in DIAGNOSTICS
        ],
    log:
        "results/logs/diagnostics.log",
    conda:
        "../../envs/report.yaml"
    params:
        code=lambda wildcards: SCORING.published_code("publish.diagnostics"),
        config=lambda wildcards: CONFIG.model_dump_json(),
        tables=lambda wildcards, output: os.path.dirname(output[0]),
        figures=lambda wildcards, output: os.path.dirname(output[-1]),
    message:
        "Looking at groups of subjects: calibration, sex, age"
    shell:
        "python -m neuropeft diagnostics --config-json {params.config:q} --tables {params.tables}"
        " --figures {params.figures} > {log} 2>&1"
