package commit

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"retinue/coordinator/blob"
	"retinue/coordinator/item"
	"retinue/coordinator/source"
)

// Artifacts is a commit point whose files lie in an object store: they are uploaded under keys of the attempt alone, and then the record
// is offered to another commit point. The files of a loser are removed.
type Artifacts struct {
	Point
	Client *blob.Client
	Base   *url.URL // s3://BUCKET/PREFIX
}

// recordTimeout bounds the offer that follows an upload, which may itself take as long as it moves.
const recordTimeout = 15 * time.Second

// Place is where the files of an attempt lie.
func (a Artifacts) Place(stage, id, attempt string) *url.URL {
	return below(a.items(stage, id), attempt)
}

// below is the address of something below another. What url.JoinPath does to a % in a name is not what is wanted.
func below(u *url.URL, name string) *url.URL {
	b := *u
	b.Path, b.RawPath = strings.TrimSuffix(b.Path, "/")+"/"+name, ""
	return &b
}

func (a Artifacts) items(stage, id string) *url.URL {
	return below(a.Base, stage+"/"+item.FileName(id))
}

// bucketOf is the bucket that an address lies in.
func bucketOf(u *url.URL) *url.URL { return &url.URL{Scheme: u.Scheme, Host: u.Host} }

// Commit implements Point.
func (a Artifacts) Commit(ctx context.Context, rec item.Record, out string) (item.Record, error) {
	at := a.Place(rec.Stage, rec.ID, rec.Attempt)
	files := rec.Files
	if rec.State != item.Done || out == "" {
		files = nil
	}
	for _, f := range files {
		if f.Size > blob.MaxPut {
			return item.Record{}, fmt.Errorf("commit %s: %w", rec.ID, ErrTooLarge{Size: f.Size, Limit: blob.MaxPut, What: "output " + f.Name})
		}
	}
	rec.Files = nil
	for _, f := range files {
		size, sum, err := a.Client.PutFile(ctx, below(at, f.Name), filepath.Join(out, f.Name))
		if err != nil {
			return item.Record{}, fmt.Errorf("commit %s: upload %s: %w", rec.ID, f.Name, err)
		}
		rec.Files = append(rec.Files, item.File{Name: f.Name, Size: size, SHA256: sum})
	}
	if len(files) > 0 {
		rec.Output = at.String()
	}
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	won, err := a.Point.Commit(ctx, rec, "")
	if err == nil && won.Attempt != rec.Attempt {
		for _, f := range files {
			_ = a.Client.Delete(ctx, below(at, f.Name)) // what stays goes with the item
		}
	}
	return won, err
}

// Probe says whether files can be written there.
func (a Artifacts) Probe(ctx context.Context) error {
	u := below(a.Base, ".retinue-probe/"+source.NewID())
	if err := a.Client.Put(ctx, u, []byte("probe")); err != nil {
		return err
	}
	return a.Client.Delete(ctx, u)
}
