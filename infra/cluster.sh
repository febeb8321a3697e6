#!/usr/bin/env bash
# A Ray cluster on this machine, alone or as one of several, with token authentication on.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: infra/cluster.sh start [options] [-- options of `ray start`]
       infra/cluster.sh join HOST:PORT [options] [-- options of `ray start`]
       infra/cluster.sh status | stop | env [options]

  start    a head node; everything listens on loopback unless --host names another address of this machine
  join     a worker node of the head at HOST:PORT, which must have been started with --host
  status   what the cluster has and does; exit code 3 when nothing runs here
  stop     end what start or join began here, and nothing else
  env      export lines for a shell or a job: eval "$(infra/cluster.sh env)"

  --host ADDRESS          address under which other machines reach this one (start and join)
  --port PORT             of the head (6379); PORT + 1 serves Ray clients
  --dashboard-host ADDRESS, --dashboard-port PORT
                          of the dashboard and the jobs API (127.0.0.1, 8265)
  --token FILE            the cluster's token (RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token);
                          start makes it, for join copy it from the head
  --state DIR             what stop and status need to know, and the log (build/cluster)
  --temp-dir DIR          Ray's sockets and logs; a short path (/tmp/ray-USER-PORT)
  --python FILE           the Python that has Ray (.venv/bin/python, else python3)

The token keeps strangers out, it does not encrypt: between machines use a private network.
TEXT
}

