#!/usr/bin/env bash
# Shows Lighter at work: a WebAssembly guest and a Linux container, both under
# the runtime io.containerd.wasmtime.v1 of a containerd of its own, and takes
# everything down again. `make demo` runs it.
#
# usage: examples/hello/demo.sh        (as root, on Debian 12 or newer)
#
# A containerd or Docker that runs on the machine is not touched: the demo's has
# its sockets and state in /run/lighter-demo and its images and compiled guests
# in /var/lib/lighter-demo. What an interrupted run left is removed first.
#
# Lines that begin with $ can be copied into a root shell; the export lines
# come first.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../test/setup/lib.sh"

NAME=lighter-demo
STATE=/run/$NAME
ROOT=/var/lib/$NAME

BOLD='' PLAIN=''
[[ ! -t 1 ]] || BOLD=$'\e[1m' PLAIN=$'\e[0m'
step() { printf '\n%s== %s%s\n' "$BOLD" "$*" "$PLAIN"; }

# show COMMAND [ARG...]: prints a command as it would be typed.
show() {
    printf '$'
    local word
    for word; do
        [[ $word =~ ^[a-zA-Z0-9/._:=@%+,-]+$ ]] || word=${word@Q}
        printf ' %s' "$word"
    done
    printf '\n'
}

# run COMMAND [ARG...]: prints it, then does it.
run() {
    show "$@"
    "$@"
}

# until_true WHAT COMMAND [ARG...]: tries the command until it succeeds.
until_true() {
    local what=$1 try
    shift
    for ((try = 0; try < 300; try++)); do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.1
    done
    die "gave up after 30 s: $what"
}

