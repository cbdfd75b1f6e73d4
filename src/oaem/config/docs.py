"""config/schema.json and the key tables of config/README.md, generated from the configuration's models.

python -m oaem.config.docs config        writes both files into the folder `config`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oaem.config.schema import Config, schema
from oaem.runtime.atomic import write_text

INTRODUCTION = """# Configuration

A configuration names models, corpora, geometries and token sets once, and a grid over them. Here are:

| file | what it is |
| --- | --- |
| `config.yaml` | the default: a real 135M-parameter model and real text from Python packages, for any laptop |
| `embedded-ten-runs.yaml` | the same model and text, four search points, tasks on every run: 20 minutes on two cores |
| `evidence.yaml` | the same model with the paper's geometry, budgets and three seeds, for one GPU |
| `ablations/*.yaml` | one change of `evidence.yaml` each, which they amend; `small` of `config.yaml` |
| `inquiry.yaml` | why OA-EM ends better: of `config.yaml`, which it amends, one pair with three seeds, for `inquire` |
| `search-points.yaml` | other beam widths and epoch limits: of `evidence.yaml`, which it amends; for one GPU |
| `small-search-points.yaml` | the same at small budgets, five seeds, for a CPU: of `config.yaml` |
| `families.yaml` | three families at small budgets, three seeds, for a CPU: of `three-models.yaml` and `config.yaml` |
| `paper.yaml` | the paper's grid: 14 quantised models and the three unquantised ones, for an 80 GB GPU |
| `rho-sweep.yaml` | five geometries of 2 bpp on it, rho over six orders of magnitude: Table rho_sweep; for one GPU |
| `small-rho-sweep.yaml` | four of them at small budgets, five seeds, for a CPU: of `config.yaml` |
| `three-models.yaml` | real models of three families from packages, likewise: Tables 12 to 15; for a GPU and hours |
| `large.yaml` | Llama 3.1 70B and 405B with the paper's settings, for the plan: one block of 70B was measured |

Use another with `snakemake --configfile my.yaml`; of several files each amends those before it. A configuration with a
`grid` of its own replaces the default; one without amends it, so `snakemake --config threads=2` changes one key. Every
fault is reported before any job starts, all of them at once. `schema.json` lets an editor check and complete a file:
start it with the line
`# yaml-language-server: $schema=schema.json`.

A configuration never holds a secret: a token for gated models is read from the environment variable `HF_TOKEN` alone.

Recipes (another model, corpus, bit rate, initialisation) are in [docs/extending.md](../docs/extending.md).

# Every key

Generated from `schema.py`, `axes.py`, `model_source.py` and `settings.py` in `src/oaem/config` by
`python -m oaem.config.docs config`.
"""


def readme() -> str:
    """The text of config/README.md; keys in the order of the models, not sorted."""
    document = Config.model_json_schema()
    parts = [INTRODUCTION, _section("The top level", document, document)]
    order = _reachable(document, document)
    parts += [_section(name, document["$defs"][name], document) for name in order]
    return "\n".join(parts)


def _reachable(node: dict[str, Any], document: dict[str, Any]) -> list[str]:
    """Names of all models below `node` in the order in which a reader meets them."""
    found: dict[str, None] = {}
    for value in node.get("properties", {}).values():
        for name in _references(value):
            found[name] = None
            found |= dict.fromkeys(_reachable(document["$defs"][name], document))
    return list(found)


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].rsplit("/", 1)[1]
        for key, child in value.items():
            if key != "$ref":
                yield from _references(child)
    elif isinstance(value, list):
        for child in value:
            yield from _references(child)


def _section(title: str, node: dict[str, Any], document: dict[str, Any]) -> str:
    about = "" if node is document else f"\n{' '.join(node.get('description', '').split())}\n"
    rows = [f"\n## {title}\n{about}\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n"]
    required = set(node.get("required", []))
    for key, value in node["properties"].items():
        default = "required" if key in required else f"`{_default(value)}`"
        rows.append(f"| `{key}` | {_type(value)} | {default} | {value.get('description', '')} |\n")
    return "".join(rows)


def _default(value: dict[str, Any]) -> str:
    default = value.get("default")
    return "its own defaults" if isinstance(default, dict) and default else json.dumps(default)


def _type(value: dict[str, Any]) -> str:
    if "$ref" in value:
        name = value["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "enum" in value:
        return " \\| ".join(f"`{choice}`" for choice in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if "anyOf" in value:
        return " or ".join(_type(choice) for choice in value["anyOf"])
    if value.get("type") == "array":
        return f"list of {_type(value.get('items', {}))}"
    if value.get("type") == "object":
        children = value.get("patternProperties") or {"": value.get("additionalProperties", {})}
        return f"names to {_type(next(iter(children.values())))}"
    return str(value.get("type", "any"))


def main(folder: str) -> None:
    """Write both files into `folder`."""
    write_text(Path(folder) / "schema.json", schema())
    write_text(Path(folder) / "README.md", readme())


if __name__ == "__main__":
    main(sys.argv[1])
