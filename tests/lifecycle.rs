//! The main job on a real API server: declare, issue, limit, disable, expire, delete.

mod support;

use std::{sync::LazyLock, time::Instant};

use controlplane::Settings;
use support::{Cluster, Operator, access_key, subuser};

static STAGE: LazyLock<(Cluster, Operator)> = LazyLock::new(|| {
    let cluster = Cluster::start(Settings::default());
    let operator = cluster.operator("operator", &["--leader-election=false"]);
    (cluster, operator)
});

fn cluster() -> &'static Cluster {
    &STAGE.0
}

#[test]
fn two_keys_are_issued_and_the_third_gets_the_place_of_a_deleted_one() {
    let cluster = cluster();
    let ns = "limit";
    cluster.namespace(ns);
    cluster.apply_in(ns, &subuser("bot", ""));
    for name in ["blue", "green", "red"] {
        cluster.apply_in(ns, &access_key(name, "bot", ""));
    }
    for name in ["blue", "green"] {
        cluster.becomes(ns, &format!("accesskey/{name}"), "Ready", "True/Issued");
        cluster.becomes(ns, &format!("accesskey/{name}"), "Active", "True/Enabled");
    }
    cluster.becomes(ns, "accesskey/red", "Stalled", "True/KeyLimitExceeded");
    cluster.becomes(ns, "accesskey/red", "Ready", "False/KeyLimitExceeded");
    assert!(cluster.refused(&format!("-n {ns} delete accesskey blue")).contains("only a disabled key can be deleted"));

    cluster.kubectl(&format!(r#"-n {ns} patch accesskey blue --type=merge -p {{"spec":{{"enabled":false}}}}"#));
    cluster.becomes(ns, "accesskey/blue", "Active", "False/Disabled");
    cluster.kubectl(&format!("-n {ns} delete accesskey blue"));
    let freed = Instant::now();
    cluster.becomes(ns, "accesskey/red", "Ready", "True/Issued");
    println!("the third key was Ready {:?} after kubectl delete had returned", freed.elapsed());
    cluster.goes(ns, "secret/blue");
}
