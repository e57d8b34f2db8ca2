#!/bin/sh
# runtime.sh BINARY FOLDER
# Makes the folder that becomes the image. It holds only what the binary needs: the files of glibc, the certificates of
# the public authorities, a user and two folders. For the choice of glibc and not musl see docs/guides/containers.md.
set -eu
binary=$1 root=$2
here=$(dirname "$0")

mkdir -p "$root/usr/local/bin" "$root/etc/oxicorn" "$root/etc/ssl/certs" "$root/tmp" "$root/data"
strip -o "$root/usr/local/bin/oxicorn" "$binary"
for file in $(ldd "$binary" | grep -o '/[^ ]*'); do
    mkdir -p "$root$(dirname "$file")"
    cp -L "$file" "$root$file"
done
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
cp "$here/supervisor.toml" "$root/etc/oxicorn/"
printf 'root:x:0:0::/:/none\noxicorn:x:1000:1000::/data:/none\n' >"$root/etc/passwd"
printf 'root:x:0:\noxicorn:x:1000:\n' >"$root/etc/group"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
chmod 1777 "$root/tmp"
chmod 750 "$root/data"
chown 1000:1000 "$root/data"
