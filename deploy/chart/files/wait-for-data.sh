# Waits until every path is there and no longer grows:
#   wait-for-data.sh TIMEOUT QUIET COPY DESTINATION OPTIONS PATH...
# TIMEOUT: seconds, 0: none. QUIET: seconds without a change after which a path counts as whole. The command to upload
# PATH is shown as "COPY <name> DESTINATION:PATH OPTIONS". Needs a POSIX shell and coreutils.
set -eu
timeout=$1 quiet=$2 copy=$3 destination=$4 options=$5
shift 5
trap 'exit 75' TERM  # as process 1 a shell would ignore it; 75: stopped from outside, which is not counted as a failure

# unfinished PATH: whether deploy/copy.sh is still sending it, or something in it.
unfinished() {
  [ -e "$1.part" ] && return
  [ -d "$1" ] || return
  case "$(ls -R "$1")
" in *'.part
'*) return ;; esac
  return 1
}

tab=$(printf '\t')
start=$(date +%s)
said=0 seen='' since=$start
while :; do
  now=$(date +%s)
  reason='' states='' newest=0
  for path in "$@"; do
    if [ ! -e "$path" ]; then
      reason='is not there yet'
      mkdir -p "${path%/*}" 2>/dev/null || true  # which `kubectl cp` does not do
    elif unfinished "$path"; then
      reason='is still being uploaded'
    else
      # Bytes, and time of the newest change, of a file or of all that is in a folder.
      state=$(du -sb --time --time-style=+%s "$path" | cut -f 1,2)
      states="$states $state"
      changed=${state#*"$tab"}
      [ "${state%%"$tab"*}" -gt 0 ] || reason='is empty'
      [ "$changed" -le "$newest" ] || newest=$changed
    fi
    [ -z "$reason" ] || break
  done
  [ "$states" = "$seen" ] || { seen=$states since=$now; }
  if [ -z "$reason" ]; then
    # By the files' own clock, which makes a restart quick; or as seen from here, should that clock differ from ours.
    if [ $((now - newest)) -ge "$quiet" ] || [ $((now - since)) -ge "$quiet" ]; then
      echo "all data is there: $*"
      exit 0
    fi
    reason='is still changing'
  fi
  if [ "$timeout" -gt 0 ] && [ $((now - start)) -ge "$timeout" ]; then
    echo "error: $path $reason after $timeout s; upload it, then start the run again" >&2
    exit 66
  fi
  if [ $((now - said)) -ge 15 ]; then
    said=$now
    echo "waiting for data: $path $reason; upload it with"
    echo "  $copy ${path##*/} $destination:$path${options:+ $options}"
  fi
  sleep 1
done
