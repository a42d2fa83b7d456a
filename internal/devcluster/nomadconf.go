package devcluster

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"text/template"
)

// Where a task with its own file system finds the retinue binary: chroot_env
// puts it there for exec, the image has it there for docker.
const (
	taskBinary = "/usr/local/bin/retinue"
)

// nomadView is what the template below needs.
type nomadView struct {
	Plan
	Node
	Agent       string
	HTTPAddrs   string
	ConsulAddr  netip.AddrPort
	ConsulToken string
	ConsulUI    string
	Peers       []string // server_join addresses
	Servers     []string // RPC addresses
	Expect      int
	Chroot      map[string]string
	ChrootKeys  []string
	Interface   string
	Gateway     netip.Addr
	ForTasks    netip.AddrPort
	PauseImage  string
	Decorated   []string // drivers
	PluginDir   string
	HTTP        netip.AddrPort
	HTTPPort    int
	RPC         netip.AddrPort
	RPCPort     int
	Serf        netip.AddrPort
	SerfPort    int
}

// renderNomad returns the configuration file of a node's Nomad agent. chroot is
// what tasks of the exec driver get as their file system.
func (p Plan) renderNomad(n Node, tokens Tokens, chroot map[string]string) ([]byte, error) {
	_, kind := kinds(n)
	v := nomadView{
		Plan: p, Node: n,
		Agent:      agentName(kind, n),
		HTTPAddrs:  joinAddrs(p.httpAddrs(n)),
		ConsulAddr: p.on(n.Addr, portConsulHTTP),
		ConsulUI:   fmt.Sprintf("http://%s/ui", p.on(localhost, portConsulHTTP)),
		Expect:     len(p.servers()),
		Chroot:     chroot,
		ChrootKeys: slices.Sorted(maps.Keys(chroot)),
		Interface:  "lo",
		Gateway:    n.Addr,
		ForTasks:   p.consulForTasks(n),
		PauseImage: PauseImage(),
		Decorated:  p.decorated(), PluginDir: p.pluginDir(),
		HTTP: p.on(n.Addr, portNomadHTTP), HTTPPort: p.port(portNomadHTTP),
		RPC: p.on(n.Addr, portNomadRPC), RPCPort: p.port(portNomadRPC),
		Serf: p.on(n.Addr, portNomadSerf), SerfPort: p.port(portNomadSerf),
	}
	if n.Bridge != nil {
		v.Interface, v.Gateway = n.Bridge.Name, n.Bridge.Gateway
	}
	for _, s := range p.servers() {
		v.Peers = append(v.Peers, p.on(s.Addr, portNomadSerf).String())
		v.Servers = append(v.Servers, p.on(s.Addr, portNomadRPC).String())
	}
	if p.ACL {
		v.ConsulToken = tokens.NomadClients
		if n.Server {
			v.ConsulToken = tokens.NomadServers
		}
	}
	tmpl, err := template.New("nomad").Funcs(template.FuncMap{"list": quotedList, "q": quote}).Parse(nomadTemplate)
	if err != nil {
		return nil, fmt.Errorf("nomad configuration: %w", err)
	}
	var out bytes.Buffer
	if err := tmpl.Execute(&out, v); err != nil {
		return nil, fmt.Errorf("nomad configuration of %s: %w", v.Agent, err)
	}
	return out.Bytes(), nil
}

func quote(v any) string { return fmt.Sprintf("%q", fmt.Sprint(v)) }

