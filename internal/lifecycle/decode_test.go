package lifecycle

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/vmihailenco/msgpack/v5"
)

type block2 = map[string]any

// full is a block with everything in it.
func full() block2 {
	return block2{
		"budget": "shared", "stop_budget": "2m", "watchdog": "30s", "max_replicas": 5,
		"restore_state": block2{"http": "PUT /state", "on_failure": "ignore"},
		"post_start":    block2{"exec": []any{"/init", "-v"}, "timeout": "20s"},
		"ready":         block2{"http": "GET http://127.0.0.1:8080/ready?x=1", "interval": "1s"},
		"pause":         block2{"sleep": "1s"},
		"resume":        block2{"signal": "usr1"},
		"on_config":     block2{"http": "POST /reload", "on_signal": "SIGUSR2"},
		"pre_drain":     block2{"http": "POST /pre-drain", "on_failure": "abort_stop"},
		"drain":         block2{"tcp_port": 9042, "timeout": "60s"},
		"save_state":    block2{"http": "GET /state", "store": "consul-kv", "max_size": "100KB", "every": "60s", "app_version": "7"},
		"pre_stop":      block2{"exec": []any{"nodetool", "drain"}},
		"on_exit":       block2{"http": "POST http://10.0.0.1:99/gone"},
	}
}

