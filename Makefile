# `make demo` and `make test` are all that a newcomer needs; both do their own set-up.

RETINUE := bin/retinue
# The binary runs in images FROM scratch and in chroots, so it must be static.
BUILD   := CGO_ENABLED=0 go build -trimpath -ldflags '-s -w'
SOURCES := $(shell find . -path ./tests -prune -o -path ./bin -prune -o \( -name '*.go' -o -name '*.hcl' -o -name go.mod -o -name go.sum \) -print)

.PHONY: help build tools demo clean-demo test check unit e2e bench faults faults-queue generate clean

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: $(RETINUE) ## the multi-call binary, and beside it the broker and the coordinator with every broker, in bin/

$(RETINUE): $(SOURCES)
	@mkdir -p bin
	$(BUILD) -o $@-broker ./cmd/retinue-broker
	$(BUILD) -o $@-coordinator ./cmd/retinue-coordinator
	$(BUILD) -o $@ ./cmd/retinue

tools: $(RETINUE) ## Nomad and Consul: from PATH where new enough, else built once into the user's cache
	$(RETINUE) tools

demo: $(RETINUE) ## leader election on a local cluster, with faults, in about a minute
	$(RETINUE) demo leader-election

clean-demo: $(RETINUE) ## remove the local cluster and all that it left
	$(RETINUE) dev down

test: check unit e2e ## everything that continuous integration runs

check: bin/staticcheck ## formatting, vet, staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); [ -z "$$unformatted" ] || { echo "gofmt would change:"; echo "$$unformatted"; exit 1; }
	go vet ./...
	cd tests && go vet ./...
	cd tests/bench/etcd && go vet ./...
	cd gather/example && go vet ./...
	bin/staticcheck ./...
	cd tests && ../bin/staticcheck ./...
	cd gather/example && ../../bin/staticcheck ./...

bin/staticcheck: tests/go.mod
	@mkdir -p bin
	cd tests && go build -o ../$@ honnef.co/go/tools/cmd/staticcheck

unit: $(RETINUE) tools ## unit, policy and conformance tests (with a real Consul), with the race detector
	RETINUE_TEST_CONSUL=$$($(RETINUE) tools | awk '$$1 == "consul" {print $$3}') go test -race -p 1 -timeout 30m ./...
	cd gather/example && go test -race ./...

e2e: $(RETINUE) tools ## end-to-end tests on real Nomad, Consul, Docker and Chromium
	@rm -f bin/skips
	cd tests && RETINUE_BIN=$(CURDIR)/$(RETINUE) RETINUE_TEST_SKIPS=$(CURDIR)/bin/skips go test -race -count=1 -p 1 -timeout 40m ./...
	@if [ -s bin/skips ]; then echo "not tried on this machine:"; sort bin/skips | uniq -c; else echo "nothing was skipped"; fi

bench: $(RETINUE) tools ## the patterns beside their peers, in one run; writes BENCHMARKS.md and docs/plots (some twenty minutes)
	cd tests && RETINUE_BIN=$(CURDIR)/$(RETINUE) go run ./bench

faults: $(RETINUE) tools ## ten thousand seeded faults against leader election, judged by its history (some 40 minutes)
	cd tests && RETINUE_BIN=$(CURDIR)/$(RETINUE) go run ./campaign -faults 10000 -minutes 60 -out ../docs/reports/leader-election-faults.md

faults-queue: ## a hundred thousand items and hundreds of kills on each broker of the work queue, judged by their history (some 50 minutes)
	cd tests && go run ./queuefaults -seed 20261129 -items 100000 -kills 200 -minutes 15 -out ../docs/reports/work-queue-faults.md

generate: ## refresh what is generated: module copies of jobspecs, golden files
	cd tests && go generate ./...

clean: ## remove what make built here
	rm -rf bin
