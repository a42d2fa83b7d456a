package lifecycle

import (
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agext/levenshtein"
	"github.com/vmihailenco/msgpack/v5"
)

// Decode reads a lifecycle block from plain values: maps with string keys, lists, strings, numbers and bools, as any
// decoder makes them. A nil value is no block and gives nil. The error is Problems: all that is wrong, at once.
func Decode(value any) (*Config, error) {
	if value == nil {
		return nil, nil
	}
	p := &problems{}
	cfg := decodeBlock(p, value)
	if err := p.err(); err != nil {
		return nil, err
	}
	return cfg, nil
}

// DecodeTaskConfig finds the lifecycle block in the msgpack of a whole task configuration, as Nomad hands it to a driver.
// Without a block it gives nil.
func DecodeTaskConfig(raw []byte) (*Config, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	var task map[string]any
	if err := msgpack.Unmarshal(raw, &task); err != nil {
		return nil, fmt.Errorf("decode the task's configuration: %w", err)
	}
	return Decode(task["lifecycle"])
}

// fields is one block while it is read.
type fields struct {
	p    *problems
	path string
	m    map[string]any
}

// block turns value into fields. HCL decoders wrap a single block into a list here and there.
func block(p *problems, path string, value any) (fields, bool) {
	if list, ok := value.([]any); ok && len(list) == 1 {
		value = list[0]
	}
	if list, ok := value.([]map[string]any); ok && len(list) == 1 {
		value = list[0]
	}
	m := map[string]any{}
	switch v := value.(type) {
	case map[string]any:
		m = v
	case map[any]any:
		for k, one := range v {
			name, ok := text(k)
			if !ok {
				p.add(path, "names of attributes are strings", "has the key %v", k)
				return fields{}, false
			}
			m[name] = one
		}
	default:
		p.add(path, "write it as a block: "+lastName(path)+" { ... }", "is no block but %s", kindOf(value))
		return fields{}, false
	}
	return fields{p, path, m}, true
}

func lastName(path string) string { return path[strings.LastIndexByte(path, '.')+1:] }

func text(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case []byte:
		return string(v), true
	}
	return "", false
}

func kindOf(v any) string {
	switch v.(type) {
	case string, []byte:
		return "a string"
	case bool:
		return "a bool"
	case nil:
		return "nothing"
	case []any, []string:
		return "a list"
	case map[string]any, map[any]any:
		return "a map"
	}
	if _, ok := number(v); ok {
		return "a number"
	}
	return "a value of an unknown type"
}

func number(v any) (float64, bool) {
	switch n := v.(type) {
	case int:
		return float64(n), true
	case int8:
		return float64(n), true
	case int16:
		return float64(n), true
	case int32:
		return float64(n), true
	case int64:
		return float64(n), true
	case uint:
		return float64(n), true
	case uint8:
		return float64(n), true
	case uint16:
		return float64(n), true
	case uint32:
		return float64(n), true
	case uint64:
		return float64(n), true
	case float32:
		return float64(n), true
	case float64:
		return n, true
	}
	return 0, false
}

// has says whether an attribute is set: null, an empty string, an empty list, 0 and false are what a decoder gives for one that is not.
func (f fields) has(name string) bool {
	v, ok := f.m[name]
	if !ok || v == nil {
		return false
	}
	if s, ok := text(v); ok {
		return s != ""
	}
	if n, ok := number(v); ok {
		return n != 0
	}
	switch v := v.(type) {
	case bool:
		return v
	case []any:
		return len(v) > 0
	case []string:
		return len(v) > 0
	}
	return true
}

// off says that a hook was turned off: what it should do is written, and empty. So a variable of a job can leave a hook out.
func (f fields) off(spec Spec) bool {
	written := false
	for _, kind := range spec.Kinds {
		if f.has(string(kind)) || kind == KindFile {
			return false
		}
		written = written || f.m[string(kind)] != nil
	}
	return written
}

func (f fields) at(name string) string { return f.path + "." + name }

func (f fields) string(name string) string {
	if !f.has(name) {
		return ""
	}
	s, ok := text(f.m[name])
	if !ok {
		f.p.add(f.at(name), "write it in quotes", "is no string but %s", kindOf(f.m[name]))
	}
	return s
}

