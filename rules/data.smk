# Models and token windows.
#
# Reads:  models and corpora of the configuration (hub, folder or package)
# Makes:  results/models/{model}/manifest.json (the model folder hf/ beside it), results/tokens/{model}/{set}.safetensors


rule model:
    output:
        manifest="results/models/{model}/manifest.json",
    log:
        "logs/model/{model}.log",
    benchmark:
        "logs/model/{model}.tsv"
    priority: lambda w: ORDER.model(w.model)
    conda:
        "../envs/oaem.yaml"
    resources:
        mem_mb=planning.resource(CFG, "model", "mem_mb"),
        runtime=planning.resource(CFG, "model", "runtime"),
    params:
        source=lambda w: planning.model_parameters(CFG, w.model),
        code=planning.code("model"),
    message:
        "Model {wildcards.model}: fetch, check, store"
    script:
        "../workflow/scripts/model.py"


rule tokens:
    input:
        model="results/models/{model}/manifest.json",
    output:
        tokens="results/tokens/{model}/{set}.safetensors",
    log:
        "logs/tokens/{model}/{set}.log",
    benchmark:
        "logs/tokens/{model}/{set}.tsv"
    priority: lambda w: ORDER.text(w.model, w.set)
    conda:
        "../envs/oaem.yaml"
    resources:
        mem_mb=planning.resource(CFG, "tokens", "mem_mb"),
        runtime=planning.resource(CFG, "tokens", "runtime"),
    params:
        spec=lambda w: planning.token_parameters(CFG, w.set),
        code=planning.code("tokens"),
    message:
        "Tokens {wildcards.set} for {wildcards.model}"
    script:
        "../workflow/scripts/tokens.py"
