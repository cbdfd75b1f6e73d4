# Reproduction of "Initialisation Determines the Basin" (OA-EM on AQLM): see README.md.
#
#   snakemake --cores 2                              the embedded grid, on any laptop
#   snakemake --cores 1 --profile a100 all           the paper's grid, on one 80 GB GPU
#   snakemake results/tables/table2.csv --cores 1    one table and just what it needs
from snakemake.utils import min_version

min_version("9.20")


report: "workflow/report/workflow.rst"


# A configuration that brings a grid of its own replaces the embedded default; anything else amends it.
if "grid" not in config:

    configfile: workflow.source_path("config/config.yaml")


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/quantize.smk"
include: "rules/pv_tune.smk"
include: "rules/evaluate.smk"
include: "rules/inquire.smk"
include: "rules/export.smk"
include: "rules/tables.smk"
include: "rules/report.smk"
include: "rules/plan.smk"


# What a dry run can do without, but a job cannot: packages, tokens for gated models, GPUs enough.
onstart:
    preflight(CFG, workflow)


# Behind an `ancient` input (the gate) Snakemake does not look for other reasons to run a job in the same go.
onsuccess:
    due = still_due(workflow)
    if due:
        raise WorkflowError(
            f"settings of more rules changed ({', '.join(due)}): run the same command again."
        )


# A job that was killed could say nothing itself.
onerror:
    tell_sudden_ends(workflow)


rule all:
    input:
        tables=TABLES,
        figures=FIGURES,
        claims="results/tables/claims.csv",
        report="results/report.html",
        summary="results/summary.txt",
    localrule: True
