#!/bin/sh
# Installs those of the named Debian packages that are absent, as root on a machine with apt. Tests that need them are skipped
# elsewhere, so it never fails.
command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || exit 0
absent=
for package; do dpkg -s "$package" >/dev/null 2>&1 || absent="$absent $package"; done
if [ -n "$absent" ]; then
    export DEBIAN_FRONTEND=noninteractive
    timeout 120 apt-get update -qq >/dev/null 2>&1
    timeout 300 apt-get install -qq -y --no-install-recommends $absent >/dev/null 2>&1
fi
exit 0
