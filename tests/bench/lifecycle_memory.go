package main

import (
	"context"
	"fmt"
	"math"
	"time"

	"retinue/tests/drivercluster"
)

// memoryTasks of each driver run on a client while memory is measured.
const memoryTasks = 4

// memories are what the drivers' processes have while tasks run, of each driver.
type memories struct {
	drivers            []string
	plugin             map[string][2]drivercluster.Memory // decorator and inner process
	decorated, builtIn map[string]drivercluster.Memory    // the helper of one task, on average
}

// memory runs tasks of every driver on both clients at once, and reads what the processes have.
func (l *lifecycleRig) memory(ctx context.Context, drivers []string) (*memories, error) {
	m := &memories{drivers: drivers, plugin: map[string][2]drivercluster.Memory{}, decorated: map[string]drivercluster.Memory{}, builtIn: map[string]drivercluster.Memory{}}
	for _, client := range []string{l.plugin, l.builtIn} {
		for _, driver := range drivers {
			id := "memory-" + client + "-" + driver
			if _, _, err := l.cluster.Nomad.Jobs().Register(l.taskJob(id, driver, client, memoryTasks, nil), nil); err != nil {
				return nil, err
			}
			defer l.ended(id)
			if _, err := l.serving(ctx, id, memoryTasks); err != nil {
				return nil, err
			}
		}
	}
	if err := pause(ctx, 10*time.Second); err != nil { // what a start needs is given back
		return nil, err
	}
	all, err := drivercluster.Processes()
	if err != nil {
		return nil, err
	}
	for _, client := range []string{l.plugin, l.builtIn} {
		agent, err := l.cluster.Agent("nomad-" + client)
		if err != nil {
			return nil, err
		}
		below, of := drivercluster.Below(all, agent.PID), m.builtIn
		for _, driver := range drivers {
			among := below
			if client == l.plugin {
				decorator, inner, ok := drivercluster.Plugin(below, driver)
				if !ok {
					return nil, fmt.Errorf("no plugin of %s below the agent of %s", driver, client)
				}
				var both [2]drivercluster.Memory
				for i, pid := range []int{decorator.PID, inner.PID} {
					if both[i], err = drivercluster.MemoryOf(pid); err != nil {
						return nil, err
					}
				}
				m.plugin[driver] = both
				among, of = drivercluster.Below(all, inner.PID), m.decorated
			}
			if of[driver], err = meanMemory(drivercluster.Helpers(among, driver), driver, client == l.plugin); err != nil {
				return nil, fmt.Errorf("%s: %w", client, err)
			}
		}
	}
	return m, nil
}

// meanMemory is the average of the helpers of a driver. Below an agent the executors of exec and raw_exec are not told apart.
func meanMemory(helpers []drivercluster.Process, driver string, apart bool) (mean drivercluster.Memory, err error) {
	want := memoryTasks
	if !apart && driver != "docker" {
		want = 2 * memoryTasks
	}
	if len(helpers) != want {
		return mean, fmt.Errorf("%d helpers of %s tasks, want %d", len(helpers), driver, want)
	}
	for _, h := range helpers {
		one, err := drivercluster.MemoryOf(h.PID)
		if err != nil {
			return mean, err
		}
		mean.RSS, mean.PSS = mean.RSS+one.RSS/int64(len(helpers)), mean.PSS+one.PSS/int64(len(helpers))
	}
	return mean, nil
}

// ended stops a job and waits until nothing of it runs.
func (l *lifecycleRig) ended(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, _, _ = l.cluster.Nomad.Jobs().Deregister(id, false, nil)
	if err := eventually(ctx, time.Minute, id+" ends", func(context.Context) error {
		stubs, _, err := l.cluster.Nomad.Jobs().Allocations(id, true, nil)
		if err != nil {
			return err
		}
		for _, stub := range stubs {
			if stub.ClientStatus == "running" || stub.ClientStatus == "pending" {
				return fmt.Errorf("%s is %s", stub.ID, stub.ClientStatus)
			}
		}
		return nil
	}); err != nil {
		l.say("  %v", err)
	}
	_, _, _ = l.cluster.Nomad.Jobs().Deregister(id, true, nil)
}

// report writes the tables and the target.
func (m *memories) report(report *Report) {
	perTask := Table{Title: "Memory of a task", Explain: fmt.Sprintf("The helper process that the driver keeps beside each task (the executor; for docker the docker_logger), the average of %d tasks. With the plugin it is `retinue-inner`, else the program of Nomad. PSS counts shared pages by share. Nomad's logmon, which each task has besides, is the same for both.", memoryTasks),
		Head: []string{"driver", "decorated RSS", "decorated PSS", "built-in RSS", "built-in PSS", "PSS saved"}}
	perNode := Table{Title: "Memory of a client", Explain: fmt.Sprintf("What the plugin adds, while %d tasks of each driver run. *Repaid at* is the number of tasks of that driver whose helpers save as much.", memoryTasks),
		Head: []string{"driver", "retinue-driver RSS", "PSS", "retinue-inner RSS", "PSS", "PSS in all", "repaid at"}}
	for _, driver := range m.drivers {
		d, b, p := m.decorated[driver], m.builtIn[driver], m.plugin[driver]
		saved, added := b.PSS-d.PSS, p[0].PSS+p[1].PSS
		repaid := "never"
		if saved > 0 {
			repaid = fmt.Sprintf("%.0f tasks", math.Ceil(float64(added)/float64(saved)))
		}
		perTask.Rows = append(perTask.Rows, []string{driver, megabytes(d.RSS), megabytes(d.PSS), megabytes(b.RSS), megabytes(b.PSS), megabytes(saved)})
		perNode.Rows = append(perNode.Rows, []string{driver, megabytes(p[0].RSS), megabytes(p[0].PSS), megabytes(p[1].RSS), megabytes(p[1].PSS), megabytes(added), repaid})
		report.Targets = append(report.Targets, Target{What: "memory of a task beside the built-in driver's helper, " + driver, Want: "less (PSS)", Measured: megabytes(d.PSS) + ", built-in " + megabytes(b.PSS), Met: d.PSS < b.PSS})
		report.Figures = append(report.Figures, Figure{Part: "memory", Contender: plainName, Config: driver, Values: map[string]float64{"task_pss": float64(d.PSS), "task_rss": float64(d.RSS), "driver_pss": float64(p[0].PSS), "inner_pss": float64(p[1].PSS)}},
			Figure{Part: "memory", Contender: builtInName, Config: driver, Values: map[string]float64{"task_pss": float64(b.PSS), "task_rss": float64(b.RSS)}})
	}
	report.Tables = append(report.Tables, perTask, perNode)
}