func quotedList(items []string) string {
	var quoted []string
	for _, s := range items {
		quoted = append(quoted, quote(s))
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

const nomadTemplate = `name                 = {{q .Name}}
data_dir             = {{q (.Plan.AgentDir .Agent)}}
bind_addr            = {{q .Addr}}
disable_update_check = true

# A stopped agent of a dev cluster looks like a crashed one, so that a restart
# finds it still a member; "retinue dev down" stops the jobs first.
leave_on_interrupt = false
leave_on_terminate = false

addresses {
  http = {{q .HTTPAddrs}}
}

advertise {
  http = {{q .HTTP}}
  rpc  = {{q .RPC}}
  serf = {{q .Serf}}
}

ports {
  http = {{.HTTPPort}}
  rpc  = {{.RPCPort}}
  serf = {{.SerfPort}}
}

telemetry {
  prometheus_metrics         = true
  disable_hostname           = true
  publish_allocation_metrics = true
  publish_node_metrics       = true
}

limits {
  http_max_conns_per_client = 2000
}

ui {
  enabled = true
  consul {
    ui_url = {{q .ConsulUI}}
  }
}
{{if .ACL}}
acl {
  enabled = true
}
{{end}}
consul {
  address = {{q .ConsulAddr}}
{{- if .ACL}}
  token   = {{q .ConsulToken}}

  service_identity {
    aud = ["consul.io"]
    ttl = "1h"
  }

  task_identity {
    aud = ["consul.io"]
    ttl = "1h"
  }
{{- end}}
}
{{if .Server}}
server {
  enabled          = true
  bootstrap_expect = {{.Expect}}
  raft_multiplier  = 1

  server_join {
    retry_join     = {{list .Peers}}
    retry_interval = "1s"
  }
}
{{else}}{{if .Decorated}}
plugin_dir = {{q .PluginDir}}
{{end}}
client {
  enabled   = true
  servers   = {{list .Servers}}
  alloc_dir = {{q (.Plan.AllocDir .Node)}}

  # All clients share one host: each has its own interface and ports.
  network_interface = {{q .Interface}}
  min_dynamic_port  = {{.MinPort}}
  max_dynamic_port  = {{.MaxPort}}

  # The disk is the host's; its fullness must not collect allocations early.
  gc_disk_usage_threshold  = 99
  gc_inode_usage_threshold = 99
{{with .Bridge}}
  bridge_network_name         = {{q .Name}}
  bridge_network_subnet       = {{q .Subnet}}
  bridge_network_hairpin_mode = true
{{- end}}
{{- if .CNIPath}}
  cni_path                    = {{q .CNIPath}}
{{- end}}

  meta {
    # How a task reaches the Consul agent of its own node.
    retinue_consul  = {{q .ForTasks}}
    retinue_gateway = {{q .Gateway}}
  }

  options = {
    # Asking for cloud metadata costs seconds where there is none, and env_aws
    # fails outright on some AWS_* variables.
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
{{- if not .DockerSocket}}
    "driver.denylist"      = "docker"
{{- end}}
  }
{{if .Chroot}}
  # The default hard-links some 150,000 files for an allocation.
  chroot_env = {
{{- range .ChrootKeys}}
    {{q .}} = {{q (index $.Chroot .)}}
{{- end}}
  }
{{- end}}
}
{{range .Decorated}}
# In the place of the agent's own driver, which runs behind it.
plugin {{q (print "retinue-" .)}} {
  args = ["-as", {{q .}}, {{q $.InnerProgram}}, {{q .}}]
{{- if eq . "docker"}}{{template "docker" $}}{{end}}
{{- if eq . "raw_exec"}}{{template "raw_exec" $}}{{end}}
{{- if eq . "exec"}}
  config {
{{- template "lifecycle" $}}
  }
{{- end}}
}
{{else}}
plugin "raw_exec" {
{{- template "raw_exec" .}}
}
{{if .DockerSocket}}
plugin "docker" {
{{- template "docker" .}}
}
{{end}}{{end}}{{end}}{{define "raw_exec"}}
  config {
    enabled = true
{{- template "lifecycle" .}}
  }
{{- end}}{{define "docker"}}
  config {
    endpoint         = {{q (print "unix://" .DockerSocket)}}
    allow_privileged = false
    infra_image      = {{q .PauseImage}}
    extra_labels     = ["job_name", "task_group_name", "task_name", "node_name"]

    volumes {
      enabled = true
    }

    # Images are local builds that nobody could pull again, and the reaper of one
    # client would remove the containers of another one on the same engine.
    gc {
      image = false
      dangling_containers {
        enabled = false
      }
    }
{{- template "lifecycle" .}}
  }
{{- end}}{{define "lifecycle"}}{{if .Decorated}}
    lifecycle {
      consul_address = {{q .ConsulAddr}}
      state_dirs     = [{{q .StateDir}}]
    }
{{- end}}{{end}}`