func TestDecode(t *testing.T) {
	cfg, err := Decode(full())
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Budget != Shared || cfg.StopBudget != 2*time.Minute || cfg.Watchdog != 30*time.Second || cfg.MaxReplicas != 5 || len(cfg.Hooks) != 11 {
		t.Errorf("%+v", cfg)
	}
	if s := cfg.State; s != (StateConfig{Store: "consul-kv", MaxSize: 100 << 10, Every: time.Minute, AppVersion: "7"}) {
		t.Errorf("%+v", s)
	}
	for name, want := range map[HookName]Hook{
		PostStart: {Name: PostStart, Kind: KindExec, Exec: []string{"/init", "-v"}, Timeout: 20 * time.Second, OnFailure: Fail},
		Ready:     {Name: Ready, Kind: KindHTTP, HTTP: Request{"GET", "http://127.0.0.1:8080", "/ready?x=1"}, Interval: time.Second, Timeout: 30 * time.Second, OnFailure: Fail},
		Resume:    {Name: Resume, Kind: KindSignal, Signal: "SIGUSR1", Timeout: 5 * time.Second, OnFailure: Ignore},
		Drain:     {Name: Drain, Kind: KindTCP, Port: 9042, Interval: 200 * time.Millisecond, Timeout: time.Minute, OnFailure: Ignore},
		OnConfig:  {Name: OnConfig, Kind: KindHTTP, HTTP: Request{"POST", "", "/reload"}, OnSignal: "SIGUSR2", Timeout: 10 * time.Second, OnFailure: Ignore},
	} {
		if got := cfg.Hooks[name]; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if cfg, err := Decode(nil); cfg != nil || err != nil {
		t.Errorf("%v %v", cfg, err)
	}
	// What is written and empty turns a hook off.
	cfg, err = Decode(block2{"pre_stop": block2{"exec": []any{}, "http": nil, "timeout": "3s"}, "drain": block2{"tcp_port": 0}, "ready": block2{"notify": false}, "save_state": block2{"http": ""}})
	if err != nil || len(cfg.Hooks) != 0 {
		t.Errorf("%+v %v", cfg, err)
	}
	// What is saved is given back, also when the job does not say so.
	cfg, err = Decode(block2{"save_state": block2{"exec": []any{"dump"}}})
	if err != nil || cfg.Hooks[RestoreState].Kind != KindFile || cfg.State.Store != "alloc" {
		t.Errorf("%+v %v", cfg, err)
	}
}

// Every problem is told, with its place and with what to do.
func TestProblems(t *testing.T) {
	_, err := Decode(block2{
		"budget": "both", "stop_budget": "5 minutes", "watchdgo": "3s", "max_replicas": -1,
		"post_start": block2{"exec": []any{"/init"}, "http": "POST /x", "on_failure": "abort_stop"},
		"ready":      block2{"timeout": "0s"},
		"drain":      block2{"tcp_port": 70000},
		"pre_drain":  block2{"http": "/pre-drain"},
		"save_state": block2{"http": "GET /state", "max_size": "1GB", "store": "s3"},
		"pre_stop":   block2{"exec": "nodetool drain"},
		"pause":      block2{"signal": "SIGKILL"},
		"on_exit":    block2{"http": "POST /gone"},
		"resume":     "POST /resume",
	})
	var problems Problems
	if !errors.As(err, &problems) {
		t.Fatal(err)
	}
	want := []string{"lifecycle.budget", "lifecycle.stop_budget", "lifecycle.watchdgo", "lifecycle.max_replicas", "lifecycle.post_start", "lifecycle.post_start.on_failure",
		"lifecycle.ready", "lifecycle.ready.timeout", "lifecycle.drain.tcp_port", "lifecycle.pre_drain.http", "lifecycle.save_state.max_size", "lifecycle.save_state.store",
		"lifecycle.pre_stop.exec", "lifecycle.pause.signal", "lifecycle.on_exit.http", "lifecycle.resume"}
	got := map[string]Problem{}
	for _, p := range problems {
		got[p.Path] = p
		if p.Hint == "" || p.What == "" {
			t.Errorf("%+v says too little", p)
		}
	}
	for _, path := range want {
		if _, ok := got[path]; !ok {
			t.Errorf("nothing is said of %s", path)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d problems, want %d: %v", len(got), len(want), err)
	}
	if !strings.Contains(got["lifecycle.watchdgo"].Hint, "did you mean watchdog?") {
		t.Errorf("%+v", got["lifecycle.watchdgo"])
	}
}

// The same lifecycle from meta.
func TestMeta(t *testing.T) {
	env := map[string]string{"NOMAD_META_other": "x", "PATH": "/bin"}
	if cfg, err := FromMeta(env); cfg != nil || err != nil {
		t.Fatalf("%v %v", cfg, err)
	}
	for key, value := range map[string]string{
		"budget": "shared", "stop_budget": "2m", "watchdog": "30s", "max_replicas": "5",
		"restore_state_http": "PUT /state", "restore_state_on_failure": "ignore",
		"post_start_exec": `["/init", "-v"]`, "post_start_timeout": "20s",
		"ready_http": "GET http://127.0.0.1:8080/ready?x=1", "ready_interval": "1s",
		"pause_sleep": "1s", "resume_signal": "usr1", "on_config_http": "POST /reload", "on_config_on_signal": "SIGUSR2",
		"pre_drain_http": "POST /pre-drain", "pre_drain_on_failure": "abort_stop",
		"drain_tcp_port": "9042", "drain_timeout": "60s",
		"save_state_http": "GET /state", "save_state_store": "consul-kv", "save_state_max_size": "100KB", "save_state_every": "60s", "save_state_app_version": "7",
		"pre_stop_exec": "nodetool drain", "on_exit_http": "POST http://10.0.0.1:99/gone",
	} {
		env[nomadMeta+MetaPrefix+key] = value
		env[nomadMeta+strings.ToUpper(MetaPrefix+key)] = value
	}
	got, err := FromMeta(env)
	if err != nil {
		t.Fatal(err)
	}
	want, err := Decode(full())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("from meta %+v\nfrom the block %+v", got, want)
	}
	if cfg, err := FromMeta(map[string]string{"NOMAD_META_retinue_lifecycle_pre_stop_exec": "", "NOMAD_META_retinue_lifecycle_pre_stop_timeout": "3s", "NOMAD_META_retinue_lifecycle_budget": ""}); err != nil || cfg == nil || len(cfg.Hooks) != 0 {
		t.Errorf("%+v %v", cfg, err)
	}
	_, err = FromMeta(map[string]string{"NOMAD_META_retinue_lifecycle_pre_stop_exce": "x", "NOMAD_META_retinue_lifecycle_budgte": "shared", "NOMAD_META_retinue_lifecycle_post_start_exec": "[x"})
	for _, part := range []string{"lifecycle.pre_stop.exce", "did you mean exec?", "lifecycle.budgte", "did you mean budget?", "lifecycle.post_start.exec", `["nodetool", "drain"]`} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v does not say %q", err, part)
		}
	}
}

