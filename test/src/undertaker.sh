# Runs one private containerd and buries all that is its own when the tests are
# through with it: when standard input ends, be it because the daemon was
# dropped or because the test program died. Until then each line of it is a
# signal that is to end the daemon, or `start`.
#
# usage: sh undertaker.sh FOLDER NAMESPACE CONTAINERD [ARG...]
#
# FOLDER holds everything the daemon keeps; NAMESPACE is its containerd
# namespace, and the name of the cgroup that its containers live below and of
# the network namespace that it may run in.
folder=$1 namespace=$2
shift 2

run() {
    "$@" >>"$folder/log" 2>&1 </dev/null &
    containerd=$!
}
run "$@"

while read -r order; do
    if [ "$order" = start ]; then
        run "$@"
    else
        kill "-$order" "$containerd"
        wait "$containerd" 2>/dev/null
    fi
done

# The shims' sockets lie outside of the folder. Of those that have died their bundles tell.
sockets=$(cat "$folder"/state/io.containerd.*/*/*/address \
    "$folder"/state/io.containerd.*/*/*/bootstrap.json 2>/dev/null |
    grep -o '/run/containerd/s/[0-9a-f]*')

kill -KILL "$containerd" 2>/dev/null
wait "$containerd" 2>/dev/null

# Shims carry the daemon's address in their arguments; containers are found by
# their cgroup. Killing one may let another be born, hence the second look.
own() {
    for process in /proc/[0-9]*; do
        [ "$process" = "/proc/$$" ] && continue
        cat "$process/cmdline" 2>/dev/null | tr '\0' ' ' | grep -qF -- "-address $folder/" && echo "${process#/proc/}"
    done
    find /sys/fs/cgroup -path "*/$namespace/*" -name cgroup.procs -exec cat {} + 2>/dev/null
}
# Where a process listens: the sockets that it has open (proc_net(5): the number is the 7th field), by their paths.
listening() {
    for pid in "$@"; do
        ls -l "/proc/$pid/fd" 2>/dev/null
    done | sed -n 's/.*socket:\[\([0-9]*\)\]$/\1/p' |
        awk 'NR == FNR { own[$1]; next } ($7 in own) && $8 ~ "^/run/containerd/s/" { print $8 }' - /proc/net/unix
}
for _ in 1 2 3 4 5 6 7 8 9 10; do
    pids=$(own)
    [ "$pids" ] || break
    sockets="$sockets
$(listening $pids)"
    kill -KILL $pids 2>/dev/null
    sleep 0.05
done

while mounts=$(awk -v f="$folder/" 'index($5, f) == 1 { print $5 }' /proc/self/mountinfo) && [ "$mounts" ]; do
    # Later mounts cover earlier ones: take them off from the top.
    printf '%s\n' "$mounts" | tac | xargs -d '\n' -r umount -l 2>/dev/null || break
done
find /sys/fs/cgroup -depth -type d \( -path "*/$namespace" -o -path "*/$namespace/*" \) -exec rmdir {} + 2>/dev/null
printf '%s\n' "$sockets" | xargs -r rm -f
ip netns del "$namespace" 2>/dev/null
rm -rf "$folder"
