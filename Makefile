# `make demo` and `make test` are all that a newcomer needs; both do their own set-up.

RETINUE := bin/retinue
# The binary runs in images FROM scratch and in chroots, so it must be static.
BUILD   := CGO_ENABLED=0 go build -trimpath -ldflags '-s -w'
SOURCES := $(shell find . -path ./tests -prune -o -path ./plugins -prune -o -path ./bin -prune -o \( -name '*.go' -o -name '*.hcl' -o -name go.mod -o -name go.sum \) -print)

.PHONY: help build plugin tools demo clean-demo test check unit e2e bench faults faults-queue faults-lifecycle generate clean

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: $(RETINUE) ## the multi-call binary, and beside it the broker, the elector alone and the coordinator with every broker, in bin/

$(RETINUE): $(SOURCES)
	@mkdir -p bin
	$(BUILD) -o $@-broker ./cmd/retinue-broker
	$(BUILD) -o $@-elector ./cmd/retinue-elector
	$(BUILD) -o $@-coordinator ./cmd/retinue-coordinator
	$(BUILD) -o $@ ./cmd/retinue

plugin: bin/retinue-driver ## the task-driver plugin, in bin/: retinue dev and the tests use it from there

# One set of flags for all that links Nomad's drivers: they are 800 packages, and compiled once.
PLUGINFLAGS := -trimpath

# The inner process must be a cgo build: without, the exec driver would not isolate.
bin/retinue-driver: $(shell find plugins internal/lifecycle -name '*.go' -o -name go.mod -o -name go.sum)
	@mkdir -p bin
	cd plugins && CGO_ENABLED=1 go build $(PLUGINFLAGS) -ldflags '-s -w' -o ../bin/retinue-inner ./cmd/retinue-inner
	cd plugins && $(BUILD) -o ../$@ ./cmd/retinue-driver

tools: $(RETINUE) ## Nomad and Consul: from PATH where new enough, else built once into the user's cache
	$(RETINUE) tools

demo: $(RETINUE) ## leader election on a local cluster, with faults, in about a minute
	$(RETINUE) demo leader-election

clean-demo: $(RETINUE) ## remove the local cluster and all that it left
	$(RETINUE) dev down

test: check unit e2e ## everything that continuous integration runs
	@if [ -s bin/tried-twice-unit ] || [ -s bin/tried-twice-e2e ]; then echo "failed once, and passed when tried again:"; cat bin/tried-twice-*; fi

check: bin/staticcheck ## formatting, vet, staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); [ -z "$$unformatted" ] || { echo "gofmt would change:"; echo "$$unformatted"; exit 1; }
	go vet ./...
	cd tests && go vet ./...
	cd tests/bench/etcd && go vet ./...
	cd gather/example && go vet ./...
	cd plugins && go vet $(PLUGINFLAGS) ./...
	bin/staticcheck ./...
	cd tests && ../bin/staticcheck ./...
	cd gather/example && ../../bin/staticcheck ./...
	cd plugins && ../bin/staticcheck ./driver/... ./sigpipe/... ./cmd/retinue-driver # the inner process would have it read all of Nomad

bin/staticcheck: tests/go.mod
	@mkdir -p bin
	cd tests && go build -o ../$@ honnef.co/go/tools/cmd/staticcheck

unit: $(RETINUE) tools bin/gotestsum ## unit, policy and conformance tests (with a real Consul), with the race detector
	@rm -f bin/tried-twice-*
	RETINUE_TEST_CONSUL=$$($(RETINUE) tools | awk '$$1 == "consul" {print $$3}') $(call gotest,unit) -race -p 1 -timeout 30m
	cd gather/example && $(call gotest,example) -race
	cd plugins && $(call gotest,driver,./driver/... ./sigpipe/...) -race
	cd plugins && $(call gotest,inner,./inner/...) $(PLUGINFLAGS)

e2e: $(RETINUE) plugin tools bin/gotestsum ## end-to-end tests on real Nomad, Consul, Docker and Chromium
	inputs=$$( $(inputs) ) && cd tests && RETINUE_BIN=$(CURDIR)/$(RETINUE) RETINUE_TEST_INPUTS=$$inputs $(call gotest,e2e) -race -p 1 -timeout 40m

# What failed is tried once more, and told all the same: a second try tells a hiccup of the machine from a defect. Many failures
# and data races are not tried again. Skips are listed and counted at the end.
gotest = $(CURDIR)/bin/gotestsum --format pkgname --format-hide-empty-pkg --packages "$(or $(2),./...)" \
	--rerun-fails=1 --rerun-fails-max-failures=5 --rerun-fails-abort-on-data-race --rerun-fails-run-root-test --rerun-fails-report=$(CURDIR)/bin/tried-twice-$(1) --jsonfile $(CURDIR)/bin/test-$(1).json --

# All that the end-to-end tests run, and what they find on the machine: a result that `go test` has kept is of the same.
inputs = (cat bin/retinue bin/retinue-*; git ls-files -z --cached --others --exclude-standard | xargs -0 cat 2>/dev/null; \
	bin/retinue tools; docker version; command -v chromium terraform consul nomad node python3) 2>&1 | sha256sum | cut -c1-16

bin/gotestsum: tests/go.mod
	@mkdir -p bin
	cd tests && go build -o ../$@ gotest.tools/gotestsum

bench: $(RETINUE) plugin tools ## the patterns beside their peers, in one run; writes BENCHMARKS.md and docs/plots (some forty minutes)
	cd tests && RETINUE_BIN=$(CURDIR)/$(RETINUE) go run ./bench

faults: $(RETINUE) tools ## ten thousand seeded faults against leader election, judged by its history (some 40 minutes)
	cd tests && RETINUE_BIN=$(CURDIR)/$(RETINUE) go run ./campaign -faults 10000 -minutes 60 -out ../docs/reports/leader-election-faults.md

faults-queue: ## a hundred thousand items and hundreds of kills on each broker of the work queue, judged by their history (some 50 minutes)
	cd tests && go run ./queuefaults -seed 20261129 -items 100000 -kills 200 -minutes 15 -out ../docs/reports/work-queue-faults.md

faults-lifecycle: $(RETINUE) plugin tools ## hundreds of tasks under kills of plugin, executor and agent in every state, and a hundred node drains (some 20 minutes)
	cd tests && RETINUE_BIN=$(CURDIR)/$(RETINUE) go run ./driverfaults -seed 20261129 -salvos 24 -drains 100 -out ../docs/reports/lifecycle-faults.md

generate: ## refresh what is generated: module copies of jobspecs, golden files
	cd tests && go generate ./...

clean: ## remove what make built here
	rm -rf bin
