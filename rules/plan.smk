# What the grid will cost, before it is started: snakemake --cores 1 plan, with --config gpu=a100 for another GPU.
#
# Reads:  the configuration and what is in results/ already
# Makes:  nothing; it prints


rule plan:
    log:
        "logs/plan.log",
    localrule: True
    conda:
        "../envs/oaem.yaml"
    resources:
        mem_mb=500,
        runtime=5,
    params:
        settings=planning.presentation_parameters(CFG),
        gpu=GPU,
    message:
        "Plan"
    script:
        "../workflow/scripts/plan.py"
