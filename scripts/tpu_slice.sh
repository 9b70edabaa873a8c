#!/usr/bin/env bash
# Trains on all hosts of a TPU slice, from a machine that has gcloud:
#
#   scripts/tpu_slice.sh [--dry-run] NAME ZONE [arguments of python -m experiments.train]
#
# The slice exists: gcloud compute tpus tpu-vm create NAME --zone=ZONE --accelerator-type=... --version=...
# This copies the last commit to every host and calls tpu_vm.sh there; the hosts find each other by
# the slice's own metadata. --out must be on a disk that all hosts have mounted at the same place, with
# an absolute path: the first host writes the record, and all of them the checkpoints.
set -euo pipefail

if [[ ${1:-} == --dry-run ]]; then DRY_RUN=1 && shift; fi
run() { if [[ ${DRY_RUN:-} ]]; then printf -v words ' %q' "$@" && echo "${words# }"; else "$@"; fi; }

if (($# < 2)); then
  echo "usage: $0 [--dry-run] NAME ZONE [arguments of experiments.train]" >&2
  exit 2
fi
name=$1 zone=$2
shift 2

cd "$(dirname "$0")/.."
archive=${TMPDIR:-/tmp}/optax_sam.tar.gz
train="scripts/tpu_vm.sh$(printf ' %q' "$@" --distributed)"
run git archive --output="$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$name:optax_sam.tar.gz" --zone="$zone" --worker=all
run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="mkdir -p optax_sam && tar -xzf optax_sam.tar.gz -C optax_sam && cd optax_sam && $train"
