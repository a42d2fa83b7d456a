package drivercluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Process is a process of this machine.
type Process struct {
	PID, Parent int
	Args        []string
}

// Processes lists what runs. Kernel threads and zombies have no arguments, and are left out.
func Processes() ([]Process, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var out []Process
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(cmdline) == 0 {
			continue // it has ended
		}
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		if len(fields) < 2 {
			continue
		}
		parent, err := strconv.Atoi(fields[1])
		if err != nil {
			return nil, fmt.Errorf("%s/stat: %w", dir, err)
		}
		out = append(out, Process{pid, parent, strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")})
	}
	return out, nil
}

// Below lists the descendants of a process.
func Below(all []Process, pid int) (out []Process) {
	for _, p := range all {
		if p.Parent == pid && p.PID != pid {
			out = append(append(out, p), Below(all, p.PID)...)
		}
	}
	return out
}

// Program is the name of the process's program.
func (p Process) Program() string { return filepath.Base(p.Args[0]) }

// Plugin finds the decorator and the inner process of a driver among processes; ok says that both are there.
func Plugin(among []Process, driver string) (decorator, inner Process, ok bool) {
	for _, p := range among {
		if len(p.Args) != 5 || p.Program() != "retinue-"+driver {
			continue
		}
		for _, q := range among {
			if q.Parent == p.PID && len(q.Args) == 2 && q.Program() == "retinue-inner" && q.Args[1] == driver {
				return p, q, true
			}
		}
	}
	return Process{}, Process{}, false
}

// Helpers are the processes that a driver keeps for each of its tasks, of Nomad's own program or of ours: executor or docker_logger.
func Helpers(among []Process, driver string) (out []Process) {
	role := "executor"
	if driver == "docker" {
		role = "docker_logger"
	}
	for _, p := range among {
		if len(p.Args) > 1 && p.Args[1] == role {
			out = append(out, p)
		}
	}
	return out
}

// Memory is what a process has of the machine's: resident, and its proportional share of what it shares, in bytes.
type Memory struct{ RSS, PSS int64 }

// MemoryOf reads the memory of a process.
func MemoryOf(pid int) (m Memory, err error) {
	name := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
	data, err := os.ReadFile(name)
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		to := map[string]*int64{"Rss:": &m.RSS, "Pss:": &m.PSS}[fields[0]]
		if to == nil {
			continue
		}
		kb, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return m, fmt.Errorf("%s: %w", name, err)
		}
		*to = kb << 10
	}
	if m.PSS == 0 {
		return m, fmt.Errorf("%s has no Pss", name)
	}
	return m, nil
}
