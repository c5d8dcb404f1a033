# Short names for the scripts, which need no just. `just` alone lists them.

_list:
    @just --list

# Build build/bin/banger and its links
build:
    scripts/build.sh

# Set up and run every test
test *arguments:
    scripts/test.sh {{arguments}}

# Formatting, clippy, shellcheck
lint:
    scripts/test.sh --only lint

# The simulation alone, optimised: --seed N, --runs N, --depth N
sim *arguments:
    scripts/sim.sh {{arguments}}

# End to end with real guests
e2e *filter:
    scripts/test.sh --only e2e -- {{filter}}

# Interrupt every operation between any two steps
kill-matrix *arguments:
    scripts/kill-matrix.sh {{arguments}}

# A whole VM on a device-mapper snapshot, in a guest that plays the host
nested:
    scripts/nested.sh

# Keep 100 VMs busy, up to 24 at once: MINUTES WORKERS RECORDS SEED
soak *arguments:
    scripts/soak.sh {{arguments}}

# Try the built program as a user would
smoke:
    scripts/smoke.sh

# Measure start, exec and delete against a bare VMM
bench:
    scripts/bench.sh

# Assert that the built program is one static file under 12 MB
static: build
    scripts/static.sh

# Line coverage by file
coverage:
    scripts/coverage.sh

# The code's own documentation
doc:
    scripts/doc.sh
