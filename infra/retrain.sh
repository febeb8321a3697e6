#!/usr/bin/env bash
# What the schedules call: hands one retraining to a Ray cluster and leaves.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: infra/retrain.sh [--window FORMAT] [--dry-run] -- arguments of jobs.retrain

Submits `python -m jobs.retrain` under the id retrain-WINDOW-CHECKSUM; the checksum is that of the arguments, so that
several models can be retrained on one cluster. Ray takes each id once: a window that was submitted already with the
same arguments is left alone, with exit code 0, and a schedule may call twice, or again after a failure of its own.
Where that retraining found nothing new, the window is not used up: the next call submits it again, as ID-2, ID-3, ...

  --window FORMAT   of `date`, in UTC (%Y%m%dT0000Z: a window a day); {window} in an argument is replaced by it
  --dry-run         print the command, submit nothing

The cluster is the one of RAY_API_SERVER_ADDRESS, else the one that infra/cluster.sh started on this machine. How a
retraining ended: ray job status ID, with the id that is printed here
TEXT
}

fail() {
    echo "retrain.sh: $*" >&2
    exit 1
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
format=%Y%m%dT0000Z dry_run=no
while [[ $# -gt 0 && $1 != -- ]]; do
    case $1 in
    -h | --help | help)
        usage
        exit 0
        ;;
    --window)
        [[ $# -ge 2 ]] || fail "option $1 needs a value; see infra/retrain.sh --help"
        format=$2
        shift
        ;;
    --dry-run) dry_run=yes ;;
    *) fail "unknown option $1; see infra/retrain.sh --help" ;;
    esac
    shift
done
[[ $# -gt 1 ]] || fail "what is to be retrained? Give the arguments of jobs.retrain after --"
shift

window=$(date --utc "+$format")
# It becomes a part of paths and log names.
[[ $window =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || fail "window '$window' may have letters, digits and . _ - only"
checksum=$(printf '%s\0' "$@" | sha256sum)
id=retrain-$window-${checksum:0:8}
command=(python -m jobs.retrain "${@//\{window\}/$window}")
if [[ $dry_run == yes ]]; then
    printf '%s:' "$id"
    printf ' %q' "${command[@]}"
    echo
    exit
fi
if [[ -z ${RAY_API_SERVER_ADDRESS:-} ]]; then
    exports=$("$root/infra/cluster.sh" env) || fail "no cluster; start one, or set RAY_API_SERVER_ADDRESS"
    eval "$exports"
fi
python=$([[ -x $root/.venv/bin/python ]] && echo "$root/.venv/bin/python" || echo python)

ray_job() {
    "$python" -m ray.scripts.scripts job "$@" 2>&1
}

# The server decides whether an id is new: to ask first would let two schedules pass at once.
name=$id number=1
while ! said=$(ray_job submit --no-wait --submission-id "$name" --working-dir "$root" -- "${command[@]}"); do
    if [[ $said != *"$name already exists"* ]]; then
        echo "$said" >&2
        fail "$name was not submitted"
    fi
    # What jobs.retrain says where too few tars have come in.
    if ! ray_job logs "$name" | grep --quiet --extended-regexp 'nothing to begin: [0-9]+ new tars'; then
        echo "submitted before: $name"
        exit
    fi
    number=$((number + 1)) name=$id-$number
done
echo "submitted: $name"
