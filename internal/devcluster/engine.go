package devcluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"retinue/internal/hint"
)

const defaultDockerSocket = "/var/run/docker.sock"

// Engine speaks to a Docker engine on this host. Only a Unix socket will do:
// tasks' folders are bind-mounted into containers, so both must see one disk.
type Engine struct {
	Socket string
	client *http.Client
}

// DockerSocket is the engine's socket by DOCKER_HOST or by habit.
func DockerSocket() (string, error) {
	host := os.Getenv("DOCKER_HOST")
	if host == "" {
		return defaultDockerSocket, nil
	}
	if path, ok := strings.CutPrefix(host, "unix://"); ok {
		return path, nil
	}
	return "", hint.Wrap(fmt.Errorf("DOCKER_HOST=%s is not an engine of this host", host), "unset DOCKER_HOST, or use --docker=off")
}

// NewEngine returns an engine that may or may not answer.
func NewEngine(socket string) *Engine {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Engine{Socket: socket, client: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Version asks the engine who it is; the cheapest proof that it works for us.
func (e *Engine) Version(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var v struct{ Version string }
	if err := e.do(ctx, http.MethodGet, "/version", nil, nil, &v); err != nil {
		if errors.Is(err, os.ErrPermission) {
			return "", hint.Wrap(err, "join the group that may use Docker (usually `docker`), or use --docker=off")
		}
		return "", hint.Wrap(err, "start the Docker engine, or use --docker=off")
	}
	return v.Version, nil
}

// imageLabels returns the labels of a local image; nil when there is none.
func (e *Engine) imageLabels(ctx context.Context, name string) (map[string]string, error) {
	var v struct {
		Config struct{ Labels map[string]string }
	}
	err := e.do(ctx, http.MethodGet, "/images/"+name+"/json", nil, nil, &v)
	var status statusError
	if errors.As(err, &status) && status.code == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if v.Config.Labels == nil {
		return map[string]string{}, nil
	}
	return v.Config.Labels, nil
}

// importImage makes an image with one layer, the tar stream, as `docker import`
// does. changes are Dockerfile instructions such as CMD and LABEL.
func (e *Engine) importImage(ctx context.Context, name string, layer []byte, changes ...string) error {
	repo, tag, _ := strings.Cut(name, ":")
	query := url.Values{"fromSrc": {"-"}, "repo": {repo}, "tag": {tag}, "changes": changes}
	return e.do(ctx, http.MethodPost, "/images/create", query, bytes.NewReader(layer), nil)
}

// tagImage gives an image one more name, which another one loses that had it.
func (e *Engine) tagImage(ctx context.Context, image, name string) error {
	repo, tag, _ := strings.Cut(name, ":")
	return e.do(ctx, http.MethodPost, "/images/"+image+"/tag", url.Values{"repo": {repo}, "tag": {tag}}, nil, nil)
}

// replacedFor is how long an image keeps the name of its build when it has no
// other: a cluster without a container of it may still want it.
const replacedFor = 24 * time.Hour

// dropReplaced removes images of ours that have lost their name to a newer
// build: at once when they have none, and after a day when it is that of their
// build. One that a container still uses stays.
func (e *Engine) dropReplaced(ctx context.Context, now time.Time) error {
	filters, err := json.Marshal(map[string][]string{"label": {labelContent}})
	if err != nil {
		return err
	}
	var images []struct {
		ID       string `json:"Id"`
		RepoTags []string
		Created  int64 // in seconds
	}
	if err := e.do(ctx, http.MethodGet, "/images/json", url.Values{"filters": {string(filters)}}, nil, &images); err != nil {
		return err
	}
	for _, image := range images {
		named := slices.ContainsFunc(image.RepoTags, func(tag string) bool { return tag != "<none>:<none>" })
		byBuild := len(image.RepoTags) == 1 && strings.HasPrefix(image.RepoTags[0], "retinue:") && strings.Contains(image.RepoTags[0], "-")
		if named && !(byBuild && now.Sub(time.Unix(image.Created, 0)) > replacedFor) {
			continue
		}
		err := e.do(ctx, http.MethodDelete, "/images/"+image.ID, nil, nil, nil)
		if status := (statusError{}); err != nil && !errors.As(err, &status) {
			return err
		}
		// In use, gone, or being removed by somebody else: tidying up is no reason to fail.
	}
	return nil
}

// container is what cleaning up must know of a container.
type container struct {
	ID     string `json:"Id"`
	Labels map[string]string
	Mounts []struct{ Source string }
}

// mounts says whether the container has a folder of the cluster in it.
func (c container) mounts(dir string) bool {
	for _, m := range c.Mounts {
		if inside(m.Source, dir) {
			return true
		}
	}
	return false
}

// containers lists those that carry the label of a Nomad allocation.
func (e *Engine) containers(ctx context.Context) ([]container, error) {
	filters, err := json.Marshal(map[string][]string{"label": {labelAlloc}})
	if err != nil {
		return nil, err
	}
	var out []container
	err = e.do(ctx, http.MethodGet, "/containers/json", url.Values{"all": {"1"}, "filters": {string(filters)}}, nil, &out)
	return out, err
}

func (e *Engine) removeContainer(ctx context.Context, id string) error {
	err := e.do(ctx, http.MethodDelete, "/containers/"+id, url.Values{"force": {"1"}, "v": {"1"}}, nil, nil)
	var status statusError
	if errors.As(err, &status) && (status.code == http.StatusNotFound || status.code == http.StatusConflict) {
		return nil // gone, or on its way
	}
	return err
}

// runToEnd runs a command in a new container with one folder bind-mounted, and
// removes the container.
func (e *Engine) runToEnd(ctx context.Context, image, folder string, command ...string) error {
	spec := map[string]any{
		"Image": image, "Cmd": command, "User": "0:0",
		"HostConfig": map[string]any{"NetworkMode": "none", "Binds": []string{folder + ":" + folder}},
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	var made struct{ ID string }
	if err := e.do(ctx, http.MethodPost, "/containers/create", nil, bytes.NewReader(raw), &made); err != nil {
		return err
	}
	defer e.removeContainer(context.WithoutCancel(ctx), made.ID)
	if err := e.do(ctx, http.MethodPost, "/containers/"+made.ID+"/start", nil, nil, nil); err != nil {
		return err
	}
	var ended struct{ StatusCode int }
	if err := e.do(ctx, http.MethodPost, "/containers/"+made.ID+"/wait", nil, nil, &ended); err != nil {
		return err
	}
	if ended.StatusCode != 0 {
		return fmt.Errorf("%s in %s: exit code %d", strings.Join(command, " "), image, ended.StatusCode)
	}
	return nil
}

type statusError struct {
	code int
	text string
}

func (s statusError) Error() string { return fmt.Sprintf("docker answers %d: %s", s.code, s.text) }

// do makes one request; the body of the answer is decoded into out, or read for
// the error that the engine reports inside a successful stream.
func (e *Engine) do(ctx context.Context, method, path string, query url.Values, body io.Reader, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://docker"+path+"?"+query.Encode(), body)
	if err != nil {
		return err
	}
	switch {
	case strings.HasPrefix(path, "/containers/create"):
		req.Header.Set("Content-Type", "application/json")
	case body != nil:
		req.Header.Set("Content-Type", "application/x-tar")
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return fmt.Errorf("docker engine at %s: %w", e.Socket, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("docker engine at %s: %w", e.Socket, err)
	}
	if resp.StatusCode >= 400 {
		var said struct{ Message string }
		if json.Unmarshal(raw, &said) != nil || said.Message == "" {
			said.Message = strings.TrimSpace(string(raw))
		}
		return statusError{resp.StatusCode, said.Message}
	}
	if out != nil {
		return json.Unmarshal(raw, out)
	}
	return streamError(raw)
}

// streamError finds the error line in a progress stream of the engine.
func streamError(raw []byte) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	for {
		var line struct {
			Error string `json:"error"`
		}
		if err := dec.Decode(&line); err != nil {
			return nil // the end, or an answer that is no JSON at all
		}
		if line.Error != "" {
			return fmt.Errorf("docker engine: %s", line.Error)
		}
	}
}
