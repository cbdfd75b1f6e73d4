# Tables, figures and claims: pure functions of measurements and of what the paper reports.
#
# Reads:  the JSON files of measurements (a table just those it shows), paper/
# Makes:  results/metrics.csv, results/tables/{table}.csv and .md, results/tables/claims.csv, results/figures/*
#
# Like report and plan they are local rules: seconds of work on small files, not worth a job of their own on a cluster.


rule metrics:
    input:
        planning.metric_inputs(CFG),
    output:
        csv="results/metrics.csv",
    log:
        "logs/metrics.log",
    benchmark:
        "logs/metrics.tsv"
    localrule: True
    conda:
        "../envs/oaem.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    message:
        "All measurements in one table"
    script:
        "../workflow/scripts/metrics.py"


rule table:
    input:
        metrics=lambda w: planning.table_inputs(CFG, w.table),
        paper=PAPER,
    output:
        csv=report(
            "results/tables/{table}.csv",
            caption="../workflow/report/caption.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
        markdown="results/tables/{table}.md",
    log:
        "logs/tables/{table}.log",
    benchmark:
        "logs/tables/{table}.tsv"
    wildcard_constraints:
        table="|".join(planning.TABLE_NAMES),
    priority: lambda w: ORDER.table(w.table)
    localrule: True
    conda:
        "../envs/oaem.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        caption=lambda w: planning.caption(CFG, w.table),
        settings=planning.presentation_parameters(CFG),
    message:
        "{wildcards.table}"
    script:
        "../workflow/scripts/table.py"


rule claims:
    input:
        metrics="results/metrics.csv",
        paper=PAPER,
    output:
        csv=report(
            "results/tables/claims.csv",
            caption="../workflow/report/caption.rst",
            category="Claims",
            labels={"table": "claims"},
        ),
    log:
        "logs/claims.log",
    benchmark:
        "logs/claims.tsv"
    localrule: True
    conda:
        "../envs/oaem.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        caption=planning.caption(CFG, "claims"),
        settings=planning.presentation_parameters(CFG),
    message:
        "Claims of the paper, on its numbers and on ours"
    script:
        "../workflow/scripts/claims.py"


rule figure:
    input:
        metrics="results/metrics.csv",
        paper=PAPER,
    output:
        svg=report(
            "results/figures/{figure}.svg",
            caption="../workflow/report/caption.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        png="results/figures/{figure}.png",
    log:
        "logs/figures/{figure}.log",
    benchmark:
        "logs/figures/{figure}.tsv"
    wildcard_constraints:
        figure="|".join(planning.FIGURE_NAMES),
    localrule: True
    conda:
        "../envs/oaem.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        caption=lambda w: planning.caption(CFG, w.figure),
        settings=planning.presentation_parameters(CFG),
    message:
        "Figure {wildcards.figure}"
    script:
        "../workflow/scripts/figure.py"
