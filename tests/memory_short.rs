//! Promise: the log warns before a replacement that the machine may have no memory for. It gives the figures and the
//! remedy, and it does not repeat itself.

use crate::common::{Cgroup, Launch, PATIENCE, field, get};

const MIB: u64 = 1 << 20;

#[test]
fn a_replacement_that_may_not_fit_is_announced_once() {
    let cgroup = Cgroup::make(256 * MIB);
    let wrapper = cgroup.wrapper();
    let launch = Launch::new().set("workers.count", "1");
    let mut supervisor = launch.through(&wrapper.each_ref().map(String::as_str)).serving(1);
    supervisor.assert_reload(0, &["generation 2 serves"]);
    assert_eq!(supervisor.log().count("memory_short"), 0, "two small workers fit");

    for generation in ["generation 3 serves", "generation 4 serves"] {
        assert_eq!(get(supervisor.address(), "/debug/allocate/160").status, 200);
        supervisor.assert_reload(0, &[generation]);
    }
    let told = supervisor.wait_log("memory_short", 1, PATIENCE);
    let number = |name: &str| field(&told[0], name).expect("a field").parse::<u64>().expect("a number");
    assert!((160 * MIB..192 * MIB).contains(&number("largest_bytes")), "{}", told[0]);
    assert!(number("free_bytes") < 96 * MIB, "{}", told[0]);
    // The master looks once a second at most, so the first of the two may be too close to the reload before it.
    assert!([3, 4].contains(&number("generation")), "{}", told[0]);
    assert_eq!((number("slot"), number("largest_slot")), (0, 0));
    let by = field(&told[0], "free_by").expect("a field");
    assert!(by.contains("/oxicorn-test-") && by.contains("/memory."), "{by}");
    assert!(told[0].contains("workers.overlap = false"), "{}", told[0]);
    assert_eq!(supervisor.log().count("memory_short"), 1);
    supervisor.stop();
}
