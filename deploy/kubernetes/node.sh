#!/bin/sh
# Puts Lighter's shim on a node, or takes it off again.
#
# usage: node.sh install|remove
#
# install copies the shim to /usr/local/bin of the node and gives containerd the runtime handler `wasmtime`.
# remove undoes that, once no pod of the handler is left. Both may be run again at any time: what is done
# is left alone, and containerd is restarted only when its configuration has changed. Running pods stay.
#
# Where containerd's configuration goes:
#   version 3 that imports conf.d    a file of its own, /etc/containerd/conf.d/lighter.toml
#   any other version 2 or 3         a marked block at the end of /etc/containerd/config.toml
#   none at all                      a new /etc/containerd/config.toml
#   k3s                              nothing: it looks for the shim when it starts, and writes the handler itself
# Where systemd makes the cgroups of runc's containers, it is to make these as well: /etc/lighter.toml says so.
#
# Environment:
#   NODE      the node's root file system, as seen from here (default: /host)
#   ON_NODE   what runs a command on the node (default: nsenter into process 1, which wants hostPID)
set -eu

here=$(cd "$(dirname "$0")" && pwd)
NODE=${NODE-/host}
ON_NODE=${ON_NODE-nsenter -t 1 -m --}
# Commands are looked for there, so the node's folders count.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

program=/usr/local/bin/containerd-shim-wasmtime-v1
config=/etc/containerd/config.toml
drop_in=/etc/containerd/conf.d/lighter.toml
options=/etc/lighter.toml
# Is there from a change of containerd's configuration until containerd has been restarted.
changed=/etc/containerd/.lighter-changed
k3s=/var/lib/rancher/k3s/agent/etc/containerd
begin='# BEGIN lighter: written by its node.sh, which takes it out again'
end='# END lighter'

say() { echo "lighter: $*"; }
die() {
    echo "lighter: $*" >&2
    exit 1
}

# has_handler NAME FILE: whether a configuration, of either version, has a runtime handler.
has_handler() {
    grep -qE "^[[:space:]]*\[plugins\.[\"']io\.containerd\.(grpc\.v1\.cri|cri\.v1\.runtime)[\"']\.containerd\.runtimes\.[\"']?$1[\"']?\]" "$2"
}

# without_ours FILE: its text without the marked block, and with an end to its last line.
without_ours() {
    awk -v end="$end" '/^# BEGIN lighter/ { ours = 1 } !ours; $0 == end { ours = 0 }' "$1"
}

# handlers PLUGIN FILE: the handlers of a file in ../containerd, for a configuration that is in $NODE$config.lighter
# and has no handler wasmtime.
handlers() {
    runc=no
    ! has_handler runc "$NODE$config.lighter" || runc=yes
    awk -v RS= -v runc="$runc" '/runtime_type/ && !(runc == "yes" && /runtimes\.runc\]/)' "$2" | grep -v '^#'
    if [ -e "$NODE$options" ]; then
        printf '  [plugins."%s".containerd.runtimes.wasmtime.options]\n    ConfigPath = "%s"\n' "$1" "$options"
    fi
}

# Writes the shim's own options, unless somebody has.
write_options() {
    if [ ! -e "$NODE$options" ] && grep -qsE '^[[:space:]]*SystemdCgroup[[:space:]]*=[[:space:]]*true' "$NODE$config"; then
        printf '%s\nsystemd_cgroup = true\n%s\n' "$begin" "$end" >"$NODE$options"
        say "wrote $options"
    fi
}

# accept: puts $NODE$config.lighter into effect, if containerd can read it.
accept() {
    if ! message=$($ON_NODE containerd --config "$config.lighter" config dump 2>&1 >/dev/null); then
        rm -f "$NODE$config.lighter"
        die "containerd would not start with the changed $config, so it stays as it was: $message"
    fi
    : >"$NODE$changed"
    mv "$NODE$config.lighter" "$NODE$config"
}

# Restarts containerd if its configuration has changed, in an attempt before this one perhaps.
take_up() {
    if [ -e "$NODE$changed" ]; then
        restart containerd
        rm "$NODE$changed"
    fi
}

restart() {
    say "restart $1"
    $ON_NODE systemctl restart "$1" ||
        die "cannot restart $1 on the node: do so by hand, then run this again"
}

# The service that k3s runs as: of a server or an agent.
k3s_service() {
    for service in k3s k3s-agent; do
        if $ON_NODE systemctl is-active --quiet "$service"; then
            echo "$service"
            return
        fi
    done
}

copy_program() {
    [ -f "$here/${program##*/}" ] || die "$here/${program##*/} is missing: build the image with its build script"
    if cmp -s "$here/${program##*/}" "$NODE$program"; then
        say "$program is up to date"
        return
    fi
    mkdir -p "$NODE${program%/*}"
    # Aside and moved: containerd may run it at any moment. In large pieces, so that a file system that can keeps it
    # in memory in huge pages.
    dd if="$here/${program##*/}" of="$NODE$program.new" bs=4M status=none
    chmod 755 "$NODE$program.new"
    mv "$NODE$program.new" "$NODE$program"
    say "installed $program"
}

