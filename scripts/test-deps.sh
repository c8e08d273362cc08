#!/bin/sh
# Install the Debian packages that the tests need, only those that are missing; as an ordinary user, only name them.
# Usage: scripts/test-deps.sh [PACKAGE…]     (the default list is the tests'; `make bench` and `make run` pass their own)
set -eu

if [ $# -eq 0 ]; then
    set -- ca-certificates python3 python3-venv docker-registry skopeo busybox-static nftables libnftables1 libseccomp2 uidmap \
        strace iproute2 iptables util-linux procps mount
fi

missing=
for package in "$@"; do
    case $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true) in
        installed) ;;
        *) missing="$missing $package" ;;
    esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "test-deps: not installed, and only root can: apt-get install$missing" >&2
    exit 0
fi

# Packages with a service (docker-registry, docker.io) start it when they are installed. The tests start their own on a free
# port, so for the length of this installation the answer to "may I start it?" is no. An administrator's own policy is left alone.
policy=/usr/sbin/policy-rc.d
made=
if [ ! -e "$policy" ]; then
    made=$policy
    trap 'rm -f "$made"' EXIT
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
echo "test-deps: installing$missing"
apt-get update -qq < /dev/null
# shellcheck disable=SC2086 # a list of words
apt-get install -y -qq --no-install-recommends $missing < /dev/null > /dev/null
