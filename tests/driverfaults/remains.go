package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"retinue/tests/drivercluster"
)

// remains lists what is left of an allocation on this machine: processes, containers, mounts and control groups.
func (w *world) remains(alloc string) (left []string, pids []int, err error) {
	all, err := drivercluster.Processes()
	if err != nil {
		return nil, nil, err
	}
	for _, p := range all {
		if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.PID)); strings.Contains(strings.Join(p.Args, " "), alloc) || err == nil && strings.Contains(string(env), "NOMAD_ALLOC_ID="+alloc) {
			left, pids = append(left, fmt.Sprintf("process %d %s", p.PID, clip(strings.Join(p.Args, " ")))), append(pids, p.PID)
		}
	}
	if w.cluster.Plan().DockerSocket != "" {
		containers, err := containersOf(alloc)
		if err != nil {
			return nil, nil, err
		}
		for _, c := range containers {
			left = append(left, "container "+c[:12])
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); strings.Contains(fields[1], alloc) {
			left = append(left, "mount "+fields[1])
		}
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // a group that has just gone
		}
		if strings.Contains(d.Name(), alloc) {
			left = append(left, "control group "+path)
			return fs.SkipDir
		}
		return nil
	})
	return left, pids, err
}

func clip(s string) string {
	if len(s) > 120 {
		return s[:120] + "..."
	}
	return s
}

// clean kills what a finding has told of, so that it is told once.
func clean(pids []int) {
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
}

// stray lists the helper processes and plugins of the cluster's programs that belong to no agent and to no task, when no task runs.
func (w *world) stray() (left []string, err error) {
	all, err := drivercluster.Processes()
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		if !strings.HasPrefix(p.Args[0], w.cluster.Dir()+"/") || len(p.Args) < 2 {
			continue
		}
		switch p.Args[1] {
		case "executor", "docker_logger":
			left = append(left, fmt.Sprintf("process %d %s", p.PID, clip(strings.Join(p.Args, " "))))
		}
	}
	plugins := map[string]int{}
	for _, p := range all {
		if strings.HasPrefix(p.Args[0], w.cluster.Dir()+"/") && len(p.Args) == 5 && strings.HasPrefix(p.Program(), "retinue-") {
			plugins[p.Program()]++
		}
	}
	for program, n := range plugins {
		if n > 2 { // one for each client
			left = append(left, fmt.Sprintf("%d processes %s for two clients", n, program))
		}
	}
	return left, nil
}
