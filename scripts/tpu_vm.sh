#!/usr/bin/env bash
# Trains on this host, a TPU VM: installs what is missing into .venv, then starts.
#
#   scripts/tpu_vm.sh [--dry-run] [arguments of python -m experiments.train]
#
# One host takes all of its chips without --distributed. Several hosts are tpu_slice.sh's, which
# calls this on each. --resume is always given: after an interruption the same command goes on.
# Needs Python 3.11 or newer with its venv package; PYTHON names one that is not found by itself.
set -euo pipefail

if [[ ${1:-} == --dry-run ]]; then DRY_RUN=1 && shift; fi
run() { if [[ ${DRY_RUN:-} ]]; then printf -v words ' %q' "$@" && echo "${words# }"; else "$@"; fi; }

cd "$(dirname "$0")/.."
if [[ ! -x .venv/bin/python ]]; then
  found=$(command -v python3.14 python3.13 python3.12 python3.11 python3 || true)
  run "${PYTHON:-${found%%$'\n'*}}" -m venv .venv
  run .venv/bin/python -m pip install --quiet --editable '.[experiments]' 'jax[tpu]'
fi
run .venv/bin/python -m experiments.train "$@" --resume
