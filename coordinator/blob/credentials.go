package blob

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// credentials are an access key. The zero value asks without one, as public buckets allow.
type credentials struct{ id, secret, token string }

// Environment says where S3 is and who asks, as AWS's own tools are told.
type Environment struct {
	Endpoint string // "": AWS
	Region   string
	creds    credentials
	file     string // read at each request, so that it can change; "" for none
	profile  string
}

// ReadEnvironment reads AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION, AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
// AWS_SESSION_TOKEN, AWS_SHARED_CREDENTIALS_FILE and AWS_PROFILE.
func ReadEnvironment(getenv func(string) string) Environment {
	first := func(names ...string) string {
		for _, name := range names {
			if v := getenv(name); v != "" {
				return v
			}
		}
		return ""
	}
	e := Environment{Endpoint: strings.TrimSuffix(first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), "/"), Region: first("AWS_REGION", "AWS_DEFAULT_REGION"), profile: getenv("AWS_PROFILE"),
		creds: credentials{getenv("AWS_ACCESS_KEY_ID"), getenv("AWS_SECRET_ACCESS_KEY"), getenv("AWS_SESSION_TOKEN")}}
	if e.Region == "" {
		e.Region = "us-east-1"
	}
	if e.profile == "" {
		e.profile = "default"
	}
	if e.creds.id == "" {
		e.file = getenv("AWS_SHARED_CREDENTIALS_FILE")
	}
	return e
}

func (e Environment) credentials() (credentials, error) {
	if e.file == "" {
		return e.creds, nil
	}
	f, err := os.Open(e.file)
	if errors.Is(err, fs.ErrNotExist) {
		return credentials{}, fmt.Errorf("the credentials file %s is not there", e.file)
	}
	if err != nil {
		return credentials{}, fmt.Errorf("read the credentials file: %w", err)
	}
	defer f.Close()
	var c credentials
	inside := false
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		text := strings.TrimSpace(lines.Text())
		if section, ok := strings.CutPrefix(text, "["); ok {
			inside = strings.TrimSpace(strings.TrimSuffix(section, "]")) == e.profile
			continue
		}
		name, value, ok := strings.Cut(text, "=")
		if !ok || !inside {
			continue
		}
		switch value = strings.TrimSpace(value); strings.TrimSpace(name) {
		case "aws_access_key_id":
			c.id = value
		case "aws_secret_access_key":
			c.secret = value
		case "aws_session_token":
			c.token = value
		}
	}
	if err := lines.Err(); err != nil {
		return c, fmt.Errorf("read the credentials file: %w", err)
	}
	if c.id == "" || c.secret == "" {
		return c, fmt.Errorf("the credentials file %s has no key of profile %s", e.file, e.profile)
	}
	return c, nil
}
