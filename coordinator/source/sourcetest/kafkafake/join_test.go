package kafkafake

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A member that dies while it waits to join does not stay in the group: nobody would ever get its partitions.
func TestMemberDiesWhileItJoins(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := NewCluster(t.TempDir(), kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	client := func() *kgo.Client {
		cl, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cl.Close)
		return cl
	}
	join := func(cl *kgo.Client, member string) (*kmsg.JoinGroupResponse, error) {
		req := kmsg.NewPtrJoinGroupRequest()
		req.Group, req.MemberID, req.ProtocolType, req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = "g", member, "consumer", 10_000, 60_000
		p := kmsg.NewJoinGroupRequestProtocol()
		p.Name = "p"
		req.Protocols = append(req.Protocols, p)
		resp, err := req.RequestWith(ctx, cl)
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		return resp, err
	}
	lives, dies := client(), client()
	known := func(cl *kgo.Client) string {
		resp, err := join(cl, "")
		if !errors.Is(err, kerr.MemberIDRequired) {
			t.Fatal(err)
		}
		return resp.MemberID
	}
	id := known(lives)
	if _, err := join(lives, id); err != nil {
		t.Fatal(err)
	}
	other := known(dies)
	go join(dies, other) // it waits for the one that is a member
	time.Sleep(100 * time.Millisecond)
	dies.Close()
	time.Sleep(100 * time.Millisecond)
	if resp, err := join(lives, id); err != nil || len(resp.Members) != 2 {
		t.Fatal(resp, err)
	}
	sync := kmsg.NewPtrSyncGroupRequest()
	sync.Group, sync.MemberID, sync.Generation = "g", id, 2
	if _, err := sync.RequestWith(ctx, lives); err != nil {
		t.Fatal(err)
	}
	for admin := kadm.NewClient(lives); ; {
		all, err := admin.DescribeGroups(ctx, "g")
		if err != nil {
			t.Fatal(err)
		}
		if members := all["g"].Members; len(members) == 1 && members[0].MemberID == id {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}
