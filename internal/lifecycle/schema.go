package lifecycle

// Type is the type of an attribute, in words that HCL knows.
type Type string

// The types of attributes.
const (
	String     Type = "string"
	Number     Type = "number"
	Bool       Type = "bool"
	StringList Type = "list(string)"
)

// Attr is an attribute of a block. All attributes may be left out.
type Attr struct {
	Name string
	Type Type
	Doc  string
}

// Block describes a block. The driver turns it into Nomad's own schema language.
type Block struct {
	Name   string
	Doc    string
	Attrs  []Attr
	Blocks []Block // each may be left out, and stands at most once
}

// Schema describes the lifecycle block.
func Schema() Block {
	b := Block{Name: "lifecycle", Doc: "hooks and budgets of the task", Attrs: []Attr{
		{"budget", String, `"separate" (default): the kill timeout begins with the signal; "shared": hooks eat into it`},
		{"stop_budget", String, "longest time of a whole stop; lowers the driver's own cap"},
		{"watchdog", String, "longest silence between two WATCHDOG=1 of the application; it is killed then"},
		{"max_replicas", Number, "highest count that the application may scale its group to; without it, it may not"},
	}}
	for _, spec := range Hooks() {
		b.Blocks = append(b.Blocks, hookSchema(spec))
	}
	return b
}

func hookSchema(spec Spec) Block {
	b := Block{Name: string(spec.Name), Doc: spec.Called}
	for _, kind := range spec.Kinds {
		switch kind {
		case KindExec:
			b.Attrs = append(b.Attrs, Attr{"exec", StringList, "command, run inside the task"})
		case KindHTTP:
			b.Attrs = append(b.Attrs, Attr{"http", String, `"METHOD /path" on the application's socket, or "METHOD http://127.0.0.1:PORT/path"`})
		case KindSleep:
			b.Attrs = append(b.Attrs, Attr{"sleep", String, "only waits"})
		case KindSignal:
			b.Attrs = append(b.Attrs, Attr{"signal", String, "signal to the task, such as SIGUSR1"})
		case KindTCP:
			b.Attrs = append(b.Attrs, Attr{"tcp_port", Number, "waits until this port has no established connection"})
		case KindNotify:
			b.Attrs = append(b.Attrs, Attr{"notify", Bool, "waits for READY=1 on NOTIFY_SOCKET"})
		}
	}
	b.Attrs = append(b.Attrs, Attr{"timeout", String, "default " + spec.Timeout.String()}, Attr{"on_failure", String, policyList(spec.Policies) + "; default " + string(spec.OnFailure)})
	switch spec.Name {
	case Ready, Drain:
		b.Attrs = append(b.Attrs, Attr{"interval", String, "between two questions"})
	case OnConfig:
		b.Attrs = append(b.Attrs, Attr{"on_signal", String, "the signal that the hook takes the place of; default SIGHUP"})
	case SaveState:
		b.Attrs = append(b.Attrs,
			Attr{"store", String, `"alloc" (default), "consul-kv", "nomad-var" or "dir:/path"`},
			Attr{"max_size", String, "such as 8MB, the default; at most 64MB"},
			Attr{"every", String, "saves a running task again and again, for the loss of a node"},
			Attr{"app_version", String, "kept beside the state; the application may refuse an older one"})
	}
	return b
}
