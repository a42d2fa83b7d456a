package electorclient_test

import (
	"context"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"retinue/elector/electorclient"
)

// A service of which one replica, the leader, does the work.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	c, err := electorclient.FromEnv()
	if err != nil {
		log.Print(err)
		os.Exit(2)
	}
	for ctx.Err() == nil {
		err := c.Lead(ctx, "leader", func(ctx context.Context, l *electorclient.Leadership) error {
			for ctx.Err() == nil {
				step(ctx, l.Token()) // bounded by ctx, fenced by the token
			}
			return nil
		})
		log.Print("leading no more: ", err)
	}
}

// A replica that sends its callers to the leader.
func ExampleClient_Watch() {
	c, err := electorclient.FromEnv()
	if err != nil {
		log.Print(err)
		os.Exit(2)
	}
	for leader, err := range c.Watch(context.Background(), "leader") {
		switch {
		case err != nil:
			log.Print(err) // the last one
		case leader == nil:
			log.Print("nobody leads")
		default:
			log.Print("the leader answers at ", leader.Address)
		}
	}
}

func step(ctx context.Context, _ uint64) {
	select {
	case <-ctx.Done():
	case <-time.After(time.Second):
	}
}
