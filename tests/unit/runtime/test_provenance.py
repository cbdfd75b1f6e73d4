"""Where numbers come from."""

from pathlib import Path

import pytest

from oaem.runtime import provenance


def test_the_fingerprint_sees_code_and_nothing_else() -> None:
    base = "def f(x):\n    return x + 1\n"
    same = '"""Doc."""\n# why\ndef f(x):\n    """Adds."""\n    return (x +\n        1)\n'
    other = base.replace("1", "2")
    assert provenance._parsed(base) == provenance._parsed(same)
    assert provenance._parsed(base) != provenance._parsed(other)
    assert len(provenance.source_fingerprint("quantization")) == 16


def test_provenance_names_versions_and_device() -> None:
    facts = provenance.collect("cpu")
    assert facts["versions"]["torch"]
    assert facts["device"]


def test_the_code_of_a_stage_is_all_that_it_imports_or_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {
        "corpora/tokens.py": "from oaem.corpora import parts\nfrom oaem.runtime.progress import Progress\n",
        "corpora/parts.py": "def f():\n    from oaem.numerics.sums import total\n    import oaem.deep.down\n",
        "numerics/sums.py": "@fast_path('cpu', 'oaem.numerics.kernels.cpu.sums:total')\ndef total():\n    pass\n",
        "numerics/kernels/cpu/sums.py": "from oaem.numerics.sums import total\nGROUP = 'oaem.initialisations'\n",
        "deep/down.py": "import numpy as np\n",
        "runtime/progress.py": "import oaem.aside\n",
        "aside.py": "",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(provenance, "SOURCE", tmp_path)
    assert provenance.modules_of("tokens") == [
        "corpora.parts", "corpora.tokens", "deep.down", "numerics.kernels.cpu.sums", "numerics.sums",
    ]  # fmt: skip
    before = provenance.source_fingerprint.__wrapped__("tokens")
    for name in sources:
        (tmp_path / name).write_text(sources[name] + "ANSWER = 42\n", encoding="utf-8")
        same = provenance.source_fingerprint.__wrapped__("tokens") == before
        assert same == (name in ("runtime/progress.py", "aside.py")), name
        (tmp_path / name).write_text(sources[name], encoding="utf-8")


def test_stages_depend_on_what_computes_them_and_on_no_presentation() -> None:
    found = {stage: set(provenance.modules_of(stage)) for stage in provenance.STAGES}
    assert not [module for modules in found.values() for module in modules if module.startswith("presentation")]
    formulas = {
        "kmeans",
        "m_step",
        "beam_search",
        "block_tuning",
        "kernels.cpu.beam_search",
        "kernels.cuda.beam_search",
    }
    assert found["quantization"] >= {f"quantization.{name}" for name in formulas}
    assert found["pv"] >= {
        "pv.lamb",
        "pv.kernels.cuda.lamb",
        "quantization.kernels.cpu.weight_gradients",
        "runtime.seeds",
    }
    assert found["perplexity"] >= {"evaluation.perplexity", "quantization.weight", "models.kernels.cpu.attention"}
    assert found["downstream"] >= {"corpora.embedded", "evaluation.downstream_harness"}
    # How codes were found says nothing about what a stored model is worth.
    assert not found["perplexity"] & {"quantization.oaem", "quantization.beam_search", "pv.trainer"}
    assert found["model"] == {"models.source", "models.embedded", "models.gguf", "models.packages"}


def test_nothing_that_is_passed_over_has_gone() -> None:
    for name in (*provenance.PLUMBING, *provenance.NOT_IN_A_MODEL):
        place = provenance.SOURCE / name.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").is_file(), name
