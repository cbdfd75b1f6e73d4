"""Truncated and bit-flipped files of every kind that a run keeps: made again, or refused by name with the cure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Fresh, copied
from tests.faults.pipeline import RUN, Pipeline
from tests.reliability import MESSAGE, SAME

Damage = Callable[[bytes], bytes]
KIND = "truncated or flipped artefact"


def flipped(at: float) -> Damage:
    """One bit flipped at that share of the file."""

    def damage(content: bytes) -> bytes:
        place = int(at * (len(content) - 1))
        return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]

    return damage


DAMAGES: dict[str, Damage] = {
    "empty": lambda content: b"",
    "without its last byte": lambda content: content[:-1],
    "a bit flipped in the header": flipped(0.0),
    "a bit flipped in the middle": flipped(0.7),
}
damages = pytest.mark.parametrize("damage", DAMAGES)
# What is damaged, the job that reads it, what must be deleted as the message says, and the jobs that make it again.
READERS: dict[str, tuple[str, str, str]] = {
    "model": ("results/models/tiny/hf/model.safetensors", "results/models/tiny/manifest.json", "model"),
    "tokens": ("results/tokens/tiny/eval-far.safetensors", "results/tokens/tiny/eval-far.safetensors", "tokens"),
    "tuned state": (f"results/{RUN}/pv/best_test.safetensors", f"results/{RUN}/pv/manifest.json", "pv_tune"),
}


def damage_file(path: Path, damage: str) -> None:
    """Replace `path` by a damaged copy; other names of the same file (hard links) are left alone."""
    content = DAMAGES[damage](path.read_bytes())
    path.unlink()
    path.write_bytes(content)


@damages
@pytest.mark.parametrize("what", READERS)
@pytest.mark.fault(KIND, "model, tokens or tuned state, read by an evaluation", f"{MESSAGE}; then {SAME}")
def test_an_input_of_an_evaluation(whole: Pipeline, fresh: Fresh, what: str, damage: str) -> None:
    pipeline = fresh(whole)
    path, named, maker = READERS[what]
    metrics = f"results/{RUN}/metrics/post_pv-perplexity.json"
    (pipeline.folder / metrics).unlink()
    damage_file(pipeline.folder / path, damage)
    code, output = pipeline.run(pipeline.perplexity("post_pv"))
    assert code == 1, output
    assert path in output or path.rpartition("/")[0] in output, output
    assert "Traceback" not in output and "unexpected" not in output, output
    assert not (pipeline.folder / metrics).exists()
    if what != "model":
        assert named in output
    (pipeline.folder / named).unlink()
    makers = {"model": pipeline.model(), "tokens": pipeline.tokens("eval-far"), "pv_tune": pipeline.pv_tune()}
    pipeline.make(makers[maker], pipeline.perplexity("post_pv"))
    assert pipeline.equals(whole)
    assert pipeline.read(metrics) == whole.read(metrics)


@damages
@pytest.mark.fault(KIND, "a block that is done, before its job is resumed", SAME)
def test_a_block(whole: Pipeline, fresh: Fresh, damage: str) -> None:
    pipeline = fresh(whole)
    folder = pipeline.run_folder / "blocks"
    kept = {path: when for path, when in pipeline.finished_blocks().items() if path.name != "0002.safetensors"}
    damage_file(folder / "0002.safetensors", damage)
    pipeline.make(pipeline.quantize(), pipeline.quantized())
    assert pipeline.equals(whole)
    assert {path: pipeline.finished_blocks()[path] for path in kept} == kept


@damages
@pytest.mark.fault(KIND, "a block's report, before its job is resumed", SAME)
def test_a_report(whole: Pipeline, fresh: Fresh, damage: str) -> None:
    pipeline = fresh(whole)
    damage_file(pipeline.run_folder / "blocks/0003.json", damage)
    pipeline.make(pipeline.quantize(), pipeline.quantized())
    assert pipeline.equals(whole)


@pytest.fixture(scope="module")
def half(inputs: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The first of two jobs of a run is done."""
    pipeline = copied(inputs, tmp_path_factory.mktemp("half"))
    pipeline.make(pipeline.quantize(0, 3))
    return pipeline


@damages
@pytest.mark.fault(KIND, "the activations between two jobs of a run", SAME)
def test_activations(whole: Pipeline, half: Pipeline, fresh: Fresh, damage: str) -> None:
    pipeline = fresh(half)
    damage_file(pipeline.run_folder / "activations/0003.safetensors", damage)
    kept = pipeline.finished_blocks()
    pipeline.make(pipeline.quantize(3, 6))
    assert pipeline.blocks() == whole.blocks()
    assert {path: pipeline.finished_blocks()[path] for path in kept} == kept


@damages
@pytest.mark.fault(KIND, "a manifest of a job, read by the next one", f"{MESSAGE}; then {SAME}")
def test_a_manifest(whole: Pipeline, fresh: Fresh, damage: str) -> None:
    pipeline = fresh(whole)
    path = pipeline.quantize().output["manifest"]
    damage_file(pipeline.folder / path, damage)
    code, output = pipeline.run(pipeline.quantized())
    if code:  # a bit of a text can flip and leave it a text
        assert code == 1
        assert f"{path}: cannot be read as JSON" in output
        assert "Traceback" not in output and "unexpected" not in output, output
        (pipeline.folder / path).unlink()
        pipeline.make(pipeline.quantize(), pipeline.quantized())
    assert pipeline.equals(whole)
