# Runs one private dockerd with a containerd of its own, and buries all that is
# theirs when the tests are through with them: when standard input ends, be it
# because the daemon was dropped or because the test program died. Until then each
# line of it is a signal that is to end dockerd, or `start`.
#
# usage: sh dockerd.sh FOLDER NAME
#
# FOLDER holds containerd.toml, daemon.json and everything the daemons keep;
# NAME is the name of their network namespace, of the one with what is outside
# of it (NAME-out), and of the cgroup that their containers live below. containerd
# and dockerd are those of PATH.
#
# The daemons run in namespaces of mounts, processes and network: no mount,
# address or packet filter of theirs is the machine's, and they end together.
folder=$1 name=$2

mkfifo "$folder/orders"
nsenter --net="/run/netns/$name" \
    unshare --mount --pid --fork --kill-child --mount-proc sh -c '
    # Copies of the mounts here would keep other namespaces alive.
    umount -l /run/netns
    # Shims put their sockets there.
    mkdir -p /run/containerd && mount -t tmpfs shims /run/containerd
    containerd --config "$0/containerd.toml" >"$0/containerd.log" 2>&1 </dev/null &
    until [ -S "$0/containerd.sock" ]; do
        kill -0 $! || exit
        sleep 0.02
    done
    (
        run() {
            dockerd --config-file "$0/daemon.json" >>"$0/dockerd.log" 2>&1 </dev/null &
            dockerd=$!
        }
        run
        while read -r order; do
            if [ "$order" = start ]; then
                run
            else
                kill "-$order" "$dockerd"
                wait "$dockerd"
            fi
        done
    ) <>"$0/orders" &
    # Also for shims, whose parents have ended.
    wait' "$folder" &
daemons=$!

cat 1<>"$folder/orders"

# With the first process of its namespace every other one ends.
kill -KILL $(cat "/proc/$daemons/task/$daemons/children") "$daemons" 2>/dev/null
wait "$daemons" 2>/dev/null
# A killed process is in its cgroup until the kernel is through with it.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    find /sys/fs/cgroup -depth -type d \( -path "*/$name" -o -path "*/$name/*" \) -exec rmdir {} + 2>/dev/null
    [ "$(find /sys/fs/cgroup -type d -path "*/$name")" ] || break
    sleep 0.05
done
ip netns del "$name" 2>/dev/null
ip netns del "$name-out" 2>/dev/null
rm -rf "$folder"
