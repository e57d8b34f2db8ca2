#!/bin/sh
# Puts a mistake into the master's core, one patch at a time, and fails unless the simulator notices each.
# The core and its simulator import nothing of ours, so a crate is made of them alone: a mutant costs seconds.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
crate="$root/target/mutants/crate"
log="$root/target/mutants/log"

rm -rf "$crate"
mkdir -p "$crate/src/master"
cp "$root/Cargo.lock" "$crate/"
cp -R "$root"/src/master/core* "$root"/src/master/sim* "$crate/src/master/"
echo '#[cfg(test)] mod master { mod core; mod sim; }' >"$crate/src/lib.rs"
{
    printf '[package]\nname = "mutant"\nedition = "2024"\n\n[workspace]\n\n[dependencies]\n'
    grep -E '^(serde|serde_json) = ' "$root/Cargo.toml"
    # A mutant is built once and plays thousands of worlds.
    printf '\n[profile.dev]\nopt-level = 1\ndebug = false\n'
} >"$crate/Cargo.toml"
export CARGO_TARGET_DIR="$root/target/mutants/build" RUSTFLAGS="--allow warnings"
cd "$crate"

builds() { cargo test --quiet --no-run >"$log" 2>&1; }
# A mutant that spins is caught as well.
passes() { timeout 120 cargo test --quiet >"$log" 2>&1; }

if ! builds || ! passes; then
    echo "without a mutant: the simulator fails already, see $log"
    exit 1
fi
echo "without a mutant: passes"

failed=0
for mutant in "$root"/tests/mutants/*.patch; do
    cp -R "$root"/src/master/core* src/master/
    if ! patch --silent --batch --strip=1 --no-backup-if-mismatch <"$mutant" >"$log" 2>&1; then
        verdict="does not apply any more"
    elif ! builds; then
        verdict="does not build any more"
    # A few worlds catch most; only the mutants that pass them meet all.
    elif (export SEEDS=20; passes) && passes; then
        verdict="SURVIVES"
    else
        verdict=""
    fi
    printf '%s: %s\n' "$(basename "$mutant" .patch)" "${verdict:-caught}"
    [ -z "$verdict" ] || failed=1
done
exit "$failed"
