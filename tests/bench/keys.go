package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
)

// readKey waits for a change of a Consul key behind index, and says whether a session holds it.
func readKey(ctx context.Context, server, key string, index uint64) (held bool, next uint64, err error) {
	var pairs []struct{ Session string }
	next, err = blockingGet(ctx, consulKey(server, key, index), &pairs)
	return len(pairs) > 0 && pairs[0].Session != "", next, err
}

// blockingGet reads from Consul's HTTP API and returns the index to wait behind. A key that is not there is no error.
func blockingGet(ctx context.Context, url string, out any) (uint64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	index, err := strconv.ParseUint(resp.Header.Get("X-Consul-Index"), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %s without an index", url, resp.Status)
	}
	switch resp.StatusCode {
	case http.StatusNotFound:
		return index, nil
	case http.StatusOK:
		return index, json.NewDecoder(resp.Body).Decode(out)
	}
	return 0, fmt.Errorf("%s: %s", url, resp.Status)
}
