"""The model card of an exported checkpoint: what it is, how it was made, what was measured, how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from oaem.config.grid import Run
from oaem.quantization.initialisations import label_of

_STAGES = {"fp16": "Unquantised", "pre_pv": "Quantised", "post_pv": "Quantised and PV-tuned"}
# What aqlm's kernels for short inputs on a GPU can index.
_POWERS_OF_TWO = tuple(2**power for power in range(17))


@dataclass(frozen=True)
class CardData:
    """What a card says beyond what the checkpoint itself shows.

    `run` is the grid point. `label` names the base model, `base` is where it came from (a repository id, a folder or a
    package). `stage` is the exported one: pre_pv or post_pv. `settings` are further rows of the table of settings, by
    their label. `rows` are rows of metrics.csv (keys stage, dataset, role, label, metric, value, stderr, n) of this run
    and of the unquantised model; others are left out.
    """

    run: Run
    label: str
    base: str
    stage: str
    settings: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()


def render(card: CardData, true_bits: float) -> str:
    """The card as Markdown with its metadata block; `true_bits` a quantised parameter, all stored parts counted."""
    geometry = card.run.geometry
    sections = [
        _front_matter(card),
        f"# {card.label}, {geometry.bits_per_parameter:.4g} bits per parameter\n",
        f"{card.label} with its transformer linears quantised by AQLM (additive quantisation); the codebooks started "
        f"from {label_of(card.run.init)}.",
        _table(("Setting", "Value"), [*_run_settings(card, true_bits), *card.settings.items()]),
        *_results(card),
        _usage(card),
        "## Method\n\nThe initialisation is that of Kennedy and Moosavi, *Initialisation Determines the Basin: "
        "Efficient Codebook Optimisation for Extreme LLM Quantization* (arXiv:2604.08118); the quantisation is "
        "AQLM (Egiazarian et al., 2024) with PV-tuning (Malinovskii et al., 2024). This checkpoint was made by an "
        "independent reproduction of that paper. The licence of the base model applies.",
    ]
    return "\n\n".join(section.strip("\n") for section in sections) + "\n"


def _front_matter(card: CardData) -> str:
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["aqlm", "additive-quantization", card.run.init],
    }
    if "/" in card.base and not card.base.startswith(("/", ".")):
        values["base_model"] = card.base
    return f"---\n{yaml.safe_dump(values, sort_keys=True)}---"


def _run_settings(card: CardData, true_bits: float) -> list[tuple[str, str]]:
    run, geometry = card.run, card.run.geometry
    width = 8 if geometry.nbits <= 8 else 16
    stored = "" if geometry.nbits == width else f", each code stored in {width} bits: the format has no other widths"
    return [
        ("Base model", f"{card.label} ({card.base})"),
        ("Stage", _STAGES.get(card.stage, card.stage)),
        ("Nominal bits per parameter", f"{geometry.bits_per_parameter:.4g}"),
        ("True bits per quantised parameter", f"{true_bits:.3f} (with codebooks and row scales)"),
        ("Codebooks", f"{geometry.num_codebooks} of {geometry.codebook_size} entries ({geometry.nbits} bits{stored})"),
        ("Group size", f"{geometry.group_size} weights along the input"),
        ("Initialisation", run.init),
        ("Beam width", str(run.beam_width)),
        ("Epochs at most", str(run.max_epochs)),
        ("Seed", str(run.seed)),
    ]


def _results(card: CardData) -> list[str]:
    """A table of perplexities and one of tasks, a column a stage that was measured; none without numbers."""
    text = [row for row in card.rows if row["metric"] == "perplexity" and row["role"] != "task"]
    tasks = [row for row in card.rows if row["role"] == "task"]
    sections = []
    if text:
        sections.append("## Perplexity\n\n" + _by_stage(text, ("Text",), lambda row: (_name(row),), "{:.2f}"))
    if tasks:
        table = _by_stage(tasks, ("Task", "Metric"), lambda row: (_name(row), str(row["metric"])), "{:.3f}")
        items = sorted({int(row["n"]) for row in tasks if row.get("n")})
        counted = f" on {items[0]} to {items[-1]} items a task" if items else ""
        sections.append(f"## Zero-shot tasks\n\nScored by lm-eval{counted}, with the standard error.\n\n{table}")
    return sections


def _name(row: Mapping[str, Any]) -> str:
    return str(row["label"] or row["dataset"])


def _by_stage(rows: Sequence[Mapping[str, Any]], heads: tuple[str, ...], key: Any, form: str) -> str:
    stages = [stage for stage in _STAGES if any(row["stage"] == stage for row in rows)]
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        error = f" ± {form.format(row['stderr'])}" if row.get("stderr") and row["role"] == "task" else ""
        cells.setdefault(key(row), {})[row["stage"]] = form.format(row["value"]) + error
    body = [(*names, *(values.get(stage, "") for stage in stages)) for names, values in sorted(cells.items())]
    return _table((*heads, *(_STAGES[stage] for stage in stages)), body)


def _table(heads: tuple[str, ...], body: Sequence[Sequence[str]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *body]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _usage(card: CardData) -> str:
    geometry = card.run.geometry
    packages = "transformers accelerate aqlm numba" if geometry.nbits == 8 else "transformers accelerate aqlm"
    notes = ["No code from this folder is run."]
    if geometry.nbits == 8:
        notes.append(
            "On a CPU load it with `dtype=torch.float32` and set `NUMBA_NUM_THREADS=1` before Python starts: with more "
            "threads aqlm's CPU kernel gives wrong numbers."
        )
    if not {geometry.num_codebooks, geometry.group_size} <= set(_POWERS_OF_TWO):
        notes.append(
            "aqlm's GPU kernel for short inputs is written for numbers of codebooks and group sizes that are powers of "
            "two, which these are not: to generate text, load it on a CPU."
        )
    return f"""## Use

`pip install {packages}`, and then, with the path or name of this checkpoint in `checkpoint`:

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
inputs = tokenizer("The river rises in", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0], skip_special_tokens=True))
```

{" ".join(notes)}"""
