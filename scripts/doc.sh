#!/bin/bash
# Builds the code's own documentation, private items too, so links to them are fine; a
# broken link in it is an error.
set -euo pipefail
cd "$(dirname "$0")/.."

RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --quiet --locked --no-deps --document-private-items
echo "target/x86_64-unknown-linux-musl/doc/banger/index.html"
