#!/bin/sh
# Brings the compose cluster up from the image, sends and receives from the host and from inside the
# network while the leader's container is killed, and tears everything down again.
#
#   deploy/test.sh                 with the image ledgermq:local (deploy/pack.sh makes it)
#   BROKERS=5 deploy/test.sh       the cluster of five, with docker-compose.five.yml
#   LEDGERMQ=path/to/ledgermq      the command line tool on the host; default: from the image's build
#   LEDGERMQ_IMAGE=name:tag        another image
#   FAULTS="kill-leader ..."       scenarios that `ledgermq chaos` runs on this cluster, one fault each
#
# Ends with status 0 only when every acknowledged message arrived and no send failed.
set -eu
cd "$(dirname "$0")"
ledgermq=${LEDGERMQ:-../target/release/ledgermq}
messages=${MESSAGES:-3000}
case ${BROKERS:=3} in
  3) COMPOSE_FILE=docker-compose.yml of_five= cut_of_five= ;;
  5) COMPOSE_FILE=docker-compose.yml:docker-compose.five.yml of_five=kill-minority cut_of_five=bridge ;;
  *)
    echo "BROKERS=$BROKERS: the files have 3 or 5" >&2
    exit 2
    ;;
esac
export COMPOSE_FILE
# Links are cut by root only, on the machine of the docker daemon.
if [ "$(id -u)" = 0 ] && command -v nft >/dev/null 2>&1; then
  can_cut="isolate-leader $cut_of_five"
else
  can_cut=
fi
faults=${FAULTS-kill-leader stop-leader term-follower $of_five $can_cut}
LEDGERMQ_IMAGE=${LEDGERMQ_IMAGE:-ledgermq:local}
export LEDGERMQ_IMAGE
project=ledgermq-test-$$
work=$(mktemp -d)
# Below the ports that clusters of child processes choose from.
LEDGERMQ_PORT_NAMESERVER=${LEDGERMQ_PORT_NAMESERVER:-12876}
export LEDGERMQ_PORT_NAMESERVER
services=nameserver points= points_inside=
for number in $(seq "$BROKERS"); do
  eval "port=\${LEDGERMQ_PORT_BROKER_$number:-$((11981 + 100 * number))}"
  export "LEDGERMQ_PORT_BROKER_$number=$port"
  services="$services broker-$number"
  points="$points${points:+;}127.0.0.1:$port"
  points_inside="$points_inside${points_inside:+;}broker-$number:8081"
done

if docker compose version >/dev/null 2>&1; then
  compose() { docker compose --project-name "$project" "$@"; }
else
  compose() { docker-compose --project-name "$project" "$@"; }
fi
# Also one that has ended, which version 2 lists only when it is asked to.
container() { compose ps -aq "$1"; }
say() { echo "--- $*"; }
fail() {
  echo "FAILED: $*" >&2
  compose ps >&2 || true
  compose logs --tail 20 >&2 || true
  exit 1
}
cleanup() {
  compose down --volumes --timeout 15 >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

healthy() {
  for service in $services; do
    state=$(docker inspect --format '{{.State.Health.Status}}' "$(container "$service")" 2>/dev/null || true)
    [ "$state" = healthy ] || return 1
  done
}
wait_until() {
  what=$1
  shift
  deadline=$(($(date +%s) + 90))
  until "$@"; do
    [ "$(date +%s)" -lt "$deadline" ] || fail "$what did not happen within 90 s"
    sleep 0.5
  done
}

say "up, $BROKERS brokers, with $(compose version --short 2>/dev/null || echo compose)"
compose up --detach --no-build >"$work/up" 2>&1 || fail "compose up: $(cat "$work/up")"
wait_until "healthy containers" healthy

for service in broker-1 nameserver; do
  id=$(container "$service")
  [ "$(docker inspect --format '{{.HostConfig.ReadonlyRootfs}} {{.Config.User}}' "$id")" = "true 65532:65532" ] \
    || fail "$service is not a user without rights on a read-only root"
done

say "from the host, through the nameserver and through the brokers"
"$ledgermq" admin --endpoint "$points" topic create orders --queues 8 >/dev/null || fail "topic create"
"$ledgermq" send --endpoint "127.0.0.1:$LEDGERMQ_PORT_NAMESERVER" --topic orders --body hello >/dev/null \
  || fail "send through the nameserver"
[ "$("$ledgermq" receive --endpoint "$points" --topic orders --group first --wait-ms 20000)" = hello ] \
  || fail "receive"
say "between containers, by service name"
inside() { docker run --rm --network "${project}_default" "$LEDGERMQ_IMAGE" "$@"; }
inside send --endpoint "nameserver:9876" --topic orders --body inside >/dev/null || fail "send inside"
[ "$(inside receive --endpoint "$points_inside" --topic orders --group first \
  --wait-ms 20000)" = inside ] || fail "receive inside"

say "$messages messages from the host while the leader's container is killed"
"$ledgermq" admin --endpoint "$points" topic create load --queues 8 >/dev/null
: >"$work/sent"
"$ledgermq" send --endpoint "$points" --topic load --body payload --count "$messages" --timeout-ms 30000 \
  >"$work/sent" 2>"$work/send-errors" &
sender=$!
some_sent() { [ "$(wc -l <"$work/sent")" -ge $((messages / 10)) ]; }
wait_until "a tenth of the messages" some_sent
leader=$("$ledgermq" admin --endpoint "$points" --json cluster status |
  tr -d ' \n' | sed -n 's/.*"leader":\([0-9]*\).*/\1/p')
[ -n "$leader" ] || fail "no leader is known"
say "broker-$leader leads after $(wc -l <"$work/sent") messages: kill -9"
docker kill "$(container "broker-$leader")" >/dev/null
wait "$sender" || fail "a send failed: $(cat "$work/send-errors")"
[ "$(wc -l <"$work/sent")" -eq "$messages" ] || fail "only $(wc -l <"$work/sent") were acknowledged"
"$ledgermq" receive --endpoint "$points" --topic load --group second --count "$messages" --json \
  --timeout-ms 30000 >"$work/received" || fail "receive after the kill"
sed -n 's/.*"message_id":"\([^"]*\)".*/\1/p' "$work/received" | sort >"$work/received-ids"
sort "$work/sent" >"$work/sent-ids"
cmp -s "$work/sent-ids" "$work/received-ids" \
  || fail "sent and received differ: $(diff "$work/sent-ids" "$work/received-ids" | head -5)"

say "the killed broker comes back with its volume"
docker start "$(container "broker-$leader")" >/dev/null
wait_until "healthy containers" healthy
for scenario in $faults; do
  say "chaos: $scenario"
  "$ledgermq" chaos run --cluster compose --project "$project" --scenario "$scenario" --injections 1 \
    --duration 30 --fault-ms 2000 --pause-ms 1000 --rate 100 --out "$work/$scenario" >"$work/chaos" 2>&1 \
    || fail "$(cat "$work/chaos")"
  sed -n 's/^/    /p' "$work/$scenario/faults.txt"
done
wait_until "healthy containers" healthy
say "orderly stop"
compose stop --timeout 15 >/dev/null 2>&1
for service in $services; do
  code=$(docker inspect --format '{{.State.ExitCode}}' "$(container "$service")")
  [ "$code" = 0 ] || fail "$service ended with status $code"
done
say "passed: $messages sent, $messages received, 0 lost, 0 failed, broker-$leader killed and back; chaos: $faults"
