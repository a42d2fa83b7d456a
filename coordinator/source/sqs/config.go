// Package sqs is the source on Amazon SQS and what speaks its JSON protocol:
// one queue per priority class, standard or FIFO.
//
// The lease is the visibility timeout, in whole seconds. SQS ends every lease
// 12 hours after the delivery, whatever anybody extends; a message that comes
// near that is copied to a queue <name>-<class>-held, where this consumer takes
// it at once with 12 new hours, and which all consumers look into now and then
// for messages whose owner died.
//
// A body that is not text of XML's characters travels as base64. SQS knows no
// priority beyond the separate queues, ends delays of a publication at 15
// minutes (longer ones are delayed again when they arrive), and gives FIFO
// queues an order per key and five minutes of deduplication.
//
// Another producer sends to the queue <name>-<class>, class 0 for the ordinary
// one (with .fifo for a FIFO queue); its string attributes are headers.
package sqs

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"

	"retinue/coordinator/source"
	"retinue/internal/hint"
)

// Config says where the queues are. Credentials come from where all of AWS's programs take them: environment, files, the
// instance or the task.
type Config struct {
	// Region, as us-east-1; "" takes it from the environment.
	Region string
	// Endpoint is the URL of something else than AWS that speaks its protocol; "" for AWS.
	Endpoint string
	// FIFO uses FIFO queues: order per key and deduplication, at a lower rate.
	FIFO bool
	source.Options

	hold time.Duration // how long SQS lets a message be leased; tests shorten it
}

const (
	maxHold      = 12 * time.Hour
	maxMessage   = 1 << 20
	envelope     = 24 << 10
	maxBody      = (maxMessage - envelope) / 4 * 3 // as base64
	maxDelay     = 11 * time.Hour
	maxSendDelay = 15 * time.Minute
	batch        = 10
	fifoWindow   = 5 * time.Minute
)

func (c *Config) name(class int, held bool) string {
	name := fmt.Sprintf("%s-%d", c.Queue, class)
	if held {
		return name + "-held" // never FIFO: a key must not block what belongs to different owners
	}
	if c.FIFO {
		name += ".fifo"
	}
	return name
}

// seconds rounds up, at least 1.
func seconds(d time.Duration) int32 { return int32(max(1, (d+time.Second-1)/time.Second)) }

func (c *Config) connect(ctx context.Context) (*sqs.Client, error) {
	opts := []func(*awsconfig.LoadOptions) error{
		awsconfig.WithRetryer(func() aws.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts, o.MaxBackoff = 2, 200*time.Millisecond })
		}),
	}
	if c.Region != "" {
		opts = append(opts, awsconfig.WithRegion(c.Region))
	}
	cfg, err := awsconfig.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", source.ErrConfig, err)
	}
	if cfg.Region == "" {
		return nil, hint.Wrap(fmt.Errorf("%w: no region", source.ErrConfig), "set AWS_REGION or give the region in the address")
	}
	return sqs.NewFromConfig(cfg, func(o *sqs.Options) {
		if c.Endpoint != "" {
			o.BaseEndpoint = aws.String(c.Endpoint)
		}
	}), nil
}

// url finds a queue, or makes it.
func (c *Config) url(ctx context.Context, api *sqs.Client, class int, held bool) (string, error) {
	name := c.name(class, held)
	got, err := api.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &name})
	if err == nil {
		return *got.QueueUrl, nil
	}
	var missing *types.QueueDoesNotExist
	if !errors.As(err, &missing) {
		return "", err
	}
	attributes := map[string]string{
		"VisibilityTimeout":      strconv.Itoa(int(seconds(c.Lease))),
		"MessageRetentionPeriod": strconv.Itoa(14 * 24 * 60 * 60),
	}
	if c.FIFO && !held {
		attributes["FifoQueue"] = "true"
	}
	made, err := api.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: &name, Attributes: attributes})
	if err != nil {
		return "", err
	}
	return *made.QueueUrl, nil
}