func TestTaskConfig(t *testing.T) {
	raw, err := msgpack.Marshal(block2{"image": "x", "lifecycle": full()})
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeTaskConfig(raw)
	want, _ := Decode(full())
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v %v", got, err)
	}
	raw, _ = msgpack.Marshal(block2{"image": "x", "lifecycle": nil})
	if cfg, err := DecodeTaskConfig(raw); cfg != nil || err != nil {
		t.Errorf("%+v %v", cfg, err)
	}
	if _, err := DecodeTaskConfig([]byte{0xc1}); err == nil {
		t.Error("nonsense was taken")
	}
}

// The schema and the decoder know the same attributes.
func TestSchema(t *testing.T) {
	schema := Schema()
	if len(schema.Blocks) != len(Hooks()) {
		t.Fatal("another number of blocks than hooks")
	}
	for i, spec := range Hooks() {
		b := schema.Blocks[i]
		if b.Name != string(spec.Name) || b.Doc == "" {
			t.Errorf("%+v", b)
		}
		for _, a := range b.Attrs {
			if a.Doc == "" {
				t.Errorf("%s.%s is not described", b.Name, a.Name)
			}
			// A wrong type is seen, so the attribute is read.
			_, err := Decode(block2{b.Name: block2{a.Name: block2{"x": 1}}})
			if err == nil || !strings.Contains(err.Error(), "lifecycle."+b.Name+"."+a.Name) {
				t.Errorf("%s.%s of a wrong type: %v", b.Name, a.Name, err)
			}
		}
	}
}

func FuzzDecode(f *testing.F) {
	raw, err := msgpack.Marshal(block2{"lifecycle": full()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte("\x81\xa9lifecycle\x81\xa5drain\x81\xa8tcp_port\xcd\x23\x52"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		cfg, err := DecodeTaskConfig(raw)
		if err != nil || cfg == nil {
			return
		}
		for name, h := range cfg.Hooks {
			spec, ok := SpecOf(name)
			if !ok || h.Timeout <= 0 || h.Timeout > MaxTimeout+time.Second || h.Kind == "" || !reflect.DeepEqual(h.Name, spec.Name) {
				t.Errorf("%s: %+v", name, h)
			}
		}
		if cfg.State.MaxSize <= 0 || cfg.State.MaxSize > MaxStateSize {
			t.Errorf("%+v", cfg.State)
		}
	})
}

func FuzzMeta(f *testing.F) {
	f.Add("pre_stop_exec", "nodetool drain")
	f.Add("drain_http", "GET http://[::1]:80/x")
	f.Add("budget", "shared")
	f.Fuzz(func(t *testing.T, key, value string) {
		cfg, err := FromMeta(map[string]string{nomadMeta + MetaPrefix + key: value})
		if err == nil && cfg == nil && value != "" {
			t.Errorf("%s=%s was lost", key, value)
		}
	})
}

func FuzzInFlight(f *testing.F) {
	f.Add([]byte("3\n"))
	f.Add([]byte(`{"in_flight": 3}`))
	f.Add([]byte("-9223372036854775808"))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, kind := range []Kind{KindHTTP, KindExec} {
			o := drained(outcome{}, Hook{Kind: kind}, body)
			if o.again && (o.err != nil || o.after < 0 || o.after > MaxTimeout) {
				t.Errorf("%q: %+v", body, o)
			}
		}
	})
}
