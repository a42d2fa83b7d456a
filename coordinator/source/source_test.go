package source

import (
	"errors"
	"testing"

	"retinue/internal/hint"
)

func TestClassesShare(t *testing.T) {
	c := Classes{N: 3}
	var got [3]int
	for range 140 {
		got[c.Next(func(int) bool { return true })]++
	}
	if got != [3]int{10, 40, 90} {
		t.Errorf("140 turns went to %v", got)
	}
	// The shares of an empty class go to the others, and it saves none up.
	for range 50 {
		if class := c.Next(func(class int) bool { return class == 0 }); class != 0 {
			t.Fatalf("class %d has nothing", class)
		}
	}
	if class := c.Next(func(int) bool { return true }); class != 2 {
		t.Errorf("after a drought class %d is next", class)
	}
	if class := c.Next(func(int) bool { return false }); class != -1 {
		t.Errorf("nothing is there, class %d is next", class)
	}
	if parts := (&Classes{N: 3}).Split(14); parts[0] != 1 || parts[1] != 4 || parts[2] != 9 {
		t.Errorf("14 are split as %v", parts)
	}
}

func TestFailures(t *testing.T) {
	a, b := &Message{ID: "a"}, &Message{ID: "b"}
	if (Failures{}).Err() != nil {
		t.Error("no failure is an error")
	}
	err := Failures{a: ErrLost}.Err()
	if !errors.Is(err, ErrLost) || !errors.Is(ErrorOf(err, a), ErrLost) || ErrorOf(err, b) != nil {
		t.Errorf("%v", err)
	}
	if !errors.Is(ErrorOf(ErrUnavailable, b), ErrUnavailable) {
		t.Error("an error of the whole call concerns each message")
	}
}

func TestOptionsAreCompleted(t *testing.T) {
	o := Options{Queue: "q"}
	if err := o.Complete(); err != nil || o.Lease == 0 || o.Prefetch == 0 || o.Classes != 1 || o.Consumer == "" {
		t.Errorf("%+v: %v", o, err)
	}
}

func TestNoOrderIsRefusedWithAdvice(t *testing.T) {
	if err := (Options{}).NoOrder("X"); err != nil {
		t.Error(err)
	}
	if err := (Options{Order: true}).NoOrder("X"); !errors.Is(err, ErrConfig) || hint.Of(err) == "" {
		t.Errorf("%v, hint %q", err, hint.Of(err))
	}
}
