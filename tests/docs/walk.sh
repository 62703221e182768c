# How tests/docs/test_commands.py runs the commands of a page: as they stand, but for what a tiny model needs to learn
# (RATES, BACKBONE) and for a server, which goes to the background, is waited for, and gives way to the next one.
set -eux
server=

serve() {
  stop
  command twofold-server "$@" 2>> server.log &
  server=$!
  { set +x; } 2> /dev/null
  until curl --silent "http://$TWOFOLD_METRICS_LISTEN/metrics" | grep --quiet "^twofold_ready 1"; do
    kill -0 $server
    sleep 0.2
  done
  set -x
}

stop() {
  if [ -n "$server" ]; then
    kill "$server" && wait "$server"
    server=
  fi
}
trap stop EXIT

twofold-server() {
  case $1 in
    serve) serve "$@" ;;
    make-token) command twofold-server "$@" 2>> tokens.log ;;
    *) command twofold-server "$@" ;;
  esac
}

twofold-trainer() {
  # shellcheck disable=SC2086
  command twofold-trainer "$@" --backbone "$BACKBONE" $RATES
}

twofold() {
  case $1 in
    # shellcheck disable=SC2086
    adapt) command twofold "$@" $RATES ;;
    *) command twofold "$@" ;;
  esac
}

# What stands for CHECKPOINT: one that no alias names.
spare() {
  for path in store/checkpoints/*; do
    if ! grep --quiet "\"${path##*/}\"" store/aliases.json; then echo "${path##*/}" && return; fi
  done
}

# What stands for TOKEN: the last one that was made.
token() {
  grep --only-matching "[^ ]*$" tokens.log | tail -n 1
}
