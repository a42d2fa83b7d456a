package lifecycle

import (
	"encoding/json"
	"strings"
)

// MetaPrefix begins the names of meta entries that configure a lifecycle: the same hooks for jobs that must also run where
// the driver is not.
const MetaPrefix = "retinue_lifecycle_"

const nomadMeta = "NOMAD_META_"

// FromMeta reads a lifecycle from the environment that Nomad makes of meta: retinue_lifecycle_HOOK_ATTRIBUTE and
// retinue_lifecycle_ATTRIBUTE. Lists are JSON (["nodetool", "drain"]) or words between spaces. Without any such entry it
// gives nil. The error is Problems.
func FromMeta(env map[string]string) (*Config, error) {
	p := &problems{}
	schema := Schema()
	root := map[string]any{}
	for name, value := range env {
		key, ok := strings.CutPrefix(name, nomadMeta)
		if !ok {
			continue
		}
		// Nomad gives every entry twice, as it was written and in capitals; either may be what the job has.
		key, ok = strings.CutPrefix(strings.ToLower(key), MetaPrefix)
		if !ok {
			continue
		}
		place, path := metaPlace(schema, key)
		if place == nil {
			root[key] = value
			continue
		}
		var typed any = value
		if place.Type == StringList {
			typed = metaList(p, path, value)
		}
		hook, attr, inHook := strings.Cut(path, ".")
		if !inHook {
			root[hook] = typed
			continue
		}
		sub, _ := root[hook].(map[string]any)
		if sub == nil {
			sub = map[string]any{}
			root[hook] = sub
		}
		sub[attr] = typed
	}
	if len(root) == 0 {
		return nil, nil
	}
	cfg := decodeBlock(p, root)
	if err := p.err(); err != nil {
		return nil, err
	}
	return cfg, nil
}

// metaPlace finds which attribute a key of meta stands for. Names of hooks have underscores of their own. Hooks come first;
// restore_state has no attribute that must be set, so its bare name stands for the whole block.
func metaPlace(schema Block, key string) (*Attr, string) {
	for _, b := range schema.Blocks {
		rest, ok := strings.CutPrefix(key, b.Name+"_")
		if !ok {
			continue
		}
		for i := range b.Attrs {
			if b.Attrs[i].Name == rest {
				return &b.Attrs[i], b.Name + "." + rest
			}
		}
		// An attribute that the hook does not have: the decoder says so, with the path of the hook.
		return &Attr{Name: rest, Type: String}, b.Name + "." + rest
	}
	for i := range schema.Attrs {
		if schema.Attrs[i].Name == key {
			return &schema.Attrs[i], key
		}
	}
	return nil, ""
}

func metaList(p *problems, path, value string) []string {
	if !strings.HasPrefix(strings.TrimSpace(value), "[") {
		return strings.Fields(value)
	}
	var list []string
	if err := json.Unmarshal([]byte(value), &list); err != nil {
		p.add("lifecycle."+path, `write JSON, ["nodetool", "drain"], or words between spaces`, "is %q", value)
		return nil
	}
	return list
}

// Merge returns the block where the job has one, else what meta says: one of the two counts, never a mix.
func Merge(block, meta *Config) *Config {
	if block != nil {
		return block
	}
	return meta
}
