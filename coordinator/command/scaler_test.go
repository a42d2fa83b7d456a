package command

import (
	"strings"
	"testing"

	"retinue/coordinator/scale"
	"retinue/internal/cli"
)

// One scaler has the queues of a job, each with limits of its own or with those of all; what does not fit together is told.
func TestScalerOfSeveralQueues(t *testing.T) {
	parse := func(line string) ([]scale.Config, error) {
		cmd, f := newScaler(Brokers{})
		if err := cmd.ParseFlags(strings.Fields(line)); err != nil {
			t.Fatal(err)
		}
		f.cfg.Job = "scans"
		return f.configs()
	}
	all, err := parse("--queue scans-ocr,scans-pack --group ocr,pack --max 50,4 --slots 2")
	if err != nil || len(all) != 2 || all[0].Queue != "scans-ocr" || all[0].Group != "ocr" || all[0].Max != 50 || all[1].Group != "pack" || all[1].Max != 4 || all[1].Slots != 2 || all[1].Min != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	if all, err = parse("--queue thumbs"); err != nil || len(all) != 1 || all[0].Group != "worker" || all[0].Max != 10 || all[0].Slots != 4 {
		t.Errorf("%+v, %v", all, err)
	}
	for line, want := range map[string]string{
		"":                                    "no queue named",
		"--queue a --min 5 --max 2":           "between 5 and 2 workers",
		"--queue a --min -1":                  "between -1 and 10 workers",
		"--queue a,b":                         "queue a with group worker, and queue b with group worker",
		"--queue a,a --group x,y":             "queue a with group x, and queue a with group y",
		"--queue a,b --group x,y --max 1,2,3": "2 queues, and 3 values of --max",
		"--queue a,b,c --group x,y":           "3 queues, and 2 values of --group",
		"--queue a,b --group x,y --slots 4,0": "0 slots",
	} {
		if _, err := parse(line); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", line, err, want)
		}
	}
	cmd, _ := newScaler(Brokers{})
	cmd.SetArgs(strings.Fields("--queue a --job j --max many"))
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), "many") {
		t.Errorf("%v", err)
	}
	cmd, _ = newScaler(Brokers{Schemes: "nats"})
	cmd.SetArgs(strings.Fields("--queue a --job j --load elsewhere:x"))
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	if code, _ := cli.Code(cmd.Execute()); code != cli.ExitUsage {
		t.Errorf("a wrong load: code %d", code)
	}
}
