package clock

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The boot clock is the kernel's uptime, the same for every process.
func TestBoot(t *testing.T) {
	data, err := os.ReadFile("/proc/uptime")
	if err != nil {
		t.Fatal(err)
	}
	uptime, err := strconv.ParseFloat(strings.Fields(string(data))[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	now := Boot().Now()
	if diff := float64(now)/1e9 - uptime; diff < -0.1 || diff > 5 {
		t.Errorf("boot clock %f s, uptime %f s", float64(now)/1e9, uptime)
	}
	if later := Boot().Now(); later < now {
		t.Errorf("%d after %d", later, now)
	}
}

// The clock that asks the kernel rarely shows what the kernel says, and never goes back.
func TestRecent(t *testing.T) {
	r := Recent()
	var last Instant
	for range 200000 {
		before := Boot().Now()
		now := r.Now()
		after := Boot().Now()
		if slack := 50 * time.Microsecond; now < before.Add(-slack) || now > after.Add(slack) || now < last.Add(-slack) {
			t.Fatalf("%d, and the kernel said %d before and %d after; the one before was %d", now, before, after, last)
		}
		last = now
	}
}

func TestInstants(t *testing.T) {
	i := Instant(time.Hour)
	if i.Add(time.Second).Sub(i) != time.Second || i.Add(-time.Second).Sub(i) != -time.Second {
		t.Error("adding is wrong")
	}
	if Never.Add(time.Second) != Never || Never.Add(-time.Second) != Never || Instant(Never-5).Add(time.Hour) != Never {
		t.Error("never is not for ever")
	}
	if Min(i, Never) != i || Min(Never, i) != i {
		t.Error("the earlier one is wrong")
	}
}

func TestBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Bubble()
		start := c.Now()
		time.Sleep(time.Hour)
		if c.Now().Sub(start) != time.Hour {
			t.Error("the bubble's clock does not follow its time")
		}
	})
}
