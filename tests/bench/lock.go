package main

import (
	"fmt"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"retinue/tests/bench/wire"
)

// lockRole is the first argument of this program when it runs again as an
// application that leads by consul/api's Lock.
const lockRole = "lock-candidate"

// runLock campaigns, leads and resigns as it is told. args: address, key, TTL, lock-delay.
func runLock(args []string) error {
	if len(args) != 4 {
		return fmt.Errorf("usage: %s ADDRESS KEY TTL DELAY", lockRole)
	}
	delay, err := time.ParseDuration(args[3])
	if err != nil {
		return err
	}
	config := consulapi.DefaultConfig()
	config.Address = args[0]
	client, err := consulapi.NewClient(config)
	if err != nil {
		return err
	}
	link, err := wire.Dial()
	if err != nil {
		return err
	}
	link.Send(wire.Event{Name: wire.Hello, At: wire.Now()})
	for c := range link.Commands() {
		if c.Name != wire.Campaign {
			continue
		}
		if err := lead(link, client, &consulapi.LockOptions{Key: args[1], SessionTTL: args[2], LockDelay: delay}); err != nil {
			link.Fail(err)
		}
	}
	return nil
}

// lead is one leadership, from the campaign to the resignation.
func lead(link *wire.Link, client *consulapi.Client, options *consulapi.LockOptions) error {
	lock, err := client.LockOpts(options)
	if err != nil {
		return err
	}
	link.Send(wire.Event{Name: wire.Campaigning, At: wire.Now()})
	stop := make(chan struct{})
	type outcome struct {
		lost <-chan struct{}
		err  error
	}
	locked := make(chan outcome, 1)
	go func() {
		lost, err := lock.Lock(stop)
		if err == nil && lost != nil {
			link.Send(wire.Event{Name: wire.Elected, At: wire.Now()})
		}
		locked <- outcome{lost, err}
	}()
	var lost <-chan struct{}
	for {
		select {
		case got := <-locked:
			if got.err != nil {
				return got.err
			}
			lost = got.lost
		case <-lost:
			return fmt.Errorf("the lock was lost")
		case c, ok := <-link.Commands():
			if !ok {
				close(stop)
				return nil
			}
			if c.Name == wire.Resign {
				began := wire.Now()
				err := lock.Unlock()
				link.Send(wire.Event{Name: wire.Resigning, At: began})
				link.Send(wire.Event{Name: wire.Released, At: wire.Now()})
				return err
			}
		}
	}
}
