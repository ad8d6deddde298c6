#!/bin/sh
# The Debian packages whose libraries a program needs, one a line: what its image installs, so that none is forgotten and
# none is listed twice. Plus the certificates of the world's hubs.
set -eu
if ldd "$1" | grep 'not found' >&2; then exit 1; fi
{
  ldd "$1" | sed -n 's|.*=> \(/[^ ]*\) (.*|\1|p' | while read -r library; do
    # dpkg knows a library by one of its names; /lib is a link to /usr/lib.
    dpkg -S "$library" "/usr$library" "$(realpath "$library")" 2>/dev/null || true
  done | cut -d: -f1
  echo ca-certificates
} | sort -u