// int reads a whole number between low and high; from meta it comes as a string.
func (f fields) int(name string, low, high int) int {
	if !f.has(name) {
		return 0
	}
	n, ok := number(f.m[name])
	if s, isText := text(f.m[name]); isText {
		i, err := strconv.ParseInt(s, 10, 32)
		n, ok = float64(i), err == nil
	}
	if !ok || n != math.Trunc(n) || n < float64(low) || n > float64(high) {
		f.p.add(f.at(name), fmt.Sprintf("give a whole number between %d and %d", low, high), "is %v", show(f.m[name]))
		return 0
	}
	return int(n)
}

func show(v any) string {
	if s, ok := text(v); ok {
		return strconv.Quote(s)
	}
	return fmt.Sprint(v)
}

func (f fields) bool(name string) bool {
	if !f.has(name) {
		return false
	}
	switch v := f.m[name].(type) {
	case bool:
		return v
	default:
		if s, ok := text(v); ok {
			if b, err := strconv.ParseBool(s); err == nil {
				return b
			}
		}
		f.p.add(f.at(name), "write true or false", "is %s", show(v))
		return false
	}
}

func (f fields) list(name string) []string {
	if !f.has(name) {
		return nil
	}
	var out []string
	switch v := f.m[name].(type) {
	case []string:
		out = v
	case []any:
		for _, one := range v {
			s, ok := text(one)
			if !ok {
				f.p.add(f.at(name), `write a list of strings: ["command", "argument"]`, "has %s in it", kindOf(one))
				return nil
			}
			out = append(out, s)
		}
	default:
		f.p.add(f.at(name), `write a list of strings: ["command", "argument"]`, "is no list but %s", kindOf(v))
		return nil
	}
	for _, s := range out {
		if strings.ContainsRune(s, 0) {
			f.p.add(f.at(name), "remove it", "has a zero byte in it")
			return nil
		}
	}
	if out[0] == "" {
		f.p.add(f.at(name), "the first element is the program", "has an empty program")
		return nil
	}
	return out
}

