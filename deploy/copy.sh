#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copies a file or a folder to or from a volume, through a pod that mounts it:
#
#   copy.sh upload   [--namespace N] --pod POD [--container C] LOCAL REMOTE
#   copy.sh download [--namespace N] --pod POD [--container C] LOCAL REMOTE
#
# LOCAL and REMOTE (an absolute path) are the same file or folder, here and there. Files whose SHA-256 is equal on both
# sides are not sent. A file is written as NAME.part, and gets its name when its hash is right; a copy that was cut goes
# on where it was, if the part that is there is a beginning of the file. What the pod says is not trusted: a download
# writes nothing outside LOCAL, also where links in it lead out. Exit codes: 0 all hashes are equal, 64 usage, 65 a hash
# differs, or the pod says what cannot be, 66 no such file, 69 the connection ended (run it again).
#
# Needs bash 3.2 here, and sh and coreutils in the pod. KUBECTL: the command in place of kubectl, with its options.
set -euo pipefail

usage() {
  sed -n '3,/^set /{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}" >&2
  exit 64
}

fail() {
  local code=$1
  shift
  echo "copy.sh: $*" >&2
  exit "$code"
}

direction=${1:-}
[[ $direction == upload || $direction == download ]] || usage
shift
options=() pod='' container=()
while [[ ${1:-} == -* ]]; do
  case $1 in
    --namespace | -n) options+=(--namespace "${2:-}") ;;
    --pod) pod=${2:-} ;;
    --container | -c) container=(--container "${2:-}") ;;
    *) usage ;;
  esac
  [[ $# -ge 2 ]] || usage
  shift 2
done
[[ $# -eq 2 && -n $pod ]] || usage
local_root=${1%/} remote_root=$2
[[ $remote_root == /* ]] || fail 64 "$remote_root: give an absolute path in the pod"

# in_pod SCRIPT ARGUMENT...: runs a shell script there; its standard input is ours.
in_pod() {
  local script=$1
  shift
  # shellcheck disable=SC2086  # KUBECTL may hold options
  ${KUBECTL:-kubectl} ${options[@]+"${options[@]}"} exec -i "$pod" ${container[@]+"${container[@]}"} -- \
    sh -c "$script" copy "$@"
}

# hash_of [FILE]: SHA-256 of a file, or of the standard input.
hash_of() {
  local sum
  if command -v sha256sum >/dev/null; then sum=$(sha256sum <"${1:-/dev/stdin}"); else sum=$(shasum -a 256 <"${1:-/dev/stdin}"); fi
  echo "${sum%% *}"
}

size_of() { echo $(($(wc -c <"$1"))); }

cut_off() {
  fail 69 "the connection to pod $pod ended at $1; run the same command again: it goes on from there"
}

# For each path of the standard input: its hash or "-", and the size of its .part.
readonly FACTS='
while IFS= read -r path; do
  hash=- part=0
  [ ! -f "$path" ] || { hash=$(sha256sum <"$path"); hash=${hash%% *}; }
  [ ! -f "$path.part" ] || part=$(wc -c <"$path.part")
  echo "$hash $((part))"
done'
# Appends the standard input at an offset.
readonly RECEIVE='
set -e
mkdir -p "${1%/*}"
[ "$2" -gt 0 ] || : >"$1.part"
[ "$(wc -c <"$1.part")" -eq "$2" ] || { echo "another copy writes $1.part" >&2; exit 1; }
cat >>"$1.part"'
# Gives a file that has arrived its name, if its hash is right.
readonly FINISH='
set -e
hash=$(sha256sum <"$1.part"); hash=${hash%% *}
if [ "$hash" != "$2" ]; then rm "$1.part"; echo "$hash"; exit 0; fi
sync "$1.part"
mv "$1.part" "$1"
echo "$hash"'
# Every file under a folder, or the file itself: hash, size, path under it.
readonly LIST='
line="
"
show() {
  case "$1" in *.part) return ;; *"$line"*) echo "copy.sh: a name holds a line break: $1" >&2; exit 1 ;; esac
  hash=$(sha256sum <"$1") || exit 1
  echo "${hash%% *} $(($(wc -c <"$1"))) $2"
}
walk() {
  for file in "$1"/* "$1"/.[!.]*; do
    if [ -d "$file" ]; then [ -L "$file" ] || walk "$file"
    elif [ -f "$file" ]; then show "$file" "${file#"$root"/}"
    fi
  done
}
root=$1
if [ -d "$root" ]; then echo folder; walk "$root"
elif [ -f "$root" ]; then echo file; show "$root" "${root##*/}"
else echo absent
fi'

files=0 sent=0

# upload_file LOCAL REMOTE HASH PART: PART is the size of what is there of an earlier try.
upload_file() {
  local file=$1 remote=$2 hash=$3 part=$4 size offset=0 there
  size=$(size_of "$file")
  if ((part > 0 && part <= size)); then
    there=$(in_pod "$FACTS" <<<"$remote.part") || cut_off "the start of $file"
    require_facts "${there%% *}" "${there##* }"
    [[ ${there%% *} != "$(head -c "$part" "$file" | hash_of)" ]] || offset=$part
  fi
  echo "$file: $size bytes$( ((offset == 0)) || echo ", $offset of them are there")"
  # tail is stopped by SIGPIPE when the connection ends, which is not another failure.
  { tail -c +$((offset + 1)) "$file" || true; } | in_pod "$RECEIVE" "$remote" "$offset" || cut_off "$file"
  there=$(in_pod "$FINISH" "$remote" "$hash" </dev/null) || cut_off "the end of $file"
  [[ $there == "$hash" ]] ||
    fail 65 "$file: its hash is $hash, and in the pod $there; the copy there was removed: run the same command again"
  sent=$((sent + 1))
}

upload() {
  local paths=() hashes=() targets=() file index=0 hash part
  [[ -e $local_root ]] || fail 66 "$local_root: no such file or folder"
  [[ -d $local_root || $remote_root != */ ]] || remote_root=$remote_root${local_root##*/}
  while IFS= read -r -d '' file; do
    [[ $file != *$'\n'* ]] || fail 64 "a name holds a line break: $file"
    paths+=("$file")
    hashes+=("$(hash_of "$file")")
    if [[ -d $local_root ]]; then targets+=("${remote_root%/}/${file#"$local_root"/}"); else targets+=("$remote_root"); fi
  done < <(find -L "$local_root" -type f ! -name '*.part' -print0)
  files=${#paths[@]}
  ((files > 0)) || fail 66 "$local_root: there is no file in it"
  local facts
  facts=$(printf '%s\n' "${targets[@]}" | in_pod "$FACTS") || cut_off "the start"
  while read -r hash part; do
    require_facts "$hash" "$part"
    [[ $hash == "${hashes[index]}" ]] || upload_file "${paths[index]}" "${targets[index]}" "${hashes[index]}" "$part" </dev/null
    index=$((index + 1))
  done <<<"$facts"
  ((index == files)) || cut_off "the start"
}

# require_facts HASH SIZE: bash would run what stands in place of a number.
require_facts() {
  [[ $1 =~ ^[0-9a-f]{64}$|^-$ && $2 =~ ^[0-9]{1,18}$ ]] || fail 65 "pod $pod says what is no hash and size: $(printf '%q' "$1 $2")"
}

# require_below PATH: of a file under the folder that is copied.
require_below() {
  case "/$1/" in *//* | */../* | */./*) fail 65 "pod $pod names a file outside of $remote_root: $(printf '%q' "$1")" ;; esac
}

# require_inside FILE: in the folder LOCAL, wherever links lead.
require_inside() {
  local folder link
  folder=$(dirname "$1")
  while [[ ! -e $folder && ! -L $folder ]]; do folder=$(dirname "$folder"); done
  folder=$(cd -P "$folder" 2>/dev/null && pwd -P) || folder=''
  [[ ${folder%/}/ == "${real_root%/}"/* ]] || fail 65 "$1: a link leads out of $local_root; nothing is written there"
  for link in "$1" "$1.part"; do
    [[ ! -L $link ]] || fail 65 "$link is a link, which is not written through; remove it"
  done
}

# download_file LOCAL REMOTE HASH SIZE
download_file() {
  local file=$1 remote=$2 hash=$3 size=$4 offset=0 there
  mkdir -p "$(dirname "$file")"
  if [[ -f $file.part ]]; then
    offset=$(size_of "$file.part")
    there=$(in_pod 'head -c "$1" "$2" | sha256sum' "$offset" "$remote" </dev/null) || cut_off "the start of $remote"
    [[ $offset -le $size && ${there%% *} == "$(hash_of "$file.part")" ]] || offset=0
  fi
  ((offset > 0)) || : >"$file.part"
  echo "$remote: $size bytes$( ((offset == 0)) || echo ", $offset of them are here")"
  in_pod 'tail -c +"$1" "$2"' $((offset + 1)) "$remote" </dev/null >>"$file.part" || cut_off "$remote"
  # kubectl may end a stream early and report success.
  [[ $(size_of "$file.part") -ge $size ]] || cut_off "$remote"
  there=$(hash_of "$file.part")
  if [[ $there != "$hash" ]]; then
    rm "$file.part"
    fail 65 "$remote: its hash is $hash, and here $there; the copy here was removed: run the same command again"
  fi
  mv "$file.part" "$file"
  sent=$((sent + 1))
}

download() {
  local kind='' hash size path list target real_root=''
  list=$(in_pod "$LIST" "${remote_root%/}" </dev/null) || cut_off "the start"
  while read -r hash size path; do
    if [[ -z $kind ]]; then
      kind=$hash
      [[ $kind != absent ]] || fail 66 "$remote_root: no such file or folder in pod $pod"
      continue
    fi
    files=$((files + 1))
    require_facts "$hash" "$size"
    if [[ $kind == folder ]]; then
      require_below "$path"
      mkdir -p "$local_root"
      real_root=$(cd -P "$local_root" && pwd -P)
      target=$local_root/$path path=${remote_root%/}/$path
    else
      ((files == 1)) || fail 65 "pod $pod names more than the file $remote_root"
      target=$local_root path=$remote_root
      [[ ! -d $target ]] || target=$local_root/${remote_root##*/}
    fi
    [[ ! -f $target || $(hash_of "$target") != "$hash" ]] || continue
    [[ $kind != folder ]] || require_inside "$target"
    download_file "$target" "$path" "$hash" "$size" </dev/null
  done <<<"$list"
  ((files > 0)) || fail 66 "$remote_root: there is no file in it"
}

"$direction"
echo "$files files, $sent sent, all hashes are equal"
