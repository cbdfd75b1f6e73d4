# PV-tuning: the whole quantised model is tuned towards the original one (section 5.2).
#
# Reads:  model, a run's blocks, tuning, validation and test tokens
# Makes:  results/{run}/pv/manifest.json, with best_test, best_validation and last.safetensors beside it


rule pv_tune:
    input:
        model=model_of,
        quantized="results/{run}/quantized.json",
        tokens=lambda w: planning.pv_tokens(CFG, w.run),
    output:
        manifest="results/{run}/pv/manifest.json",
        metrics="results/{run}/metrics/pv_tuning-time.json",
    log:
        "logs/{run}/pv_tune.log",
    benchmark:
        "logs/{run}/pv_tune.tsv"
    priority: TUNING
    conda:
        "../envs/oaem.yaml"
    threads: CFG.threads * planning.ranks(CFG)
    resources:
        gpu=planning.gpus(CFG) * planning.ranks(CFG),
        # All of them on one machine.
        nodes=1,
        mem_mb=planning.tuning_memory(CFG),
        runtime=planning.resource(CFG, "pv_tune", "runtime"),
    params:
        settings=planning.pv_parameters(CFG),
        code=planning.code("pv"),
    message:
        "PV-tune {wildcards.run}"
    script:
        "../workflow/scripts/pv_tune.py"