// duration reads a time such as 30s. It is more than zero and at most MaxTimeout.
func (f fields) duration(name string) time.Duration {
	s := f.string(name)
	if s == "" {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 || d > MaxTimeout {
		f.p.add(f.at(name), "give a time with its unit, such as 500ms, 30s or 2m, up to "+MaxTimeout.String(), "is %q", s)
		return 0
	}
	return d
}

// unknown reports attributes that the schema does not have.
func (f fields) unknown(b Block) {
	known := map[string]bool{}
	for _, a := range b.Attrs {
		known[a.Name] = true
	}
	for _, sub := range b.Blocks {
		known[sub.Name] = true
	}
	names := make([]string, 0, len(known))
	for name := range known {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range sortedKeys(f.m) {
		if known[name] || f.m[name] == nil {
			continue
		}
		advice := "it takes " + strings.Join(names, ", ")
		if close := nearest(name, names); close != "" {
			advice = "did you mean " + close + "?"
		}
		f.p.add(f.at(name), advice, "is not known here")
	}
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func decodeBlock(p *problems, value any) *Config {
	f, ok := block(p, "lifecycle", value)
	if !ok {
		return nil
	}
	schema := Schema()
	f.unknown(schema)
	cfg := &Config{Budget: Separate, Hooks: map[HookName]Hook{}}
	switch b := Budget(f.string("budget")); b {
	case "":
	case Separate, Shared:
		cfg.Budget = b
	default:
		p.add(f.at("budget"), `write "separate" or "shared"`, "is %q", string(b))
	}
	cfg.StopBudget, cfg.Watchdog = f.duration("stop_budget"), f.duration("watchdog")
	cfg.MaxReplicas = f.int("max_replicas", 1, 100_000)
	for i, spec := range Hooks() {
		sub, set := f.m[string(spec.Name)]
		if !set || sub == nil {
			continue
		}
		if list, ok := sub.([]any); ok && len(list) == 0 {
			continue
		}
		h, ok := block(p, f.at(string(spec.Name)), sub)
		if !ok {
			continue
		}
		h.unknown(schema.Blocks[i])
		if h.off(spec) {
			continue
		}
		cfg.Hooks[spec.Name] = decodeHook(h, spec)
		if spec.Name == SaveState {
			cfg.State = decodeState(h)
		}
	}
	restoreBySave(cfg)
	return cfg
}

// restoreBySave makes a task that saves its state get it back: who writes save_state alone means both.
func restoreBySave(cfg *Config) {
	if cfg.State.Store == "" {
		cfg.State.Store, cfg.State.MaxSize = "alloc", DefaultStateSize
	}
	if !cfg.Has(SaveState) || cfg.Has(RestoreState) {
		return
	}
	spec, _ := SpecOf(RestoreState)
	cfg.Hooks[RestoreState] = Hook{Name: RestoreState, Kind: KindFile, Timeout: spec.Timeout, OnFailure: spec.OnFailure}
}

func decodeHook(f fields, spec Spec) Hook {
	h := Hook{Name: spec.Name, Timeout: f.duration("timeout"), OnFailure: Policy(f.string("on_failure"))}
	if h.Timeout == 0 {
		h.Timeout = spec.Timeout
	}
	if h.OnFailure == "" {
		h.OnFailure = spec.OnFailure
	}
	if !slices.Contains(spec.Policies, h.OnFailure) {
		f.p.add(f.at("on_failure"), "write "+policyList(spec.Policies), "is %q", string(h.OnFailure))
	}
	var kinds []string
	for _, kind := range spec.Kinds {
		if kind != KindFile && f.has(string(kind)) {
			kinds = append(kinds, string(kind))
			h.Kind = kind
		}
	}
	takes := make([]string, 0, len(spec.Kinds))
	for _, kind := range spec.Kinds {
		if kind != KindFile {
			takes = append(takes, string(kind))
		}
	}
	switch {
	case len(kinds) > 1:
		f.p.add(f.path, "keep one of them", "has %s at once", strings.Join(kinds, " and "))
	case len(kinds) == 0 && slices.Contains(spec.Kinds, KindFile):
		h.Kind = KindFile
	case len(kinds) == 0:
		f.p.add(f.path, "give one of "+strings.Join(takes, ", "), "says not what to do")
	}
	switch h.Kind {
	case KindExec:
		h.Exec = f.list("exec")
	case KindHTTP:
		h.HTTP = decodeRequest(f, spec.Name == OnExit)
	case KindSleep:
		h.Sleep = f.duration("sleep")
		if h.Sleep > h.Timeout && !f.has("timeout") {
			h.Timeout = h.Sleep + time.Second
		} else if h.Sleep > h.Timeout {
			f.p.add(f.at("sleep"), "give a longer timeout", "is longer than the timeout of %s", h.Timeout)
		}
	case KindSignal:
		h.Signal = decodeSignal(f, "signal")
	case KindTCP:
		h.Port = f.int("tcp_port", 1, 65535)
	case KindNotify:
		f.bool("notify")
	}
	switch spec.Name {
	case Ready, Drain:
		if h.Interval = f.duration("interval"); h.Interval == 0 {
			h.Interval = 200 * time.Millisecond
		} else if h.Interval < 10*time.Millisecond {
			f.p.add(f.at("interval"), "give 10ms or more", "is %s", h.Interval)
		}
	case OnConfig:
		if h.OnSignal = "SIGHUP"; f.has("on_signal") {
			h.OnSignal = decodeSignal(f, "on_signal")
		}
	}
	return h
}

func policyList(policies []Policy) string {
	words := make([]string, len(policies))
	for i, p := range policies {
		words[i] = strconv.Quote(string(p))
	}
	return strings.Join(words, " or ")
}

// signals that a hook may send or stand for: those an application can handle.
var signalName = regexp.MustCompile(`^(SIG)?(HUP|INT|QUIT|ABRT|USR1|USR2|ALRM|TERM|CONT|WINCH|URG|IO|PWR|TTIN|TTOU|RTMIN(\+[0-9]{1,2})?)$`)

func decodeSignal(f fields, name string) string {
	s := strings.ToUpper(f.string(name))
	if !signalName.MatchString(s) {
		f.p.add(f.at(name), "name a signal that an application can handle, such as SIGHUP or SIGUSR1", "is %q", s)
		return ""
	}
	if !strings.HasPrefix(s, "SIG") {
		s = "SIG" + s
	}
	return s
}

var (
	methodName = regexp.MustCompile(`^(GET|HEAD|POST|PUT|PATCH|DELETE)$`)
	hostPort   = regexp.MustCompile(`^(http://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?)(/.*)?$`)
)

func decodeRequest(f fields, mustURL bool) Request {
	s := f.string("http")
	method, target, ok := strings.Cut(strings.TrimSpace(s), " ")
	target = strings.TrimSpace(target)
	advice := `write "METHOD /path" (on the application's socket) or "METHOD http://127.0.0.1:PORT/path"`
	if mustURL {
		advice = `the task is gone by then: write "POST http://HOST:PORT/path", which the driver calls from the host`
	}
	var r Request
	switch m := hostPort.FindStringSubmatch(target); {
	case !ok || !methodName.MatchString(method):
		f.p.add(f.at("http"), advice, "is %q", s)
		return r
	case strings.ContainsFunc(target, func(c rune) bool { return c <= ' ' || c == 0x7f || c > 0x7e || c == '#' }):
		f.p.add(f.at("http"), "escape it as %20 and the like", "has a character in its path that no URL has: %q", s)
		return r
	case m != nil:
		r = Request{Method: method, URL: m[1], Path: m[4]}
		if m[3] != "" {
			if port, _ := strconv.Atoi(m[3][1:]); port < 1 || port > 65535 {
				f.p.add(f.at("http"), "ports go from 1 to 65535", "has the port %s", m[3][1:])
			}
		}
		if r.Path == "" {
			r.Path = "/"
		}
	case strings.HasPrefix(target, "/") && !mustURL:
		r = Request{Method: method, Path: target}
	default:
		f.p.add(f.at("http"), advice, "is %q", s)
	}
	return r
}

func decodeState(f fields) StateConfig {
	s := StateConfig{Store: f.string("store"), Every: f.duration("every"), AppVersion: f.string("app_version"), MaxSize: DefaultStateSize}
	if s.Store == "" {
		s.Store = "alloc"
	}
	limit := int64(MaxStateSize)
	dir, isDir := strings.CutPrefix(s.Store, "dir:")
	switch {
	case isDir:
		if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || dir == "/" {
			f.p.add(f.at("store"), "write dir:/path, absolute and without .. in it; the client must allow that folder", "is %q", s.Store)
		}
	case s.Store == "alloc":
	case s.Store == "consul-kv":
		limit = 511 << 10 // of the 512 KB of a value, the record's description needs some
	case s.Store == "nomad-var":
		limit = 47 << 10 // a variable holds 64 KB, and base64 makes four bytes of three
	default:
		f.p.add(f.at("store"), `write "alloc", "consul-kv", "nomad-var" or "dir:/path"`, "is %q", s.Store)
	}
	if size := f.string("max_size"); size != "" {
		n, ok := parseSize(size)
		if !ok || n > limit {
			f.p.add(f.at("max_size"), fmt.Sprintf("give a size such as 512KB or 8MB; the store %s takes up to %s", s.Store, formatSize(limit)), "is %q", size)
		}
		s.MaxSize = n
	}
	s.MaxSize = min(s.MaxSize, limit)
	if s.Every != 0 && s.Every < MinEvery {
		f.p.add(f.at("every"), "give "+MinEvery.String()+" or more", "is %s", s.Every)
	}
	return s
}

// parseSize reads 512KB, 8MB, 8MiB or a plain number of bytes. Units count by 1024, as Nomad's do.
func parseSize(s string) (int64, bool) {
	number := strings.TrimRight(s, "KMiBkmb ")
	n, err := strconv.ParseInt(number, 10, 32)
	if err != nil || n <= 0 {
		return 0, false
	}
	switch strings.ToUpper(strings.TrimSpace(s[len(number):])) {
	case "", "B":
		return n, true
	case "K", "KB", "KIB":
		return n << 10, true
	case "M", "MB", "MIB":
		return n << 20, true
	}
	return 0, false
}

func formatSize(n int64) string {
	if n >= 1<<20 && n%(1<<20) == 0 {
		return fmt.Sprintf("%dMB", n>>20)
	}
	if n >= 1<<10 && n%(1<<10) == 0 {
		return fmt.Sprintf("%dKB", n>>10)
	}
	return fmt.Sprintf("%dB", n)
}

// nearest returns the name that s was probably meant to be, or "".
func nearest(s string, names []string) string {
	if len(s) > 64 {
		return ""
	}
	best, at := "", 3
	for _, name := range names {
		if d := levenshtein.Distance(s, name, nil); d < at {
			best, at = name, d
		}
	}
	return best
}
