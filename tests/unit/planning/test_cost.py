"""The cost plan: it gives back what was measured, and counts what is done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from oaem.config.grid import Run
from oaem.config.schema import Config, load, parse
from oaem.planning import cost, layout, shapes
from oaem.planning.measured import Block
from oaem.planning.rules import ranges


@pytest.mark.parametrize("block", cost.H200.blocks)
def test_the_reference_gives_back_its_own_seconds(block: Block) -> None:
    config = load("config/paper.yaml")
    run = next(run for run in config.runs() if run.beam_width == 8 and run.max_epochs == 100)
    assert run.model == "llama-3.2-3b"
    seconds = cost.block_seconds(config, run, block.shape, cost.H200)
    assert seconds == pytest.approx(dict(block.seconds), rel=1e-9)


def test_a_shape_between_two_measured_ones_and_shapes_beyond() -> None:
    """A block of four times the work takes twice the time: so twice the work takes 1.41 times, half of it half."""

    def shape(width: int) -> shapes.Shape:
        return shapes.Shape(1, width, 0, 0, 1)

    blocks = tuple(Block(shape(width), {"forward": seconds}) for width, seconds in ((100, 3.0), (400, 6.0)))
    reference = replace(cost.H200, blocks=blocks)
    found = {width: reference.seconds("forward", shape(width)) for width in (50, 100, 200, 400, 800)}
    assert found == pytest.approx({50: 1.5, 100: 3.0, 200: 3.0 * 2**0.5, 400: 6.0, 800: 12.0})


def test_beam_search_grows_with_width_and_codebooks() -> None:
    config = load("config/paper.yaml")

    def search(run: Run) -> float:
        return cost.block_seconds(config, run, shapes.PAPER["Llama 3B"], cost.H200)["beam_search"]

    by = {(run.geometry.num_codebooks, run.beam_width, run.max_epochs): search(run) for run in config.runs()}
    assert by[2, 16, 100] == pytest.approx(2 * by[2, 8, 100])
    assert by[3, 8, 100] == pytest.approx(1.5 * by[2, 8, 100])
    assert by[2, 8, 5] == pytest.approx(5 / 7 * by[2, 8, 100])


@pytest.mark.parametrize(
    ("name", "gpu"),
    [("paper", "h100"), ("paper", "a100"), ("config", "cpu"), ("three-models", "h100"), ("large", "h100")],
)
def test_the_plan_names_every_run_and_what_is_done(
    name: str, gpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(f"config/{name}.yaml")
    monkeypatch.chdir(tmp_path)
    first = config.runs()[0]
    blocks = Path(ranges(config, first.path)[0]).parent
    blocks.mkdir(parents=True)
    for index in range(3):
        (blocks / f"{index:04d}.json").write_text("{}")
    text = cost.plan(config, gpu)
    for run in config.runs():
        assert run.path.removeprefix("runs/") in text
    assert f"3/{config.models[first.model].blocks}" in text
    assert "estimates" in text


def original(**quantization: object) -> Config:
    """The paper's grid on original inputs."""
    values = yaml.safe_load(Path("config/paper.yaml").read_text(encoding="utf-8"))
    values["quantization"] |= {"inputs": "original", **quantization}
    return parse(values)


def chain_of(text: str) -> float:
    (line,) = [line for line in text.splitlines() if line.startswith("With a device for every job")]
    return float(line.split()[9])


def test_on_original_inputs_the_longest_chain_is_a_stream_and_one_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [load("config/paper.yaml"), original(), original(blocks_per_job=4)]
    monkeypatch.chdir(tmp_path)
    sequential, single, fours = (chain_of(cost.plan(config, "h100")) for config in configs)
    assert single < fours < sequential / 4
    # The largest stream: 32 blocks of the 8B shape; the longest job: the 3B model at b=16, or the 8B one at b=8.
    stream = max(cost.stream_seconds(configs[1], model, cost.H200) for model in configs[1].models)
    block = max(
        sum(cost.block_seconds(configs[1], run, shapes.planned(configs[1], run.model), cost.H200).values())
        for run in configs[1].runs()
    )
    assert single == pytest.approx((stream + block) / 3600, abs=0.006)


def test_the_plan_counts_a_streams_disk_once_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = original()
    monkeypatch.chdir(tmp_path)
    # 128 x 4096 tokens in two bytes: 3072 wide and 28 blocks, 4096 and 32, 2048 and 36.
    tokens = 2 * 128 * 4096
    expected = tokens * (3072 * 28 + 4096 * 32 + 2048 * 36) / 1e9
    assert f"{expected:.0f} GB of it for calibration streams" in cost.plan(config, "h100")
    for model in config.models:
        manifest = Path(layout.stream(model, 42))
        manifest.parent.mkdir(parents=True)
        manifest.write_text("{}")
    assert "calibration stream " not in cost.plan(config, "h100")


