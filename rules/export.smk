# Export: a folder that transformers loads with the aqlm library, with a model card. Made on demand, not by `all`:
#   snakemake --cores 1 results/runs/smollm2-135m/2bpp-2x6g6/oaem/b2-e2/s42/export/pre_pv.json
#
# Reads:  model, a run's blocks or tuned state, the measurements for its card
# Makes:  results/{run}/export/{stage}.json, the folder results/{run}/export/{stage} beside it


rule export:
    input:
        model=model_of,
        state=lambda w: layout.stage_state(w.run, w.stage),
        metrics=lambda w: planning.card_metrics(CFG, w.run),
    output:
        manifest="results/{run}/export/{stage}.json",
    log:
        "logs/{run}/export-{stage}.log",
    benchmark:
        "logs/{run}/export-{stage}.tsv"
    wildcard_constraints:
        stage="pre_pv|post_pv",
    conda:
        "../envs/oaem.yaml"
    resources:
        mem_mb=planning.resource(CFG, "perplexity", "mem_mb"),
        runtime=30,
    params:
        card=lambda w: planning.card_parameters(CFG, w.run),
    message:
        "Export {wildcards.run} ({wildcards.stage})"
    script:
        "../workflow/scripts/export.py"