configure() {
    new=$NODE$config.lighter
    mkdir -p "$NODE${config%/*}"
    if [ -e "$NODE$config" ]; then
        cp -p "$NODE$config" "$new"
        without_ours "$NODE$config" >"$new"
    else
        : >"$new"
    fi
    # Every containerd reads version 2, so a file of ours alone is of that.
    version=$(cat "$NODE$config" 2>/dev/null | sed -n 's/^version *= *\([0-9]*\).*/\1/p' | head -n 1)
    [ -s "$new" ] || version=2
    case $version in
    2) plugin=io.containerd.grpc.v1.cri source=$here/1.x.toml ;;
    3) plugin=io.containerd.cri.v1.runtime source=$here/2.x.toml ;;
    *)
        rm "$new"
        die "$config is of version ${version:-1}, which has no runtime handlers by this name: bring it to version 2 (containerd 1) or 3 (containerd 2) with \`containerd config migrate\`"
        ;;
    esac
    if has_handler wasmtime "$new"; then
        rm "$new"
        say "$config has a handler wasmtime that is not this script's: left alone"
        return
    fi
    write_options
    block=$(handlers "$plugin" "$source")
    if [ "$version" = 3 ] && imports_drop_ins; then
        rm "$new"
        drop_in "$block"
        return
    fi
    [ -s "$new" ] || block="version = 2
$block"
    printf '%s\n%s\n%s\n' "$begin" "$block" "$end" >>"$new"
    if cmp -s "$new" "$NODE$config"; then
        rm "$new"
        say "$config is up to date"
        return
    fi
    accept
    say "added the handler wasmtime to $config"
}

# drop_in TABLES: puts them into a file that containerd imports.
drop_in() {
    text=$(printf '%s\nversion = 3\n%s\n%s' "$begin" "$1" "$end")
    if [ "$text" = "$(cat "$NODE$drop_in" 2>/dev/null)" ]; then
        say "$drop_in is up to date"
        return
    fi
    mkdir -p "$NODE${drop_in%/*}"
    : >"$NODE$changed"
    printf '%s\n' "$text" >"$NODE$drop_in"
    say "wrote $drop_in"
}

# Whether config.toml imports conf.d, on one line or on several.
imports_drop_ins() {
    tr '\n' ' ' <"$NODE$config" | grep -qE "imports *= *\[[^]]*[\"']${drop_in%/*}/\*\.toml[\"']"
}

configure_k3s() {
    if [ -e "$NODE$k3s/config.toml" ] && has_handler wasmtime "$NODE$k3s/config.toml"; then
        say "k3s has the handler wasmtime"
        return
    fi
    service=$(k3s_service)
    [ -n "$service" ] || die "neither k3s nor k3s-agent runs on the node as a service: restart k3s by hand, then run this again"
    restart "$service"
    has_handler wasmtime "$NODE$k3s/config.toml" ||
        die "k3s did not find $program: it is too old to look for it. Add the handler to its template as docs/kubernetes.md says, then run this again"
}

# Fails while a pod of the handler is there.
unused() {
    for process in /proc/[0-9]*; do
        executable=$(readlink "$process/exe" 2>/dev/null) || continue
        # The file is the same whatever way leads to its folder; of one that a newer has replaced there is the name.
        if [ "$process/exe" -ef "$NODE$program" ] || [ "${executable##*/}" = "${program##*/} (deleted)" ]; then
            die "pods of the runtime class wasmtime still run on this node (process ${process#/proc/}): delete them, then run this again"
        fi
    done
}

remove() {
    unused
    if [ -e "$NODE$drop_in" ]; then
        : >"$NODE$changed"
        rm "$NODE$drop_in"
        rmdir "$NODE${drop_in%/*}" 2>/dev/null || true
        say "removed $drop_in"
    fi
    if [ -e "$NODE$config" ] && grep -q '^# BEGIN lighter' "$NODE$config"; then
        cp -p "$NODE$config" "$NODE$config.lighter"
        without_ours "$NODE$config" >"$NODE$config.lighter"
        if [ -s "$NODE$config.lighter" ]; then
            accept
            say "took the handler wasmtime out of $config"
        else
            : >"$NODE$changed"
            rm "$NODE$config.lighter" "$NODE$config"
            say "removed $config"
        fi
    fi
    take_up
    if [ -e "$NODE$options" ] && grep -q '^# BEGIN lighter' "$NODE$options"; then
        rm "$NODE$options"
    fi
    rm -f "$NODE$program"
    rm -rf "$NODE/var/lib/lighter"
    say "removed $program"
    if [ -d "$NODE$k3s" ]; then
        service=$(k3s_service)
        [ -z "$service" ] || restart "$service"
    fi
}

case ${1-} in
install)
    [ -d "$NODE/etc" ] || die "$NODE is not a root file system: mount the node's there, or set NODE"
    copy_program
    if [ -d "$NODE$k3s" ]; then
        configure_k3s
    else
        configure
        take_up
    fi
    say "ready for pods with runtimeClassName: wasmtime"
    ;;
remove)
    [ -d "$NODE/etc" ] || die "$NODE is not a root file system: mount the node's there, or set NODE"
    remove
    ;;
*)
    echo "usage: ${0##*/} install|remove" >&2
    exit 2
    ;;
esac