def test_targets_from_the_unquantised_model_take_a_stream_beside_a_sequential_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, other = load("config/evidence.yaml"), load("config/evidence.yaml", "config/ablations/model-targets.yaml")
    monkeypatch.chdir(tmp_path)
    assert "calibration stream" not in cost.plan(plain, "h100")
    text = cost.plan(other, "h100")
    # 128 x 1024 tokens in two bytes, 576 wide, 30 blocks; one for all seeds of the estimate's three.
    assert f"{3 * 2 * 128 * 1024 * 576 * 30 / 1e9:.0f} GB of it for calibration streams" in text
    assert "on sequential inputs" in text


def test_a_slower_gpu_takes_longer() -> None:
    config = load("config/paper.yaml")

    def hours(gpu: str) -> float:
        (line,) = [line for line in cost.plan(config, gpu).splitlines() if line.startswith("Quantisation left")]
        return float(line.split()[2])

    assert hours("a100") > hours("h100") > 1


def test_small_layers_take_the_time_of_their_launches() -> None:
    """SmolLM2-135M at the paper's budgets took 93 s on an H100 that it had alone (docs/performance.md)."""
    config = load("config/three-models.yaml")
    run = config.runs()[0]
    assert run.model == "smollm2-135m"
    seconds = cost.block_seconds(config, run, shapes.EMBEDDED, cost.H200)
    assert 30 * sum(seconds.values()) == pytest.approx(93, rel=0.1)
    larger = next(run for run in config.runs() if run.model == "qwen2.5-coder-1.5b")
    assert sum(cost.block_seconds(config, larger, shapes.planned(config, larger.model), cost.H200).values()) > sum(
        seconds.values()
    )


def test_a_step_of_tuning_is_the_measured_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """3B: 8.2 s; 8B: 17.7 s, planned to a tenth by products alone; no small model is faster than its launches."""
    config, small = load("config/paper.yaml"), load("config/three-models.yaml")
    monkeypatch.chdir(tmp_path)
    assert config.pv is not None
    assert cost.tuning_step_seconds(config, "llama-3.2-3b", config.pv, "h100") == pytest.approx(8.2, rel=1e-9)
    assert cost.tuning_step_seconds(config, "llama-3.1-8b", config.pv, "h100") == pytest.approx(17.7, rel=0.1)
    assert small.pv is not None
    assert cost.tuning_step_seconds(small, "smollm2-135m", small.pv, "h100") == 0.5


def test_hours_by_devices_are_bound_by_work_and_by_the_longest_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One model at one search point: more devices help only where blocks do not wait for each other."""
    values = yaml.safe_load(Path("config/large.yaml").read_text(encoding="utf-8"))
    values["grid"] = [{**values["grid"][0], "init": ["oaem"]}]
    config = parse(values)
    monkeypatch.chdir(tmp_path)
    values["quantization"]["inputs"] = "sequential"
    work = cost.remaining(parse(values), "h100")
    assert [work.wall(count) for count in (1, 64)] == pytest.approx([work.total] * 2)
    text = cost.plan(config, "h100").splitlines()
    sequential, on_original = (
        next(line for line in text if line.startswith(f"  {kind}")) for kind in ("sequential", "original")
    )
    one, eight, many = (float(number) for number in sequential.split()[2:])
    assert one == eight == many == pytest.approx(work.total, abs=0.006)
    one, eight, many = (float(number) for number in on_original.split()[-3:])
    assert one / 8 == pytest.approx(eight, abs=0.006)
    assert one / 64 < many < eight


def test_the_memory_of_a_measured_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 3B shape at b=16 held 15.2 GB on an H100 (docs/performance.md); the plan is not below it, nor far above."""
    values = yaml.safe_load(Path("config/paper.yaml").read_text(encoding="utf-8"))
    values["grid"] = values["grid"][:1]
    monkeypatch.chdir(tmp_path)
    assert 15.2e9 < cost.memory(parse(values)) < 20e9


def test_the_widest_layers_hessian_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 3.1 70B, inputs of 28672: 6.6 GB in float64 alone, and more than its block tuning in all."""
    large = load("config/large.yaml")
    monkeypatch.chdir(tmp_path)
    seventy = large.model_copy(update={"grid": large.grid[:1]})
    assert 50e9 < cost.memory(seventy) < 80e9 < cost.memory(large)
