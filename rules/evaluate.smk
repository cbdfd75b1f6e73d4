# Evaluation: perplexity on every text domain and zero-shot tasks, of the original and of every quantised model.
#
# Reads:  model, evaluation tokens, a run's blocks (stage pre_pv) or its tuned states (stages post_pv*)
# Makes:  results/{subject}/metrics/{stage}-perplexity.json and {stage}-downstream.json; and the gate that quantisation
#         waits for where the configuration expects a perplexity of the unquantised model


rule perplexity:
    input:
        model=model_of,
        state=lambda w: layout.stage_state(w.subject, w.stage),
        tokens=lambda w: planning.evaluation_tokens(CFG, w.subject),
    output:
        metrics="results/{subject}/metrics/{stage}-perplexity.json",
    log:
        "logs/{subject}/{stage}-perplexity.log",
    benchmark:
        "logs/{subject}/{stage}-perplexity.tsv"
    priority: lambda w: ORDER.measurement(w.subject, w.stage)
    conda:
        "../envs/oaem.yaml"
    threads: CFG.threads
    resources:
        gpu=planning.gpus(CFG),
        mem_mb=planning.resource(CFG, "perplexity", "mem_mb"),
        runtime=planning.resource(CFG, "perplexity", "runtime"),
    params:
        settings=planning.perplexity_parameters(CFG),
        code=planning.code("perplexity"),
    message:
        "Perplexity of {wildcards.subject} ({wildcards.stage})"
    script:
        "../workflow/scripts/perplexity.py"


rule gate:
    input:
        metrics="results/models/{model}/metrics/fp16-perplexity.json",
    output:
        gate="results/models/{model}/gate.json",
    log:
        "logs/gate/{model}.log",
    benchmark:
        "logs/gate/{model}.tsv"
    priority: lambda w: ORDER.text(w.model, "gate")
    conda:
        "../envs/oaem.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        expected=lambda w: SETTINGS["models"][w.model]["expected_perplexity"],
        tolerance=lambda w: SETTINGS["models"][w.model]["perplexity_tolerance"],
    message:
        "Is {wildcards.model} before quantisation what the paper says?"
    script:
        "../workflow/scripts/gate.py"


rule downstream:
    input:
        model=model_of,
        state=lambda w: layout.stage_state(w.subject, w.stage),
    output:
        metrics="results/{subject}/metrics/{stage}-downstream.json",
    log:
        "logs/{subject}/{stage}-downstream.log",
    benchmark:
        "logs/{subject}/{stage}-downstream.tsv"
    conda:
        "../envs/oaem.yaml"
    threads: CFG.threads
    resources:
        gpu=planning.gpus(CFG),
        mem_mb=planning.resource(CFG, "downstream", "mem_mb"),
        runtime=planning.resource(CFG, "downstream", "runtime"),
    params:
        settings=planning.downstream_parameters(CFG),
        code=planning.code("downstream"),
    message:
        "Zero-shot tasks of {wildcards.subject} ({wildcards.stage})"
    script:
        "../workflow/scripts/downstream.py"
