# Tables and figures: everything here derives from stored predictions and costs.

TABLES = multiext(
    "results/tables/",
    *(f"table{number}.{kind}" for number in (1, 2, 3, 4) for kind in ("csv", "md", "tex")),
    "scores.csv",
    "costs.csv",
)
FIGURES = multiext(
    "results/figures/",
    *(
        f"{name}.{kind}"
        for name in (
            "figure1",
            "figure2",
            "figure3",
            "losses_pretraining",
            "losses_finetuning",
            *(f"reconstructions_{'_'.join(pair)}" for pair in grid.autoencoded(CONFIG)),
        )
        for kind in ("png", "svg", "pdf")
    ),
    "losses_pretraining.csv",
    "losses_finetuning.csv",
)


rule parameter_counts:
    input:
        code=sources("methods.counts", *backbones.MODULES.values(), *methods.MODULES.values()),
    output:
        "results/tables/parameter_counts.csv",
    log:
        "results/logs/parameter_counts.log",
    conda:
        "../../envs/torch.yaml"
    message:
        "Counting the parameters of Table 1"
    shell:
        "python -m neuropeft params --format csv > {output} 2> {log}"


rule tables:
    input:
        results=result_files,
        counts="results/tables/parameter_counts.csv",
        code=sources("publish.tables"),
    output:
        [report(table, category="Tables") if table.endswith(".csv") else table for table in TABLES],
    log:
        "results/logs/tables.log",
    conda:
        "../../envs/report.yaml"
    params:
        config=lambda wildcards: CONFIG.model_dump_json(),
    message:
        "Writing the tables"
    shell:
        "python -m neuropeft tables --config-json {params.config:q} --counts {input.counts}"
        " --out results/tables > {log} 2>&1"


rule figures:
    input:
        results=result_files,
        code=sources("publish.figures"),
    output:
        [report(figure, category="Figures") if figure.endswith(".png") else figure for figure in FIGURES],
    log:
        "results/logs/figures.log",
    conda:
        "../../envs/report.yaml"
    params:
        config=lambda wildcards: CONFIG.model_dump_json(),
    message:
        "Drawing the figures"
    shell:
        "python -m neuropeft figures --config-json {params.config:q} --out results/figures > {log} 2>&1"
