#!/usr/bin/env bash
# put-object.sh TOKEN FILE URL: stores {"fence": TOKEN, "value": contents of FILE} unless a newer leader has written there.
# Exit status 0: stored, 3: fenced off, other: trouble. Needs bash, curl, jq, and a store with conditional writes.
set -euo pipefail
token=$1 file=$2 url=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The fence belongs into the contents: the ETag of many stores is a digest of them, and does not change with the metadata.
jq --null-input --argjson fence "$token" --rawfile value "$file" '{$fence, $value}' >"$work/new"

for _ in 1 2 3 4 5; do
  status=$(curl --silent --output "$work/old" --dump-header "$work/headers" --write-out '%{http_code}' "$url")
  case $status in
    200)
      fence=$(jq '.fence // 0' "$work/old")
      condition="If-Match: $(sed -n 's/^etag: *//Ip' "$work/headers" | tr -d '\r')"
      ;;
    404) fence=0 condition='If-None-Match: *' ;;
    *) echo "read $url: HTTP $status" >&2 && exit 1 ;;
  esac
  if [ "$fence" -gt "$token" ]; then
    echo "fenced off: $url was written under token $fence" >&2
    exit 3
  fi
  status=$(curl --silent --output /dev/null --write-out '%{http_code}' --upload-file "$work/new" \
    --header "$condition" --header "x-amz-meta-fence: $token" "$url")
  case $status in
    200 | 201 | 204) exit 0 ;;
    409 | 412) ;; # somebody wrote in between: look again
    *) echo "write $url: HTTP $status" >&2 && exit 1 ;;
  esac
done
echo "write $url: others are always faster" >&2
exit 1
