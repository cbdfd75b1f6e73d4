"""Where numbers come from."""

from oaem.runtime import provenance


def test_the_fingerprint_sees_code_and_nothing_else() -> None:
    base = "def f(x):\n    return x + 1\n"
    same = '"""Doc."""\n# why\ndef f(x):\n    """Adds."""\n    return (x +\n        1)\n'
    other = base.replace("1", "2")
    assert provenance._essence(base) == provenance._essence(same)
    assert provenance._essence(base) != provenance._essence(other)
    assert len(provenance.source_fingerprint("quantization")) == 16


def test_provenance_names_versions_and_device() -> None:
    facts = provenance.collect("cpu")
    assert facts["versions"]["torch"]
    assert facts["device"]
