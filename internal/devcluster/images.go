package devcluster

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"retinue/internal/hint"
)

const (
	labelAlloc   = "com.hashicorp.nomad.alloc_id"
	labelContent = "retinue.sha256"
)

// installBinary copies the retinue binary into the cluster's bin folder when it
// differs, and refuses one that would not run in a scratch image or a chroot.
func installBinary(source, dest string) error {
	static, err := isStatic(source)
	if err != nil {
		return fmt.Errorf("read the retinue binary: %w", err)
	}
	if !static {
		return hint.Wrap(fmt.Errorf("the retinue binary %s is not static, so it cannot run in a container without libraries", source),
			"build it with `CGO_ENABLED=0 go build -o bin/retinue ./cmd/retinue` (or `make build`) and use that one")
	}
	return copyProgram(source, dest)
}

// copyProgram copies a program when it differs.
func copyProgram(source, dest string) error {
	data, err := os.ReadFile(source)
	if err != nil {
		return fmt.Errorf("read the program %s: %w", source, err)
	}
	if old, err := os.ReadFile(dest); err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dest), 0o755); err != nil {
		return diskError(err)
	}
	return writeFile(dest, data, 0o755)
}

// buildImages makes the local images of this version when their content has
// changed: retinue, and the pause image that holds the network of a bridge-mode
// allocation. Both are one scratch layer, the same one, with the companions there are.
//
// It returns the name of the retinue image that only this content has, and
// leaves the name of the version, which jobspecs have as their default, with it.
func buildImages(ctx context.Context, e *Engine, retinueBin string) (image string, built bool, err error) {
	layer, err := imageLayer(retinueBin)
	if err != nil {
		return "", false, err
	}
	sum := sha256.Sum256(layer)
	content := hex.EncodeToString(sum[:])
	image = buildImage(content)
	for name, cmd := range map[string]string{
		image:        `["` + taskBinary + `"]`,
		PauseImage(): `["` + taskBinary + `", "pause"]`,
	} {
		labels, err := e.imageLabels(ctx, name)
		if err != nil {
			return image, built, fmt.Errorf("look for image %s: %w", name, err)
		}
		if labels[labelContent] == content {
			continue
		}
		// No ENTRYPOINT: a jobspec gives the command, as it does for exec.
		err = e.importImage(ctx, name, layer, "CMD "+cmd, "ENV PATH=/usr/local/bin", "LABEL "+labelContent+"="+content)
		if err != nil {
			return image, built, hint.Wrap(fmt.Errorf("build image %s: %w", name, err), "`docker info` says whether the engine works and has space; --docker=off does without it")
		}
		built = true
	}
	if err := e.tagImage(ctx, image, Image()); err != nil {
		return image, built, fmt.Errorf("name image %s %s: %w", image, Image(), err)
	}
	if built {
		if err := e.dropReplaced(ctx, time.Now()); err != nil {
			return image, built, fmt.Errorf("remove replaced images: %w", err)
		}
	}
	return image, built, nil
}

// imageLayer is the tar of the image's files. It is the same for the same input:
// no times, no owners.
func imageLayer(retinueBin string) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	dir := func(name string, mode int64) error {
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, Format: tar.FormatUSTAR})
	}
	file := func(name string, mode int64, data []byte) error {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data)), Format: tar.FormatUSTAR}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	}
	binary, err := os.ReadFile(retinueBin)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	errs := []error{
		dir("etc", 0o755), dir("etc/ssl", 0o755), dir("etc/ssl/certs", 0o755),
		dir("tmp", 0o1777), dir("usr", 0o755), dir("usr/local", 0o755), dir("usr/local/bin", 0o755),
		file("etc/passwd", 0o644, []byte("root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n")),
		file("etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n")),
	}
	certs, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("image: %w", err)
	}
	if len(certs) > 0 {
		errs = append(errs, file("etc/ssl/certs/ca-certificates.crt", 0o644, certs))
	}
	errs = append(errs, file(strings.TrimPrefix(taskBinary, "/"), 0o755, binary))
	for _, c := range companions {
		path := c.beside(retinueBin)
		if path == "" {
			continue
		}
		program, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("image: %w", err)
		}
		errs = append(errs, file(strings.TrimPrefix(c.inTask(), "/"), 0o755, program))
	}
	errs = append(errs, w.Close())
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	return buf.Bytes(), nil
}
