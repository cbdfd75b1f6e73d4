# Why one initialisation ends better than the other: two runs of one grid point, layer by layer. Not part of `all`.
#
#   snakemake --cores 1 --directory results/inquiry --configfile config/config.yaml config/inquiry.yaml -- inquire
#   snakemake --cores 2 results/runs/smollm2-135m/2bpp-2x6g6/oaem/b4-e2/s42/metrics/exchange.json
#
# Reads:  model, tokens, the blocks of a run and of the greedy run of the same grid point
# Makes:  results/{run}/metrics/exchange.json: perplexity with layers of each run in the other's place
#         results/{run}/metrics/directions.json: in which directions of the inputs, and in which rows, their errors lie
#         results/{run}/metrics/error_exchange.json: perplexity with the errors of all layers of either run in few directions,
#         or in all others, replaced by the other's or taken away, or of the other's size
# `inquire` asks for all three, and for what either run measures before PV-tuning, of every run of the grid
# that is not greedy.


rule inquire:
    input:
        layout.inquiry_files(CFG),
    localrule: True


rule layer_exchange:
    input:
        model=model_of,
        states=lambda w: planning.pair(w.run),
        tokens=lambda w: planning.evaluation_tokens(CFG, w.run),
    output:
        metrics="results/{run}/metrics/exchange.json",
    log:
        "logs/{run}/exchange.log",
    benchmark:
        "logs/{run}/exchange.tsv"
    conda:
        "../envs/oaem.yaml"
    threads: CFG.threads
    resources:
        gpu=planning.gpus(CFG),
        mem_mb=planning.resource(CFG, "layer_exchange", "mem_mb"),
        runtime=planning.resource(CFG, "layer_exchange", "runtime"),
    params:
        settings=planning.perplexity_parameters(CFG),
        code=planning.code("exchange"),
    message:
        "Layers of {wildcards.run} and its greedy partner, exchanged"
    script:
        "../workflow/scripts/layer_exchange.py"


rule error_directions:
    input:
        model=model_of,
        states=lambda w: planning.pair(w.run),
        tokens=lambda w: planning.calibration_tokens(w.run),
    output:
        metrics="results/{run}/metrics/directions.json",
    log:
        "logs/{run}/directions.log",
    benchmark:
        "logs/{run}/directions.tsv"
    conda:
        "../envs/oaem.yaml"
    threads: CFG.threads
    resources:
        gpu=planning.gpus(CFG),
        mem_mb=planning.resource(CFG, "error_directions", "mem_mb"),
        runtime=planning.resource(CFG, "error_directions", "runtime"),
    params:
        settings=planning.stream_parameters(CFG),
        code=planning.code("directions"),
    message:
        "Where the errors of {wildcards.run} and its greedy partner lie"
    script:
        "../workflow/scripts/error_directions.py"


rule error_exchange:
    input:
        model=model_of,
        states=lambda w: planning.pair(w.run),
        calibration=lambda w: planning.calibration_tokens(w.run),
        tokens=lambda w: planning.evaluation_tokens(CFG, w.run),
    output:
        metrics="results/{run}/metrics/error_exchange.json",
    log:
        "logs/{run}/error_exchange.log",
    benchmark:
        "logs/{run}/error_exchange.tsv"
    conda:
        "../envs/oaem.yaml"
    threads: CFG.threads
    resources:
        gpu=planning.gpus(CFG),
        mem_mb=planning.resource(CFG, "error_exchange", "mem_mb"),
        runtime=planning.resource(CFG, "error_exchange", "runtime"),
    params:
        settings=planning.perplexity_parameters(CFG),
        code=planning.code("error_exchange"),
    message:
        "Errors of {wildcards.run} and its greedy partner, exchanged in part"
    script:
        "../workflow/scripts/error_exchange.py"