// Attributes of a message. SQS allows ten: ours take one for all headers, as JSON.
const (
	attrHeaders  = "retinue-headers"
	attrEncoding = "retinue-encoding" // base64, or empty for a body that is empty
)

func text(value string) types.MessageAttributeValue {
	return types.MessageAttributeValue{DataType: aws.String("String"), StringValue: &value}
}

// encode makes SQS's text of a message.
func encode(body []byte, headers map[string]string) (string, map[string]types.MessageAttributeValue, error) {
	all, err := json.Marshal(headers)
	if err != nil {
		return "", nil, err
	}
	attrs := map[string]types.MessageAttributeValue{attrHeaders: text(string(all))}
	switch {
	case len(body) == 0:
		attrs[attrEncoding] = text("empty")
		return "-", attrs, nil
	case !isText(body):
		attrs[attrEncoding] = text("base64")
		return base64.StdEncoding.EncodeToString(body), attrs, nil
	}
	return string(body), attrs, nil
}

func decode(body string, attrs map[string]types.MessageAttributeValue) ([]byte, map[string]string) {
	headers := map[string]string{}
	for name, a := range attrs {
		if a.StringValue != nil && name != attrHeaders && name != attrEncoding {
			headers[name] = *a.StringValue
		}
	}
	if a, ok := attrs[attrHeaders]; ok && a.StringValue != nil {
		_ = json.Unmarshal([]byte(*a.StringValue), &headers) // somebody else's: then it has none of ours
	}
	if a, ok := attrs[attrEncoding]; ok && a.StringValue != nil {
		switch *a.StringValue {
		case "empty":
			return []byte{}, headers
		case "base64":
			if raw, err := base64.StdEncoding.DecodeString(body); err == nil {
				return raw, headers
			}
		}
	}
	return []byte(body), headers
}

// isText says that SQS carries a body unchanged: the characters of XML 1.0.
func isText(body []byte) bool {
	if !utf8.Valid(body) {
		return false
	}
	for _, r := range string(body) {
		if r < ' ' && r != '\t' && r != '\n' || r == 0xFFFE || r == 0xFFFF {
			return false // a carriage return too: some servers normalise it
		}
	}
	return true
}

// explain gives the SDK's errors the meaning of the contract.
func explain(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, source.ErrClosed) || errors.Is(err, source.ErrConfig) {
		return err
	}
	var net net.Error
	var api smithy.APIError
	if errors.As(err, &api) {
		code := api.ErrorCode()
		switch {
		case strings.Contains(code, "AccessDenied"), strings.Contains(code, "InvalidClientTokenId"), strings.Contains(code, "UnrecognizedClient"),
			strings.Contains(code, "SignatureDoesNotMatch"), strings.Contains(code, "ExpiredToken"), strings.Contains(code, "InvalidSecurity"), strings.Contains(code, "MissingAuthentication"):
			return hint.Wrap(fmt.Errorf("%w: %w", source.ErrAccess, err), "check the AWS credentials; they need sqs:GetQueueUrl, CreateQueue, GetQueueAttributes, SendMessage, ReceiveMessage, DeleteMessage and ChangeMessageVisibility")
		case api.ErrorFault() == smithy.FaultServer, strings.Contains(code, "Throttl"), strings.Contains(code, "QueueDoesNotExist"), strings.Contains(code, "QueueDeletedRecently"), strings.Contains(code, "OverLimit"):
			return fmt.Errorf("%w: %w", source.ErrUnavailable, err)
		}
		return fmt.Errorf("%w: %w", source.ErrConfig, err)
	}
	if !errors.As(err, &net) && strings.Contains(err.Error(), "get identity") {
		return hint.Wrap(fmt.Errorf("%w: %w", source.ErrAccess, err), "no AWS credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile")
	}
	return fmt.Errorf("%w: %w", source.ErrUnavailable, err)
}
