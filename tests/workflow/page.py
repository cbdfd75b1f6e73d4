"""The code blocks of a page of the documentation, so that tests run what readers copy."""

from __future__ import annotations

import re

from tests.workflow.conftest import ROOT


def code_blocks(page: str, heading: str, language: str) -> list[str]:
    """The blocks in `language` below the heading of that name, in order."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
