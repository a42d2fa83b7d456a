package blob_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"retinue/coordinator/blob"
)

const emptySum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// The example of AWS's documentation.
func TestSignatureExample(t *testing.T) {
	req, err := http.NewRequest("GET", "https://examplebucket.s3.amazonaws.com/test.txt", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Range", "bytes=0-9")
	blob.Sign(req, "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "", "us-east-1", emptySum, time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC))
	if got := req.Header.Get("Authorization"); !strings.HasSuffix(got, "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41") {
		t.Error(got)
	}
}

// The same signatures as AWS's own library.
func TestSignatureAgainstSDK(t *testing.T) {
	now := time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)
	for _, c := range []struct{ method, address, header string }{
		{"GET", "http://127.0.0.1:9000/b/in/a%20b%2B%C3%BC%252F~.jpg", ""},
		{"PUT", "https://b.s3.eu-central-1.amazonaws.com/commit/s/x%40y%3A1", "If-None-Match"},
		{"GET", "http://s3.local/b/?continuation-token=a%2Fb%3D%3D&list-type=2&prefix=in%2Fa%20b", ""},
		{"DELETE", "http://s3.local/b/x", ""},
	} {
		sign := func(with func(req *http.Request)) string {
			req, err := http.NewRequest(c.method, c.address, nil)
			if err != nil {
				t.Fatal(err)
			}
			if c.header != "" {
				req.Header.Set(c.header, "*")
			}
			req.Header.Set("X-Amz-Content-Sha256", emptySum)
			with(req)
			return req.Header.Get("Authorization")
		}
		ours := sign(func(req *http.Request) { blob.Sign(req, "id", "secret", "token", "eu-central-1", emptySum, now) })
		theirs := sign(func(req *http.Request) {
			signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
			if err := signer.SignHTTP(t.Context(), aws.Credentials{AccessKeyID: "id", SecretAccessKey: "secret", SessionToken: "token"}, req, emptySum, "s3", "eu-central-1", now); err != nil {
				t.Fatal(err)
			}
		})
		if ours != theirs {
			t.Errorf("%s %s:\n%s\n%s", c.method, c.address, ours, theirs)
		}
	}
}
