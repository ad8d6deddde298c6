#!/bin/sh
# The image's bill of materials, SPDX 2.3 (spdx.github.io/spdx-spec/v2.3) as JSON, made of what is known where it is
# known: sbom.sh sources REQUIREMENTS, in the source folder, lists the Rust crates and Python wheels that the build
# locks; sbom.sh image SOURCES VERSION, in the image, adds the distribution's packages that are installed there.
set -eu

package() { # KIND NAME VERSION PURL
  id=$(printf %s "$1-$2-$3" | sed 's/[^A-Za-z0-9.-]/-/g')
  printf '    {"SPDXID": "SPDXRef-%s", "name": "%s", "versionInfo": "%s", "downloadLocation": "NOASSERTION", "filesAnalyzed": false, "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": "%s"}]},\n' \
    "$id" "$2" "$3" "$4"
}

sources() {
  sed -n '/^name = /{s/.*"\(.*\)"/\1/;h;n;s/.*"\(.*\)"/\1/;H;x;s/\n/ /;p}' rust/Cargo.lock | while read -r name version; do
    package crate "$name" "$version" "pkg:cargo/$name@$version"
  done
  sed -n 's/^\([A-Za-z0-9._-]*\)==\([^ ]*\).*/\1 \2/p' "$1" | while read -r name version; do
    package wheel "$name" "$version" "pkg:pypi/$name@$(printf %s "$version" | sed 's/+/%2B/g')"
  done
}

image() {
  cat <<JSON
{
  "spdxVersion": "SPDX-2.3",
  "dataLicense": "CC0-1.0",
  "SPDXID": "SPDXRef-DOCUMENT",
  "name": "fettle",
  "documentNamespace": "https://spdx.org/spdxdocs/fettle-$(cat /proc/sys/kernel/random/uuid)",
  "creationInfo": {"created": "$(date -u +%Y-%m-%dT%H:%M:%SZ)", "creators": ["Tool: fettle-sbom"]},
  "packages": [
JSON
  cat "$1"
  distribution=$(. /etc/os-release && echo "$ID")
  # shellcheck disable=SC2016 # the format is dpkg's
  dpkg-query -W -f '${db:Status-Status} ${Package} ${Version} ${Architecture}\n' | while read -r status name version architecture; do
    [ "$status" = installed ] || continue
    package deb "$name" "$version" "pkg:deb/$distribution/$name@$(printf %s "$version" | sed 's/+/%2B/g; s/:/%3A/g')?arch=$architecture"
  done
  cat <<JSON
    {"SPDXID": "SPDXRef-fettle", "name": "fettle", "versionInfo": "$2", "downloadLocation": "NOASSERTION", "filesAnalyzed": false, "licenseDeclared": "Apache-2.0"}
  ],
  "relationships": [{"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": "SPDXRef-fettle"}]
}
JSON
}

case ${1:-} in
  sources) sources "$2" ;;
  image) image "$2" "$3" ;;
  *) sed -n '2,5s/^# //p' "$0" >&2; exit 2 ;;
esac
