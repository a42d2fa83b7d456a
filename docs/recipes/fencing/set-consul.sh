#!/usr/bin/env bash
# set-consul.sh TOKEN ELECTION KEY VALUE: sets KEY in Consul while TOKEN leads. ELECTION is such as retinue/elections/orders/leader.
# Exit status 0: set, 3: fenced off, other: trouble. Needs bash, curl, jq; CONSUL_HTTP_ADDR and CONSUL_HTTP_TOKEN as always.
set -euo pipefail
token=$1 election=$2 key=$3 value=$4
consul=${CONSUL_HTTP_ADDR:-127.0.0.1:8500}
[[ $consul == *://* ]] || consul=http://$consul
curl=(curl --silent --header "X-Consul-Token: ${CONSUL_HTTP_TOKEN:-}")

# The version of the lock that carries our token. The record has it a moment after the lock is taken; until then it is the index.
held='.[0] | select(.Session) | (.Value // "" | @base64d | try fromjson catch {}) as $record
  | select((if $record.session == .Session and $record.token then $record.token else .ModifyIndex end) == $token) | .ModifyIndex'

for _ in 1 2 3 4 5; do
  lock=$("${curl[@]}" --fail "$consul/v1/kv/$election?consistent") || { echo "read $election: no answer" >&2 && exit 1; }
  index=$(jq --argjson token "$token" "$held" <<<"$lock")
  if [ -z "$index" ]; then
    echo "fenced off: token $token does not lead $election" >&2
    exit 3
  fi
  # Both or none: the lock is still of that version, and the value is set.
  status=$(jq --null-input --arg election "$election" --argjson index "$index" --arg key "$key" --arg value "$value" \
    '[{KV: {Verb: "check-index", Key: $election, Index: $index}}, {KV: {Verb: "set", Key: $key, Value: ($value | @base64)}}]' |
    "${curl[@]}" --request PUT --data @- --output /dev/null --write-out '%{http_code}' "$consul/v1/txn")
  case $status in
    200) exit 0 ;;
    409) ;; # the lock has changed: look again whether it is still ours
    *) echo "write $key: HTTP $status" >&2 && exit 1 ;;
  esac
done
echo "write $key: $election changes all the time" >&2
exit 1
