# Quantisation: consecutive blocks of one run a job. With quantization.inputs: sequential one job after the other, with
# original all side by side, on the inputs of the unquantised model's blocks.
#
# Reads:  model, calibration tokens, the gate where the model has one; the previous range of the same run (sequential) or
#         the calibration stream (original)
# Makes:  results/models/{model}/activations/s{seed}/manifest.json, and {index}.safetensors beside it, once for all runs
#         (original). results/{run}/blocks/range-{start}-{stop}.json, and blocks/{index}.safetensors beside it one by one as they are
#         done; they are not declared, so a killed job finds them again. Then results/{run}/quantized.json.


rule calibration_stream:
    input:
        model="results/models/{model}/manifest.json",
        tokens="results/tokens/{model}/calibration-s{seed}.safetensors",
    output:
        manifest="results/models/{model}/activations/s{seed}/manifest.json",
    log:
        "logs/calibration_stream/{model}-s{seed}.log",
    benchmark:
        "logs/calibration_stream/{model}-s{seed}.tsv"
    wildcard_constraints:
        seed=r"\d+",
    priority: lambda w: ORDER.text(w.model, "calibration")
    conda:
        "../envs/oaem.yaml"
    threads: CFG.threads
    resources:
        gpu=planning.gpus(CFG),
        mem_mb=planning.resource(CFG, "calibration_stream", "mem_mb"),
        runtime=planning.resource(CFG, "calibration_stream", "runtime"),
    params:
        settings=planning.stream_parameters(CFG),
        code=planning.code("stream"),
    message:
        "Inputs of the blocks of {wildcards.model} (seed {wildcards.seed})"
    script:
        "../workflow/scripts/calibration_stream.py"


rule quantize_blocks:
    input:
        model=model_of,
        tokens=lambda w: planning.calibration_tokens(w.run),
        # It has to hold, but measuring it again changes no block. See onsuccess in the Snakefile.
        gate=ancient(lambda w: planning.gate(CFG, w.run)),
        previous=lambda w: planning.previous(CFG, w.run, int(w.start)),
        stream=lambda w: planning.stream(CFG, w.run),
    output:
        manifest="results/{run}/blocks/range-{start}-{stop}.json",
    log:
        "logs/{run}/blocks-{start}-{stop}.log",
    benchmark:
        "logs/{run}/blocks-{start}-{stop}.tsv"
    priority: lambda w: ORDER.quantization(w.run, int(w.start))
    conda:
        "../envs/oaem.yaml"
    threads: CFG.threads
    resources:
        gpu=planning.gpus(CFG),
        mem_mb=planning.resource(CFG, "quantize_blocks", "mem_mb"),
        runtime=planning.resource(CFG, "quantize_blocks", "runtime"),
    params:
        settings=planning.quantization_parameters(CFG),
        code=planning.code("quantization"),
        plugin=lambda w: planning.plugin(w.run),
    message:
        "Quantise blocks {wildcards.start}-{wildcards.stop} of {wildcards.run}"
    script:
        "../workflow/scripts/quantize_blocks.py"


rule quantized:
    input:
        ranges=lambda w: planning.ranges(CFG, w.run),
    output:
        manifest="results/{run}/quantized.json",
        metrics="results/{run}/metrics/quantization-time.json",
    log:
        "logs/{run}/quantized.log",
    benchmark:
        "logs/{run}/quantized.tsv"
    priority: lambda w: ORDER.check(w.run)
    conda:
        "../envs/oaem.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    message:
        "Check all blocks of {wildcards.run}"
    script:
        "../workflow/scripts/quantized.py"
