package sqs

import (
	"context"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"retinue/coordinator/source"
	"retinue/coordinator/source/sourcetest"
	"retinue/coordinator/source/sourcetest/sqsfake"
)

const (
	serverVariable = "RETINUE_SQS_TEST"
	storeVariable  = "RETINUE_SQS_TEST_STORE"
	holdVariable   = "RETINUE_SQS_TEST_HOLD"
)

func TestMain(m *testing.M) {
	for name, value := range map[string]string{"AWS_ACCESS_KEY_ID": "good", "AWS_SECRET_ACCESS_KEY": "x", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"} {
		os.Setenv(name, value)
	}
	sourcetest.SideBySide(10)
	sourcetest.Main(m, map[string]func() error{
		"consumer": sourcetest.Consumer(func(ctx context.Context, o source.Options) (source.Source, error) {
			return Open(ctx, Config{Region: "us-east-1", Endpoint: "http://" + os.Getenv(serverVariable), FIFO: os.Getenv("RETINUE_SQS_TEST_FIFO") != "", Options: o})
		}),
		"sqs": func() error {
			hold, err := time.ParseDuration(os.Getenv(holdVariable))
			if err != nil {
				return err
			}
			s, err := sqsfake.New(os.Getenv(storeVariable), "good", hold)
			if err != nil {
				return err
			}
			return http.ListenAndServe(os.Getenv(serverVariable), s)
		},
	})
}

func TestContract(t *testing.T) {
	t.Parallel()
	sourcetest.Run(t, harness(t, false, maxHold))
}

func TestContractFIFO(t *testing.T) {
	t.Parallel()
	sourcetest.Run(t, harness(t, true, maxHold))
}

// A message is kept for longer than SQS's 12 hours, here 6 seconds.
func TestHold(t *testing.T) {
	t.Parallel()
	const limit = 6 * time.Second
	for name, fifo := range map[string]bool{"standard": false, "FIFO": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sourcetest.RunHold(t, harness(t, fifo, limit), limit)
		})
	}
}

func harness(t *testing.T, fifo bool, hold time.Duration) sourcetest.Harness {
	addr := sourcetest.Loopback(sourcetest.Port(t))
	srv := sourcetest.StartServer(t, sourcetest.Role(t, "sqs", serverVariable+"="+addr, storeVariable+"="+t.TempDir(), holdVariable+"="+hold.String()), sourcetest.Listens(addr))
	open := func(ctx context.Context, addr string, o source.Options) (source.Source, error) {
		s, err := Open(ctx, Config{Region: "us-east-1", Endpoint: "http://" + addr, FIFO: fifo, Options: o, hold: hold})
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	child := []string{serverVariable + "=" + addr}
	if fifo {
		child = append(child, "RETINUE_SQS_TEST_FIFO=1")
	}
	return sourcetest.Harness{
		Addr: addr, Server: srv, Together: true, Child: child, Lease: 2 * time.Second,
		Open: func(ctx context.Context, via string, o source.Options) (source.Source, error) {
			if via == "" {
				via = addr
			}
			return open(ctx, via, o)
		},
		Denied: func(ctx context.Context, o source.Options) (source.Source, error) {
			c := Config{Region: "us-east-1", Endpoint: "http://" + addr, Options: o}
			api, err := c.connect(ctx)
			if err != nil {
				return nil, err
			}
			opts := api.Options()
			opts.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
				return aws.Credentials{AccessKeyID: "bad", SecretAccessKey: "x"}, nil
			})
			_, err = c.url(ctx, sqs.New(opts), 0, false)
			return nil, explain(err)
		},
		Foreign: func(ctx context.Context, queue string, body []byte) error {
			c := Config{Region: "us-east-1", Endpoint: "http://" + addr, FIFO: fifo, Options: source.Options{Queue: queue}}
			api, err := c.connect(ctx)
			if err != nil {
				return err
			}
			url, err := c.url(ctx, api, 0, false)
			if err != nil {
				return err
			}
			in := &sqs.SendMessageInput{QueueUrl: &url, MessageBody: aws.String(string(body))}
			if fifo {
				in.MessageGroupId, in.MessageDeduplicationId = aws.String("g"), aws.String("d")
			}
			_, err = api.SendMessage(ctx, in)
			return err
		},
	}
}
