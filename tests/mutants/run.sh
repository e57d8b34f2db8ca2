#!/bin/sh
# Breaks the master's mind in ways that people do, one patch at a time, and fails unless the simulator notices each.
# Everything happens in a copy under target/mutants; what it depends on is compiled once for both.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
export CARGO_TARGET_DIR="$root/target"
tree="$root/target/mutants/tree"
log="$root/target/mutants/log"

rm -rf "$tree"
mkdir -p "$tree"
(cd "$root" && git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$tree")
cd "$tree"
# Under another name: cargo tells apart what it has built of a workspace by names, not by folders, and a later `cargo test`
# of ours would run a mutant.
sed -i '0,/^name = "oxicorn"$/s//name = "oxicorn-mutant"/' Cargo.toml

builds() { cargo test --quiet --lib --no-run >"$log" 2>&1; }
# A mutant that spins is caught as well.
passes() { timeout 120 cargo test --quiet --lib master::sim >"$log" 2>&1; }

if ! builds || ! passes; then
    echo "without a mutant: the simulator fails already, see $log"
    exit 1
fi
echo "without a mutant: passes"

failed=0
for mutant in "$root"/tests/mutants/*.patch; do
    cp -R "$root/src/master/core.rs" "$root/src/master/core" src/master/
    if ! patch --silent --batch --strip=1 --no-backup-if-mismatch <"$mutant" >"$log" 2>&1; then
        verdict="does not apply any more"
    elif ! builds; then
        verdict="does not build any more"
    # A few worlds catch most; only who survives them meets all.
    elif (export SEEDS=20; passes) && passes; then
        verdict="SURVIVES"
    else
        verdict=""
    fi
    printf '%s: %s\n' "$(basename "$mutant" .patch)" "${verdict:-caught}"
    [ -z "$verdict" ] || failed=1
done
exit "$failed"