# The pids of the demo's own processes: its containerd and shims carry a path in
# $STATE in their arguments, containers are in its cgroup.
processes() {
    local file pid
    for file in /proc/[0-9]*/cmdline; do
        pid=${file//[^0-9]/}
        [[ $pid != "$$" ]] && tr '\0' ' ' 2>/dev/null <"$file" | grep -qF " $STATE/" && echo "$pid"
    done
    find /sys/fs/cgroup -path "*/$NAME/*" -name cgroup.procs -exec cat {} + 2>/dev/null || true
}

# ended STATUS: how the script goes, whatever ends it.
ended() {
    # What an interrupt ends is the demo, not its clean-up.
    trap '' INT TERM HUP
    if (($1 > 0 && $1 < 128)) && [[ -e $STATE/containerd.log ]]; then
        printf '%s: failed; the last lines of containerd and the shim:\n' "${0##*/}" >&2
        tail -n 20 "$STATE/containerd.log" >&2
    fi
    take_down
    (($1 > 0)) || say "no process is left, $STATE and $ROOT are removed"
}

# Removes everything of this demo or of an earlier one. Does nothing where there
# is nothing.
take_down() {
    local sockets pids try mounts
    # The shims' sockets lie outside of $STATE; containerd notes where.
    sockets=$(cat "$STATE"/state/io.containerd.runtime.v2.task/*/*/{address,bootstrap.json} 2>/dev/null |
        grep -o '/run/containerd/s/[0-9a-f]*') || true
    # Killing one may let another be born, hence more than one look.
    for ((try = 0; try < 50; try++)); do
        pids=$(processes)
        [[ $pids ]] || break
        kill -KILL $pids 2>/dev/null || true
        sleep 0.1
    done
    while mounts=$(awk -v s="$STATE/" -v r="$ROOT/" 'index($5, s) == 1 || index($5, r) == 1 { print $5 }' \
        /proc/self/mountinfo) && [[ $mounts ]]; do
        # Later mounts cover earlier ones.
        tac <<<"$mounts" | xargs -d '\n' umount -l
    done
    find /sys/fs/cgroup -depth -type d \( -path "*/$NAME" -o -path "*/$NAME/*" \) -exec rmdir {} + 2>/dev/null || true
    [[ ! $sockets ]] || xargs -d '\n' rm -f <<<"$sockets"
    rm -rf "$STATE" "$ROOT"
    [[ ! $pids ]] || die "these processes do not end: $pids"
}

# file PATH: writes standard input to a file, and prints the command for that.
file() {
    local text
    text=$(cat)
    printf "$ cat >%s <<'END'\n%s\nEND\n" "$1" "$text"
    printf '%s\n' "$text" >"$1"
}

configuration() {
    cat <<CONFIG
version = 3
root = "$ROOT/containerd"
state = "$STATE/state"
# Nothing but containers is wanted, and nothing outside of these folders.
disabled_plugins = [
  "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
  "io.containerd.podsandbox.controller.v1.podsandbox", "io.containerd.internal.v1.opt",
  "io.containerd.nri.v1.nri",
]
[grpc]
  address = "$STATE/containerd.sock"
[ttrpc]
  address = "$STATE/containerd.sock.ttrpc"
CONFIG
}

# Has containerd publish an event, and tells whether the recorder has seen one.
recording() {
    ctr namespaces label "$NAME" recorder=wanted
    [[ -s $STATE/events ]]
}

# task_events ID: waits for the last event of a task and prints all of them.
task_events() {
    until_true "the events of $1" grep -q "/tasks/delete.*\"$1\"" "$STATE/events"
    grep -E "/tasks/.*\"$1\"" "$STATE/events" | cut -d ' ' -f 5-
}

[[ $EUID == 0 ]] || die "containers need root: run it as root (sudo env PATH=\"\$PATH\" make demo)"
exec 9<"${BASH_SOURCE[0]}"
flock -n 9 || {
    say "another demo is running; waiting for its end"
    flock 9
}
trap 'ended $?' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
take_down

step "Install what is missing (nothing that runs here is touched)"
cd "$REPO"
run test/setup/build
run test/setup/engines containerd-2.1
run test/setup/guests hello

step "Build the shim and lighter"
run make --no-print-directory build

step "Start a containerd of our own"
host=$(rustc -vV | sed -n 's/^host: //p')
path=$TARGET/$host/release:$TOOLS/containerd-2.1/usr/bin
printf '$ export PATH=%q:"$PATH"\n' "$path"
export PATH=$path:$PATH
run export CONTAINERD_ADDRESS=$STATE/containerd.sock CONTAINERD_NAMESPACE=$NAME
run mkdir -p "$STATE" "$ROOT"
configuration | file "$STATE/config.toml"
file "$STATE/runtime.toml" <<<"cache_dir = \"$ROOT/cache\""
printf '$ containerd --config %s >%s 2>&1 &\n' "$STATE/config.toml" "$STATE/containerd.log"
containerd --config "$STATE/config.toml" >"$STATE/containerd.log" 2>&1 </dev/null 9<&- &
disown
until_true "containerd answers" ctr version
run ctr namespaces create "$NAME"
printf '$ ctr events >%s &\n' "$STATE/events"
ctr events >"$STATE/events" 2>>"$STATE/containerd.log" </dev/null 9<&- &
disown
until_true "containerd tells of events" recording

step "Make an image of examples/hello, for the platform wasi/wasm"
run lighter build "$TARGET/guests/hello.wasm" -t hello -o "$STATE/hello.tar"
run ctr images import --all-platforms "$STATE/hello.tar"

step "Run it"
runtime=(--runtime io.containerd.wasmtime.v1 --runtime-config-path "$STATE/runtime.toml")
run ctr run --rm "${runtime[@]}" --platform wasi/wasm \
    docker.io/library/hello:latest hello /hello.wasm one two

step "What containerd was told about it (ctr events)"
task_events hello

step "Run a Linux container with the same runtime"
run lighter build -t busybox -o "$STATE/busybox.tar" \
    --platform "linux/$(dpkg --print-architecture)" \
    --add "$(command -v busybox)":/bin/busybox --link /bin/sh:busybox --entrypoint /bin/sh
run ctr images import "$STATE/busybox.tar"
run ctr run --rm "${runtime[@]}" docker.io/library/busybox:latest linux \
    /bin/sh -c 'echo "Hello from busybox on Linux, pid $$"; busybox ls /'
task_events linux

step "Take everything down"
