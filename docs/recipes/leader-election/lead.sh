#!/usr/bin/env bash
# lead.sh COMMAND...: runs COMMAND again and again, with $TOKEN, while this replica leads. Needs bash 4.4, curl, jq, Linux.
set -u
curl=(curl --silent --fail --no-buffer) api=$RETINUE_ELECTOR_ADDR step='' campaign='' tether='' token=''
case $api in unix://*) curl+=(--unix-socket "${api#unix://}") api=http://localhost ;; esac
api+=/v1/elections/${ELECTION:-leader}
candidate=$HOSTNAME-$$-$RANDOM # no other candidate may have it

post() { "${curl[@]}" --max-time 1 --data "$2" "$api/$1"; } # VERB JSON

end() { # first the work ends, then leadership
  [ -z "$step" ] || { kill "$step"; wait "$step"; }
  [ -z "$token" ] || post resign "{\"token\":$token}"
  kill $campaign $tether
  step='' campaign='' tether='' token=''
} >/dev/null 2>&1
trap end EXIT
trap 'exit 0' TERM INT

while true; do
  # A reader of its own, so that the answer can be waited for and a signal still gets through.
  exec 3< <(exec "${curl[@]}" --max-time 25 --data "{\"id\":\"$candidate\",\"lease_ms\":5000,\"wait_ms\":20000}" "$api/become")
  campaign=$!
  read -r grant <&3 || { sleep 0.2; continue; }
  campaign='' token=$(jq .token <<<"$grant")
  # The tether. Only this shell and its commands read it: curl, and with it leadership, ends after they have.
  exec 4< <(exec "${curl[@]}" "$api/hold?token=$token")
  tether=$!
  # Renew, then do one step that fits into what was granted, counted from before the request.
  while read -r asked _ </proc/uptime && grant=$(post renew "{\"token\":$token}") && read -r now _ </proc/uptime &&
    left=$(jq -e "select(.stepdown | not) | .remaining_ms / 1000 - ($now - $asked) - 0.1 | select(. > 0)" <<<"$grant"); do
    TOKEN=$token timeout --signal=KILL "$left" "$@" &
    step=$!
    wait "$step"
    step=''
    while read -r -t 0 -u 4 && read -r -u 4 _; do :; done # an unread tether is cut off
  done
  end
done
