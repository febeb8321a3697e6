#!/usr/bin/env bash
# Submit one retraining cycle for the present window to the cluster of this machine; for cron or a systemd timer.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: infra/retrain.sh --config FILE [--id NAME] [--period MINUTES] [--state DIR] [-- a.b=value ...]

Submits `python -m jobs.retrain` with an id made from NAME (retrain) and the window, so that a second start in one
window submits nothing. Start it as often as you like; what a stopped machine has missed, one cycle makes up.
The job runs in a copy of this folder: let FILE name storage, data.tars and retrain.incoming by absolute paths.

  --period MINUTES   length of a window (1440: a day, from midnight UTC)
  --state DIR        as for infra/cluster.sh

    */15 * * * *  cd /srv/raylm && infra/retrain.sh --config jobs/configs/mine.toml    # in a crontab
    infra/schedule/                                                                     # for systemd
TEXT
}

fail() {
    echo "retrain.sh: $*" >&2
    exit 1
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
config='' id=retrain period=1440 state=build/cluster
while [[ $# -gt 0 && $1 != -- ]]; do
    case $1 in
    -h | --help) usage && exit 0 ;;
    esac
    [[ $# -ge 2 ]] || fail "option $1 needs a value; see infra/retrain.sh --help"
    case $1 in
    --config) config=$2 ;;
    --id) id=$2 ;;
    --period) period=$2 ;;
    --state) state=$2 ;;
    *) fail "unknown option $1; see infra/retrain.sh --help" ;;
    esac
    shift 2
done
[[ $# -gt 0 ]] && shift
[[ -f $config ]] || fail "there is no configuration file '$config'; name one with --config"
[[ $period =~ ^[1-9][0-9]*$ ]] || fail "--period is a whole number of minutes, not '$period'"

# As pipelines/retrain/window.py counts them.
now=$(date +%s)
window=$(date -u -d "@$((now / (period * 60) * period * 60))" +%Y%m%dT%H%MZ)
submission=$id-$window
python=$([[ -x .venv/bin/python ]] && echo "$PWD/.venv/bin/python" || echo python3)
exported=$(infra/cluster.sh env --state "$state") || fail "no cluster runs here; start one with infra/cluster.sh start"
eval "$exported"

ray() {
    "$python" -m ray.scripts.scripts "$@"
}

if ray job status "$submission" >/dev/null 2>&1; then
    echo "window $window: job $submission was submitted before"
    exit 0
fi
ray job submit --no-wait --submission-id "$submission" --working-dir . -- \
    "$python" -m jobs.retrain --config "$config" "retrain.window=$window" "retrain.period_minutes=$period" "$@"
