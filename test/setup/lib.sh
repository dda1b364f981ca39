# What the set-up scripts share. Sourced by them, from any folder; bash, with
# set -euo pipefail. It defines:
#
#   REPO           the repository's folder
#   TARGET, TOOLS  where builds and fetched tools go: $CARGO_TARGET_DIR or
#                  target, and tools/ in it
#   say            print a step
#   die            print an error and exit 1
#   quietly        run a command, show what it printed only if it fails
#   need_apt       install packages of the machine's own Debian release
#   fetch_suite_packages
#                  unpack packages of another release into a folder

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
TARGET=${CARGO_TARGET_DIR:-target}
[[ $TARGET == /* ]] || TARGET=$REPO/$TARGET
TOOLS=$TARGET/tools

say() { printf '==> %s\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# quietly COMMAND [ARG...]
quietly() {
    local output
    if ! output=$("$@" 2>&1); then
        printf '%s\n' "$output" >&2
        printf '%s: failed: %s\n' "${0##*/}" "$*" >&2
        return 1
    fi
}

# need_apt PACKAGE...
# Installs those that are missing. Nothing is asked, no other package's service
# is restarted.
need_apt() {
    local package missing=()
    for package; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    say "install ${missing[*]}"
    [[ $EUID == 0 ]] ||
        die "installing packages needs root; run as root: apt-get install ${missing[*]}"
    mkdir -p "$TOOLS"
    (
        flock 9
        install=(env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
            apt-get -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "${missing[@]}")
        # The first try fails on a machine whose package lists are missing or old.
        "${install[@]}" >/dev/null 2>&1 9>&- || {
            quietly apt-get update 9>&-
            quietly "${install[@]}" 9>&-
        }
    ) 9>"$TOOLS/apt.lock"
}

# debian_mirror
# Prints the address that the machine's own sources take Debian's main archive from.
debian_mirror() {
    local codename
    codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME-}")
    apt-get indextargets --format '$(REPO_URI)' \
        'Created-By: Packages' 'Component: main' "Release: $codename" | head -n 1
}

# fetch_suite_packages SUITE FOLDER PACKAGE...
# Unpacks packages of a Debian suite (bookworm, trixie, sid, ...) into a folder,
# beside whatever the machine has installed and without changing it: the suite
# gets package lists of its own under $TOOLS. FOLDER/.versions holds a line
# "package version suite" for each one that is there whole; those are not
# fetched again. Remove FOLDER to fetch anew.
fetch_suite_packages() {
    local suite=$1 folder=$2
    shift 2
    mkdir -p "$folder" "$TOOLS/apt-$suite"
    # Two scripts may want the same suite, or the same folder, at once.
    (
        flock 9
        fetch_missing "$suite" "$folder" "$@" 9>&-
    ) 9>"$TOOLS/apt-$suite/lock"
}

# The part of fetch_suite_packages that runs under the lock.
fetch_missing() {
    local suite=$1 folder=$2 package missing=()
    shift 2
    touch "$folder/.versions"
    for package; do
        grep -q "^$package " "$folder/.versions" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0

    local mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg apt=$TOOLS/apt-$suite
    mirror=$(debian_mirror)
    [[ $mirror ]] || die "no Debian mirror found in the machine's apt sources"
    [[ -r $keyring ]] || need_apt debian-archive-keyring
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/debs"
    printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$suite" >"$apt/sources.list"
    local options=(
        -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache"
        -o "APT::Sandbox::User=$(id -un)" -o APT::Update::Post-Invoke= -o DPkg::Post-Invoke=
    )
    say "read the package lists of $suite"
    quietly apt-get "${options[@]}" update || return 1

    local deb version
    for package in "${missing[@]}"; do
        rm -f "$apt/debs"/*
        (cd "$apt/debs" && quietly apt-get "${options[@]}" download "$package/$suite") || return 1
        deb=$(echo "$apt/debs"/*.deb)
        version=$(dpkg-deb -f "$deb" Version) || return 1
        say "unpack $package $version ($suite) into ${folder#"$REPO/"}"
        quietly dpkg-deb -x "$deb" "$folder" || return 1
        rm -f "$deb"
        printf '%s %s %s\n' "$package" "$version" "$suite" >>"$folder/.versions"
    done
}
