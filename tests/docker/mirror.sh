#!/bin/sh
# The address of Debian's archive, as this machine's own sources name it.
set -eu
. /etc/os-release
mirror=$(apt-get update --print-uris | sed -n "s,^'\(.*\)/dists/$VERSION_CODENAME/main/.*,\1,p" | head -n 1)
[ -n "$mirror" ] || { echo "apt's sources name no archive of Debian $VERSION_CODENAME" >&2; exit 1; }
echo "$mirror"
