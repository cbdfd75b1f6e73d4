# What a person reads at the end.
#
# Reads:  results/metrics.csv, tables, claims and figures
# Makes:  results/report.html (self-contained), results/summary.txt


rule report:
    input:
        metrics="results/metrics.csv",
        claims="results/tables/claims.csv",
        tables=TABLES,
        figures=FIGURES,
        paper=PAPER,
    output:
        html=report(
            "results/report.html",
            caption="../workflow/report/caption.rst",
            category="Report",
            labels={"page": "whole report"},
        ),
    log:
        "logs/report.log",
    benchmark:
        "logs/report.tsv"
    localrule: True
    conda:
        "../envs/oaem.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        caption=planning.caption(CFG, "report"),
        settings=planning.presentation_parameters(CFG),
    message:
        "Report"
    script:
        "../workflow/scripts/report.py"


rule summary:
    input:
        metrics="results/metrics.csv",
    output:
        text="results/summary.txt",
    log:
        "logs/summary.log",
    benchmark:
        "logs/summary.tsv"
    localrule: True
    conda:
        "../envs/oaem.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        settings=planning.presentation_parameters(CFG),
    message:
        "Summary"
    script:
        "../workflow/scripts/summary.py"
