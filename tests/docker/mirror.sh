#!/bin/sh
# Prints the address of the Debian archive from which this machine installs its packages.
set -eu
. /etc/os-release
mirror=$(apt-get update --print-uris | sed -n "s,^'\(.*\)/dists/$VERSION_CODENAME/main/.*,\1,p" | head -n 1)
[ -n "$mirror" ] || { echo "the sources of apt name no archive of Debian $VERSION_CODENAME" >&2; exit 1; }
echo "$mirror"