fail() {
    echo "cluster.sh: $*" >&2
    exit 1
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

absolute() {
    [[ $1 == /* ]] && echo "$1" || echo "$PWD/$1"
}

command=${1:-}
[[ $# -gt 0 ]] && shift
host='' head='' port=6379 dashboard_host=127.0.0.1 dashboard_port=8265 temp_dir='' python=''
state=$root/build/cluster
token=$(absolute "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}")
case $command in
start | status | stop | env) ;;
join)
    head=${1:-}
    [[ $head == *:* ]] || fail "join needs the head's HOST:PORT, not '$head'"
    shift
    ;;
-h | --help | help)
    usage
    exit 0
    ;;
*)
    usage >&2
    exit 2
    ;;
esac
while [[ $# -gt 0 && $1 != -- ]]; do
    [[ $# -ge 2 ]] || fail "option $1 needs a value; see infra/cluster.sh --help"
    case $1 in
    --host) host=$2 ;;
    --port) port=$2 ;;
    --dashboard-host) dashboard_host=$2 ;;
    --dashboard-port) dashboard_port=$2 ;;
    --token) token=$(absolute "$2") ;;
    --state) state=$(absolute "$2") ;;
    --temp-dir) temp_dir=$(absolute "$2") ;;
    --python) python=$2 ;;
    *) fail "unknown option $1; see infra/cluster.sh --help" ;;
    esac
    shift 2
done
[[ $# -gt 0 ]] && shift
extra=("$@")
: "${python:=$([[ -x $root/.venv/bin/python ]] && echo "$root/.venv/bin/python" || echo python3)}"
command -v "$python" >/dev/null || fail "there is no '$python'; run make test once, or name a Python with --python"
python=$(command -v "$python")
# Jobs call python and ray by these names, in the cluster too.
export PATH=${python%/*}:$PATH
: "${temp_dir:=/tmp/ray-$(id -un)-$port}"
pid_file=$state/pid env_file=$state/env log_file=$state/log

ray() {
    "$python" -m ray.scripts.scripts "$@"
}

running() { # the recorded process lives and is a ray node, not a stranger who got its number
    [[ -s $pid_file ]] && ps -o args= -p "$(<"$pid_file")" 2>/dev/null | grep -q 'ray.scripts.scripts start'
}

listening() { # HOST PORT
    (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null
}

make_token() {
    if [[ ! -s $token ]]; then
        mkdir -p "$(dirname "$token")"
        (umask 077 && "$python" -c 'import secrets; print(secrets.token_hex(32), end="")' >"$token")
        echo "made a token: $token"
    fi
    chmod 600 "$token"
}

refuse_second() {
    running && fail "already running here (process $(<"$pid_file")); stop it first, or use another --state"
    return 0
}

launch() { # options of `ray start`
    mkdir -p "$state"
    (umask 077 && mkdir -p "$temp_dir")
    [[ -O $temp_dir ]] || fail "$temp_dir belongs to someone else; name another with --temp-dir"
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token RAY_USAGE_STATS_ENABLED=0
    unset RAY_ADDRESS RAY_AUTH_TOKEN
    # A submitted job's `python` is looked up in the PATH of the head.
    PATH=$(cd "$(dirname "$python")" && pwd):$PATH
    # With --block the process ends its children, and only these, on SIGTERM; `ray stop` ends every Ray on the machine.
    # Job control gives it a process group of its own, so that a Ctrl-C or a time limit here does not reach it.
    # Ports of workers and agents are the system's choice, so that nodes on one machine do not meet.
    local any_port=(--dashboard-agent-listen-port 0 --min-worker-port 0 --max-worker-port 0)
    : >"$log_file"
    set -m
    nohup "$python" -m ray.scripts.scripts start --block --temp-dir "$temp_dir" "${any_port[@]}" "$@" "${extra[@]}" \
        >"$log_file" 2>&1 </dev/null &
    set +m
    local pid=$!
    echo "$pid" >"$pid_file"
    for ((waited = 0; waited < 120; waited++)); do
        kill -0 "$pid" 2>/dev/null || break
        grep -q 'Ray runtime started' "$log_file" && return
        sleep 1
    done
    tail -n 15 "$log_file" >&2
    kill -KILL -- "-$pid" 2>/dev/null || true
    rm -f "$pid_file"
    fail "Ray did not start; the whole log is $log_file"
}

end() {
    local pid
    pid=$(<"$pid_file")
    if running; then
        kill -TERM "$pid"
        for ((waited = 0; waited < 60; waited++)); do
            running || break
            sleep 0.5
        done
        running && kill -KILL -- "-$pid"
    fi
    rm -f "$pid_file" "$env_file"
}

start() {
    local address=${host:-127.0.0.1}
    refuse_second
    listening "$address" "$port" && fail "port $port on $address is taken; choose another with --port"
    listening "$dashboard_host" "$dashboard_port" &&
        fail "port $dashboard_port on $dashboard_host is taken; choose another with --dashboard-port"
    make_token
    local options=(--head --node-ip-address "$address" --port "$port" --ray-client-server-port $((port + 1))
        --dashboard-host "$dashboard_host" --dashboard-port "$dashboard_port")
    # Ray turns 127.0.0.1 into the address of a network card, unless clusters of several machines are off.
    [[ -n $host ]] || export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
    launch "${options[@]}"
    for ((waited = 0; waited < 60; waited++)); do
        listening "$dashboard_host" "$dashboard_port" && break
        sleep 1
    done
    {
        echo "export RAY_ADDRESS=$address:$port"
        echo "export RAY_API_SERVER_ADDRESS=http://$dashboard_host:$dashboard_port"
        printf 'export PATH=%q:$PATH\n' "${python%/*}"
        echo "export RAY_AUTH_MODE=token"
        printf 'export RAY_AUTH_TOKEN_PATH=%q\n' "$token"
        [[ -n $host ]] || echo "export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0"
    } >"$env_file"
    echo "started: $address:$port, dashboard http://$dashboard_host:$dashboard_port"
    echo "use it:  eval \"\$(infra/cluster.sh env$([[ $state == "$root/build/cluster" ]] || echo " --state $state"))\""
}

join() {
    refuse_second
    [[ -s $token ]] || fail "no token at $token; copy the head's file there, or name it with --token"
    chmod 600 "$token"
    listening "${head%:*}" "${head##*:}" || fail "nothing answers at $head; start the head there with --host ${head%:*}"
    local options=(--address "$head")
    [[ -z $host ]] || options+=(--node-ip-address "$host")
    launch "${options[@]}"
    {
        echo "export RAY_ADDRESS=$head"
        printf 'export PATH=%q:$PATH\n' "${python%/*}"
        echo "export RAY_AUTH_MODE=token"
        printf 'export RAY_AUTH_TOKEN_PATH=%q\n' "$token"
    } >"$env_file"
    echo "joined: $head"
}

case $command in
start) start ;;
join) join ;;
status)
    if ! running; then
        echo "not running"
        exit 3
    fi
    # shellcheck source=/dev/null
    source "$env_file"
    ray status
    ;;
stop)
    if [[ ! -s $pid_file ]]; then
        echo "nothing to stop"
        exit 0
    fi
    end
    echo "stopped"
    ;;
env)
    running || fail "not running; start it with infra/cluster.sh start"
    cat "$env_file"
    ;;
esac
