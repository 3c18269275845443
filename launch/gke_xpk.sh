#!/usr/bin/env bash
# Runs a command on TPU slices of a GKE cluster through xpk, in the repository as of the current commit:
#
#   launch/gke_xpk.sh --cluster=CLUSTER --workload=NAME --tpu-type=v5litepod-64 --num-slices=1 \
#     --storage=STORAGE -- python -m gist_jax.train --config=… --workdir=/MOUNT_POINT/RUN
#
# Before -- may come --dry-run, which prints the command and starts nothing, and whatever options of
# `xpk workload create` there are.
#
# All workers need the same workdir: --storage is one of `xpk storage attach`. A bucket must have a
# hierarchical namespace, since a checkpoint is complete once its directory is renamed, and be attached
# with --mount-options=metadata-cache:ttl-secs:0, so that a worker sees at once what others have written.
#
# GKE starts a workload again when its exit code is 127 or more: a run that saved because its nodes are
# taken away (143) resumes by itself, one that failed by a mistake (1) stays as it is.

set -euo pipefail

fail() {
  echo "error: $1 (launch/gke_xpk.sh begins with what to write)" >&2
  exit 2
}

quoted() {
  python3 -c 'import shlex, sys; print(shlex.join(sys.argv[1:]))' "$@"
}

dry_run=
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    --dry-run) dry_run=yes ;;
    -*) options+=("$1") ;;
    *) fail "unexpected argument $1: options are written --name=value" ;;
  esac
  shift
done
for needed in cluster workload tpu-type; do
  case " ${options[*]-} " in
    *" --$needed="*) ;;
    *) fail "--$needed is missing" ;;
  esac
done
[ $# -gt 1 ] || fail "the command, after --, is missing"
shift
if [ -z "$dry_run" ] && ! command -v xpk >/dev/null; then
  echo "error: xpk is not installed: pip install xpk" >&2
  exit 1
fi

cd "$(dirname "$0")/.."
git diff --quiet HEAD || echo "note: changes that are not committed are left out" >&2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# exec, so that the SIGTERM with which Kubernetes ends a pod reaches the command.
workload=(
  xpk workload create
  --base-docker-image=python:3.12 --script-dir="$folder"
  --max-restarts=50 --termination-grace-period-seconds=120
  "${options[@]}"
  --command="pip install --quiet --editable '.[tpu]' && exec $(quoted "$@")"
)
if [ -n "$dry_run" ]; then
  quoted "${workload[@]}"
else
  git archive HEAD | tar -x -C "$folder"
  "${workload[@]}"
fi
