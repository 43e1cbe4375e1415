# lockstep: the targets are the interface; `make help` lists them.
GO      ?= go
PREFIX  ?= /usr/local
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.release=$(VERSION)
FUZZTIME ?= 20s

.PHONY: help run test race mutants sim soak crashes torture bench fuzz lint docs fmt build install clean clients tidy

help: ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/lockstepd and bin/lockstepctl
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/lockstepd ./cmd/lockstepctl

run: build ## the main job: three nodes, a device over NBD, a node killed and resynced; stays until Ctrl-C
	$(GO) build -o bin/ ./cmd/internal/demo
	@[ ! -t 0 ] || set -m; bin/demo -bin bin # -m: Ctrl-C ends the demo, in order, and is no failure of make

test: clients lint ## lint, then every suite: unit, in-process clusters, real binaries and clients
	$(GO) test -timeout 13m ./...
	$(GO) test -tags mutate ./server/simtest -run 'Mutants/(none|unordered|drop-on-equal|forget-away|skip-reconcile|answer-before-generation|flush-unsynced)$$'

race: ## the unit and in-process suites under the race detector
	$(GO) test -race -timeout 30m $$($(GO) list ./... | grep -v /cmd)

lint: ## gofmt, vet, staticcheck, go fix -diff
	@test -z "$$(gofmt -l cmd ctl rpc daemon server | tee /dev/stderr)"
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) fix -diff ./...

docs: ## write the manual pages and the command references anew
	$(GO) generate ./ctl/docs
	$(GO) test ./cmd -run TestReferenceIsUpToDate -update

fmt: ## gofmt -w
	gofmt -w cmd ctl rpc daemon server

fuzz: ## every fuzz target for FUZZTIME each (default 20s)
	.ci/fuzz $(FUZZTIME)

mutants: ## deliberate faults of the write path, each of which the simulator has to catch
	$(GO) test -tags mutate ./server/simtest -run Mutants -v -timeout 60m

sim: ## SEEDS (default 1000) random histories in virtual time in which faults pile up; DISKS=N: all of N disks; LOGS=DIR: keeps what those that fail have logged
	$(GO) test ./server/simtest -run 'Torture|Storm|Tempest|Silently|Sequence$$|Remnant|QuorumOff|Policies' -timeout 60m -wild -seeds $(or $(SEEDS),1000) $(if $(DISKS),-disks $(DISKS)) $(if $(LOGS),-logs $(abspath $(LOGS)))

soak: ## 32 nodes with random cuts, stops and kills for SEEDS (default 20) seeds, and detection at longer tick times
	$(GO) test ./server/messenger -run 'TestSoak|TestStopped' -timeout 60m -v -long -seeds $(or $(SEEDS),20)

crashes: clients ## CRASHES (default 50) of the primary's daemon under fio with verification; SEED=N replays one
	$(if $(SEED),LOCKSTEP_SEED=$(SEED)) $(GO) test ./cmd -run '^TestCrashLoop$$' -count 1 -v -timeout 60m -crashes $(or $(CRASHES),50)

torture: ## ROUNDS (default 10) of a real kernel whose daemon restarts and whose host is killed in mid-write; SEED=N replays one
	@.ci/torture $(or $(ROUNDS),10) $(SEED)

bench: build clients ## lockstep against nbdkit and qemu's quorum, side by side; benchmarks of the links, the control plane, start and restart
	.ci/bench

install: build ## install the two binaries and their manual pages under PREFIX (default /usr/local)
	install -D -m 0755 bin/lockstepd $(DESTDIR)$(PREFIX)/sbin/lockstepd
	install -D -m 0755 bin/lockstepctl $(DESTDIR)$(PREFIX)/bin/lockstepctl
	install -D -m 0644 ctl/docs/lockstepctl.1 $(DESTDIR)$(PREFIX)/share/man/man1/lockstepctl.1
	install -D -m 0644 ctl/docs/lockstepd-commands.7 $(DESTDIR)$(PREFIX)/share/man/man7/lockstepd-commands.7

clean: ## remove what build made
	rm -rf bin

clients: ## see to it that the real NBD clients and ovs-appctl are there, or say what will be skipped
	@.ci/clients

tidy: ## go mod tidy; fails if it changed anything
	$(GO) mod tidy -diff
