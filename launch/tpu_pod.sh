#!/usr/bin/env bash
# Runs a command on all workers of a TPU VM pod, in the repository as of the current commit:
#
#   launch/tpu_pod.sh NAME --zone=ZONE --bucket=BUCKET -- \
#     python -m gist_jax.train --config=… --workdir=runs/RUN
#
# Before -- may come --dry-run, which prints the commands and starts nothing, and options of gcloud, such
# as --project=PROJECT or --internal-ip, which it gets as they are.
#
# All workers need the same workdir. --bucket mounts a Cloud Storage bucket as runs/, with gcsfuse; it
# must have a hierarchical namespace, since a checkpoint is complete once its directory is renamed. Leave
# it out if they share another disk.
#
# The output of all workers comes back here, and a run ends when the connection breaks: call this where it
# lasts, for example in tmux. To stop a run so that it saves, and later resumes with the same command:
#
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=0 --command="pkill -TERM -f '[g]ist_jax'"

set -euo pipefail

fail() {
  echo "error: $1 (launch/tpu_pod.sh begins with what to write)" >&2
  exit 2
}

quoted() {
  python3 -c 'import shlex, sys; print(shlex.join(sys.argv[1:]))' "$@"
}

run() {
  if [ -n "$dry_run" ]; then quoted "$@"; else "$@"; fi
}

# Runs on every worker, in its home directory: the bucket and the command.
on_worker() {
  set -eo pipefail
  bucket=$1
  shift
  mkdir -p gist_jax
  tar -xzf gist_jax.tar.gz -C gist_jax
  cd gist_jax
  PATH="$PWD/.venv/bin:$HOME/.local/bin:$PATH"
  # The Python of the TPU images is too old, and uv brings one.
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  [ -d .venv ] || uv venv --quiet --python=3.12
  uv pip install --quiet --editable '.[tpu]'
  if [ -n "$bucket" ] && ! mountpoint --quiet runs; then
    if ! command -v gcsfuse >/dev/null; then
      key=/usr/share/keyrings/cloud.google.asc
      packages="https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main"
      sudo curl -fsSLo $key https://packages.cloud.google.com/apt/doc/apt-key.gpg
      echo "deb [signed-by=$key] $packages" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
      sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
      sudo apt-get -qq -o DPkg::Lock::Timeout=600 install gcsfuse
    fi
    mkdir -p runs
    # Nothing cached: a worker must see at once what the others have written.
    gcsfuse --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$bucket" runs
  fi
  exec "$@"
}

name=
zone=
bucket=
dry_run=
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    --dry-run) dry_run=yes ;;
    --bucket=*) bucket=${1#--bucket=} ;;
    --zone=*) zone=$1 ;;
    -*) options+=("$1") ;;
    *)
      [ -z "$name" ] || fail "unexpected argument $1: options are written --name=value"
      name=$1
      ;;
  esac
  shift
done
[ -n "$name" ] || fail "the name of the TPU is missing"
[ -n "$zone" ] || fail "--zone is missing"
[ $# -gt 1 ] || fail "the command, after --, is missing"
shift
if [ -z "$dry_run" ] && ! command -v gcloud >/dev/null; then
  echo "error: gcloud is not installed: see https://cloud.google.com/sdk/docs/install" >&2
  exit 1
fi

cd "$(dirname "$0")/.."
git diff --quiet HEAD || echo "note: changes that are not committed are left out" >&2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
run git archive --output="$folder/gist_jax.tar.gz" HEAD
options+=("$zone" --worker=all)
run gcloud compute tpus tpu-vm scp "$folder/gist_jax.tar.gz" "$name:" "${options[@]}"
run gcloud compute tpus tpu-vm ssh "$name" "${options[@]}" \
  --command="$(declare -f on_worker); on_worker $(quoted "$bucket" "$@")"
