"""Faults that tests in other folders inject: each is declared here, beside no other copy of it.

The key is the test; the value, as in `@pytest.mark.fault`, kind, deed and outcome.
"""

from __future__ import annotations

from tests.reliability import ENDS, MESSAGE, SAME, Injected

BOTH = f"{MESSAGE}; then {SAME}"
MODEL, TEXT, ACCESS = "missing or corrupt model files", "missing or corrupt text", "refused or expired token"
DAMAGED, NUMBERS, NETWORK = "truncated or flipped artefact", "NaN or infinity", "lost network"
ZEROS = "all-zero weights or activations"

_TABLE = {
    "unit/models/test_hub.py": [
        ("a_killed_download_goes_on_where_it_was", "kill -9 of a job", "a download that the hub keeps waiting", SAME),
        ("a_broken_connection_goes_on_where_it_broke", NETWORK, "the connection breaks in the middle of a file", SAME),
        ("a_hub_that_goes_away_midway", NETWORK, "the hub goes away in the middle of a file", MESSAGE),
        ("who_may_not_read_is_told_how", ACCESS, "the hub refuses the token, or a gated model", MESSAGE),
        ("damage_on_the_way_is_noticed_and_mended", MODEL, "a file is damaged on its way, once", SAME),
        ("damage_that_stays_is_refused", MODEL, "a file is damaged on its way, every time", BOTH),
        ("damage_on_this_machine_is_mended", MODEL, "a file of the hub's cache is damaged", SAME),
        ("a_model_offline", NETWORK, "offline, and the cache is empty, lacks a file or is damaged", MESSAGE),
        ("the_fast_transfer_that_fails_is_one_message", NETWORK, "the storage of large files fails", MESSAGE),
        ("a_shard_of_text_comes_once_and_checked", TEXT, "a shard is damaged on its way, then on the disk", SAME),
        ("a_shard_that_is_another_or_none", TEXT, "a shard is another one than configured, or none", MESSAGE),
    ],
    "unit/models/test_source.py": [
        ("no_network", NETWORK, "no hub can be reached, and nothing is in the cache", MESSAGE),
        ("what_the_hub_refuses", ACCESS, "an expired token, no licence, no such model or revision", MESSAGE),
        ("gated_without_a_token_asks_nobody", ACCESS, "a gated model without a token", MESSAGE),
        ("hub_source_on_a_full_disk", "full disk", "a download that does not fit", MESSAGE),
        ("no_folder", MODEL, "the model's folder is not there", MESSAGE),
        ("truncated_weights_name_the_users_file", MODEL, "weights are cut off", MESSAGE),
        ("a_missing_shard_is_named", MODEL, "a shard of the weights is not there", MESSAGE),
        ("a_damaged_index_is_named", MODEL, "the index of the shards is damaged", MESSAGE),
        ("weights_that_contradict_the_config", MODEL, "a tensor is missing, or has another shape", MESSAGE),
        ("bad_config", MODEL, "config.json is missing, damaged, or of another architecture", MESSAGE),
        ("damaged_tokenizer", MODEL, "tokenizer.json is damaged", MESSAGE),
        ("pickled_weights_are_refused", MODEL, "weights are pickles, which could run code", MESSAGE),
    ],
    "unit/corpora/test_sources.py": [
        ("damage_names_file_and_line", TEXT, "files of every format cut off, garbled or of another shape", MESSAGE),
        ("missing_file", TEXT, "a file is not there", MESSAGE),
        ("damaged_data_package", TEXT, "the package with the embedded text is damaged", MESSAGE),
    ],
    "unit/pv/test_trainer.py": [
        ("killed_for_real_it_goes_on_to_the_same_bytes", "kill -9 of a job", "a tuning, in a step and in a save", SAME),
        ("damaged_states_are_named", DAMAGED, "the state that PV-tuning would go on from", MESSAGE),
        ("a_damaged_outcome_is_made_again", DAMAGED, "an outcome of PV-tuning, before it is started again", SAME),
        ("a_loss_that_is_no_number_stops_it_and_deletes_nothing", NUMBERS, "the loss of a step of PV-tuning", BOTH),
        ("a_gradient_that_is_no_number_stops_it", NUMBERS, "a gradient in PV-tuning", MESSAGE),
        ("a_perplexity_that_is_no_number_stops_it", NUMBERS, "the perplexity at an epoch's end", MESSAGE),
    ],
    "unit/quantization/test_layer.py": [
        ("numbers_that_are_not_finite_are_refused", NUMBERS, "a weight or the Hessian of a layer", MESSAGE),
        ("degenerate_layers", ZEROS, "rows of a layer, inputs of a layer, all of either", ENDS),
        ("degenerate_layers", "singular Hessian", "of rank 5 in 48 dimensions, with zero rows, and zero", ENDS),
    ],
    "unit/pv/test_plan.py": [
        ("what_never_fits_is_refused_with_the_bytes", "out of memory", "a model too large to be tuned", MESSAGE),
    ],
    "unit/runtime/test_temporary.py": [
        (
            "litter_of_a_killed_writer_goes_with_the_next_write",
            "kill -9 of a job", "in the middle of writing a file or a folder", SAME,
        ),
    ],
    "unit/runtime/test_atomic.py": [
        ("two_writers_never_mix", "two writers at once", "twelve of the same file", ENDS),
    ],
    "unit/runtime/test_devices.py": [
        ("too_little_disk_is_refused", "full disk", "known before the work begins", MESSAGE),
    ],
    "unit/planning/test_checks.py": [
        (
            "a_gated_model_needs_a_token_unless_the_hub_is_not_asked",
            ACCESS, "a grid with a gated model, started without a token", MESSAGE,
        ),
    ],
    "workflow/test_pipeline.py": [
        (
            "jobs_of_any_size_and_a_killed_job_give_the_same_bytes",
            "kill -9 of snakemake", "with its job, when the first block is done", SAME,
        ),
        ("a_damaged_block_is_made_again_alone", DAMAGED, "a block, met by the evaluation that needs it", BOTH),
    ],
    "workflow/test_pv_stage.py": [
        ("a_killed_tuning_ends_with_the_same_bytes", "kill -9 of snakemake", "with its job, in PV-tuning", SAME),
    ],
}  # fmt: skip

ELSEWHERE: dict[str, list[Injected]] = {}
for _file, _lines in _TABLE.items():
    for _test, _kind, _deed, _outcome in _lines:
        ELSEWHERE.setdefault(f"tests/{_file}::test_{_test}", []).append(Injected(_kind, _deed, _outcome))
