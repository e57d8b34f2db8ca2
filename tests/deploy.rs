//! Promise: each file of deploy/ is accepted by the program that reads it. The files agree with each other and with the
//! service.
//!
//! Needs systemd-analyze, logrotate and strace. Also needs kubernetes-validate and check-jsonschema in target/.
//! `tests/behind_proxies.rs` runs nginx, and `tests/metrics.rs` tests the rules for Prometheus. Traefik runs in
//! `tests/clients` and `tests/docker`, which are not part of this suite. Here the files of Traefik are only read as
//! YAML and compared with each other.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use crate::common::{Launch, Load, Mode, PATIENCE, Signal, events, eventually, get, root, text};
use serde_json::Value;

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Runs a program in the folder of the repository. `make needs` provides this program.
fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).current_dir(root()).output();
    output.unwrap_or_else(|error| panic!("{program} (make needs): {error}"))
}

/// Runs Python with a package that `make needs` has put into target/.
fn python(package: &str, arguments: &[&str]) -> Output {
    let packages = root().join("target").join(package);
    assert!(packages.is_dir(), "there is no {}: run `make needs`", packages.display());
    let output = Command::new("python3").args(arguments).env("PYTHONPATH", packages).current_dir(root()).output();
    output.unwrap_or_else(|error| panic!("python3: {error}"))
}

/// Parses YAML files and returns every document in them.
#[track_caller]
fn yaml(files: &[&str]) -> Vec<Value> {
    const SCRIPT: &str = "import json, sys, yaml\n\
        print(json.dumps([document for name in sys.argv[1:] for document in yaml.safe_load_all(open(name))]))";
    let output = python("kubernetes-validate", &[&["-c", SCRIPT], files].concat());
    assert!(output.status.success(), "{files:?}: {}", text(&output));
    serde_json::from_slice(&output.stdout).expect("the script prints JSON")
}

/// Reads a number of seconds in the form `45s` or `30`. systemd and supervisor.toml use these forms.
fn seconds(text: &str) -> u64 {
    let text = text.trim().trim_matches('"');
    text.trim_end_matches('s').parse().unwrap_or_else(|_| panic!("{text} is not a number of seconds"))
}

/// Returns the default of a setting in supervisor.toml, in seconds. The setting must be a duration.
fn default_seconds(section: &str, key: &str) -> u64 {
    let settings: toml::Table = read("supervisor.toml").parse().expect("supervisor.toml is TOML");
    let value = &settings[section][key];
    value.as_str().map_or_else(|| value.as_integer().expect("a number").unsigned_abs(), seconds)
}

// ---- systemd --------------------------------------------------------------------------------------------------------

const SERVICE: &str = "deploy/systemd/oxicorn.service";
const SOCKET: &str = "deploy/systemd/oxicorn.socket";
const FASTAPI: &str = "deploy/systemd/fastapi.service";

/// Returns the value of a key in a systemd unit. If the key occurs several times, the last value counts.
fn unit_key(unit: &str, key: &str) -> String {
    let value = unit.lines().rev().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("the unit has no {key}=")).to_owned()
}

/// Copies the systemd units into a new folder. In the copies it replaces the program that they start, because this
/// program is not installed on the test machine.
fn units() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, program) in [
        (SERVICE, "/usr/local/bin/oxicorn"),
        (SOCKET, "/usr/local/bin/oxicorn"),
        (FASTAPI, "/srv/facts/current/.venv/bin/oxicorn"),
    ] {
        let unit = read(name);
        assert!(name == SOCKET || unit.contains(&format!("={program} ")), "{name} starts another program");
        let unit = unit.replace(program, env!("CARGO_BIN_EXE_oxicorn"));
        let path = folder.path().join(Path::new(name).file_name().expect("a name"));
        fs::write(path, unit).expect("our own folder");
    }
    folder
}

#[test]
fn systemd_accepts_the_units_and_rates_the_service_as_well_confined() {
    let folder = units();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (service, socket, fastapi) = (path("oxicorn.service"), path("oxicorn.socket"), path("fastapi.service"));
    let verified = run("systemd-analyze", &["verify", "--man=no", &service, &socket, &fastapi]);
    // systemd-analyze only warns about keys that it does not know, so the test requires an empty output.
    assert_eq!((verified.status.code(), text(&verified).as_str()), (Some(0), ""));

    // The threshold is in tenths. The value 20 allows an exposure of 2.0 on systemd's scale of 10.
    for unit in [&service, &fastapi] {
        let judged = run("systemd-analyze", &["security", "--offline=true", "--threshold=20", "--no-pager", unit]);
        let judged_text = text(&judged);
        let last = judged_text.lines().rev().find(|line| line.contains("exposure")).unwrap_or_default();
        assert!(judged.status.success() && last.contains(" OK "), "{judged_text}");
        eprintln!("{}", last.trim());
    }
}

#[test]
fn the_units_timeouts_leave_room_for_the_services_own() {
    let unit = read(SERVICE);
    let [graceful, delay, boot] =
        ["graceful_timeout", "shutdown_delay", "boot_timeout"].map(|key| default_seconds("workers", key));
    assert!(seconds(&unit_key(&unit, "TimeoutStopSec")) > graceful + delay);
    assert!(seconds(&unit_key(&unit, "TimeoutStartSec")) > boot);
    // After an exit with 2, 3 or 4, a restart would fail in the same way, so systemd must not restart. systemd looks
    // only at the exit code of the main process, so the unit must not run a command before the main process.
    assert_eq!(unit_key(&unit, "RestartPreventExitStatus"), "2 3 4");
    assert!(!unit.lines().any(|line| line.starts_with("ExecStartPre=")), "systemd would retry it for ever");
    assert_eq!(unit_key(&unit, "Type"), "notify", "systemd 252 knows no other that waits for READY");
    let backlog = read("supervisor.toml").parse::<toml::Table>().expect("TOML")["server"]["backlog"].to_string();
    assert_eq!(unit_key(&read(SOCKET), "Backlog"), backlog);

    let fastapi = read(FASTAPI);
    assert!(seconds(&unit_key(&fastapi, "TimeoutStopSec")) > graceful + delay);
    // Under Python `workers.boot_timeout` is 5 minutes by default.
    assert!(seconds(&unit_key(&fastapi, "TimeoutStartSec")) > 300);
    for key in ["Type", "KillMode", "RestartPreventExitStatus", "SystemCallErrorNumber"] {
        assert_eq!(unit_key(&fastapi, key), unit_key(&unit, key), "{key}");
    }
}

/// Runs systemd's own tools on the files beside the units. These tools make the user that the units name, and the
/// folders of this user.
#[test]
fn sysusers_and_tmpfiles_make_the_units_user_and_folders() {
    let unit = read(SERVICE);
    let root = tempfile::tempdir().expect("a folder");
    fs::create_dir(root.path().join("etc")).expect("our own folder");
    let run_in = |tool: &str, arguments: &[&str]| {
        let done = run(tool, &[&["--root", &root.path().display().to_string()], arguments].concat());
        assert!(done.status.success(), "{tool}: {}", text(&done));
    };
    let ours = |kind: &str| root_file(&format!("deploy/systemd/oxicorn.{kind}.conf"));
    run_in("systemd-sysusers", &[&ours("sysusers")]);
    let accounts = fs::read_to_string(root.path().join("etc/passwd")).expect("it is written");
    assert!(accounts.starts_with(&format!("{}:x:", unit_key(&unit, "User"))), "{accounts}");
    run_in("systemd-tmpfiles", &["--create", &ours("tmpfiles")]);
    for (kind, place) in [("State", "var/lib"), ("Logs", "var/log")] {
        let folder = root.path().join(place).join(unit_key(&unit, &format!("{kind}Directory")));
        let made = fs::metadata(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        assert_eq!(
            format!("{:04o}", made.permissions().mode() & 0o777),
            unit_key(&unit, &format!("{kind}DirectoryMode"))
        );
    }
}

fn root_file(name: &str) -> String {
    root().join(name).display().to_string()
}

/// Returns the names of the system calls in one of systemd's groups, including the calls of nested groups.
fn members(group: &str) -> BTreeSet<String> {
    let listed = run("systemd-analyze", &["syscall-filter", "--no-pager", group]);
    assert!(listed.status.success(), "{}", text(&listed));
    let lines = text(&listed)
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .map(str::to_owned)
        .collect::<Vec<_>>();
    let (groups, names): (Vec<_>, Vec<_>) =
        lines.into_iter().skip(1).filter(|line| !line.is_empty()).partition(|line| line.starts_with('@'));
    names.into_iter().chain(groups.iter().flat_map(|group| members(group))).collect()
}

/// systemd does not run on the test machine. The test therefore traces the system calls that the program makes from its
/// start to its end, and compares them with the unit's filter.
#[test]
fn the_units_system_call_filter_allows_what_the_program_does() {
    let unit = read(SERVICE);
    let mut allowed = BTreeSet::new();
    for line in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (removes, words) = line.strip_prefix('~').map_or((false, line), |words| (true, words));
        for word in words.split(' ') {
            let names = if word.starts_with('@') { members(word) } else { BTreeSet::from([word.to_owned()]) };
            if removes {
                allowed.retain(|name| !names.contains(name));
            } else {
                allowed.extend(names);
            }
        }
    }
    assert!(allowed.len() > 150 && !allowed.contains("setuid"), "{allowed:?}");

    assert!(nix::unistd::Uid::effective().is_root(), "only root can become another user: run the tests as root");
    let launch = Launch::new().set("log.access", r#""{dir}/access.log""#);
    // The service runs as a user that owns the folder, as it does under the unit. If the service ran as root, SQLite
    // would change the owners of its files, and would make system calls that the unit never needs.
    let nobody = nix::unistd::Uid::from_raw(65534);
    nix::unistd::chown(&launch.path(""), Some(nobody), None).expect("our own folder");
    let trace = launch.path("trace").display().to_string();
    let traced = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let traced = [&traced[..], &["strace", "-f", "-qq", "-e", "signal=none", "-o", &trace]].concat();
    let mut supervisor = launch.through(&traced).serving(2);
    assert_eq!(get(supervisor.address(), "/ready").status, 200);
    for command in [&["reload"][..], &["scale", "+1"], &["upgrade"]] {
        let done = supervisor.ctl(command);
        assert!(done.status.success(), "{command:?}: {}", text(&done));
    }
    supervisor.signal(Signal::SIGUSR1);
    supervisor.wait_log(events::LOGS_REOPENED, 1, PATIENCE);
    assert_eq!(get(supervisor.address(), "/facts").status, 200);
    supervisor.signal(Signal::SIGTERM);
    supervisor.wait_exit(PATIENCE);

    let trace = fs::read_to_string(trace).expect("strace writes it");
    let calls = trace.lines().filter_map(|line| line.split_whitespace().nth(1)?.split_once('(').map(|(name, _)| name));
    let calls: BTreeSet<_> =
        calls.filter(|name| name.chars().all(|sign| sign.is_ascii_alphanumeric() || sign == '_')).collect();
    assert!(calls.contains("execve") && calls.contains("accept4") && calls.len() > 50, "{calls:?}");
    let refused: Vec<_> = calls.iter().filter(|name| !allowed.contains(**name)).collect();
    assert_eq!(refused, [&""; 0], "the unit's SystemCallFilter refuses what the program needs");

    let families = unit_key(&unit, "RestrictAddressFamilies");
    let sockets = trace.lines().filter_map(|line| line.split_once(" socket(")?.1.split(',').next());
    let asked: BTreeSet<_> = sockets.collect();
    assert!(asked.len() > 1, "{asked:?}");
    // The test leaves out AF_NETLINK. The C library uses it to ask the kernel for the machine's addresses, and
    // continues without them if the filter refuses the call.
    let refused =
        asked.iter().filter(|family| !families.split(' ').any(|known| known == **family) && **family != "AF_NETLINK");
    assert_eq!(refused.collect::<Vec<_>>(), [&""; 0], "RestrictAddressFamilies refuses what the program needs");
    let writable = trace.lines().find(|line| line.contains("PROT_WRITE|PROT_EXEC"));
    assert_eq!(writable, None, "MemoryDenyWriteExecute");
    eprintln!("{} of {} system calls that the unit allows are made", calls.len(), allowed.len());
}

#[test]
fn the_kernel_knows_every_sysctl() {
    let lines: Vec<_> = read("deploy/systemd/99-oxicorn.conf").lines().map(str::to_owned).collect();
    let lines: Vec<_> = lines.iter().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    assert!(lines.len() >= 5, "{lines:?}");
    for line in lines {
        let (key, value) = line.split_once(" = ").unwrap_or_else(|| panic!("{line} is no KEY = VALUE"));
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        let present = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(present.split_whitespace().count(), value.split_whitespace().count(), "{key}");
    }
}

/// The real logrotate rotates the log of a service under load, with the file from deploy/. No line may be lost.
#[test]
fn logrotate_accepts_the_snippet_and_loses_no_line() {
    let snippet = "deploy/systemd/oxicorn.logrotate";
    let launch = Launch::new().set("log.access", r#""{dir}/logs/access.log""#).log_to("logs/oxicorn.log");
    fs::create_dir(launch.path("logs")).expect("our own folder");
    let mut supervisor = launch.serving(2);
    let (config, state) = (supervisor.path("logrotate.conf"), supervisor.path("logrotate.state"));
    let (config, state) = (config.display().to_string(), state.display().to_string());
    let pattern = supervisor.path("logs").display().to_string();
    let ours = read(snippet);
    let signal = "systemctl kill --kill-whom=main --signal=USR1 oxicorn.service";
    assert!(ours.contains(signal) && ours.contains("/var/log/oxicorn/*.log"), "{ours}");
    // logrotate reads Debian's own logrotate.conf before the snippets, and this file contains the line `create`. The
    // test's file therefore begins with `create` too.
    let ours = ours.replace("/var/log/oxicorn", &pattern).replace(signal, &format!("kill -USR1 {}", supervisor.pid()));
    fs::write(&config, format!("create\n{ours}")).expect("our own folder");
    fs::set_permissions(&config, fs::Permissions::from_mode(0o644)).expect("our own file");

    let tried = run("logrotate", &["--debug", "--state", &state, &config]);
    assert!(tried.status.success() && !text(&tried).contains("error"), "{}", text(&tried));
    let load = Load::start(supervisor.address(), "/health", 4, Mode::KeepAlive { think_ms: 1 });
    for round in 1..=3 {
        let answered = load.answered();
        eventually("requests are answered", PATIENCE, || (load.answered() >= answered + 100).then_some(()));
        let rotated = run("logrotate", &["--force", "--state", &state, &config]);
        assert!(rotated.status.success(), "{}", text(&rotated));
        let name = format!("logs/oxicorn.log{}", if round == 1 { "" } else { ".1" });
        eventually("the log continues under its name", PATIENCE, || {
            let fresh = fs::read_to_string(supervisor.path("logs/oxicorn.log")).unwrap_or_default();
            fresh.contains("event=logs_reopened").then_some(name.clone())
        });
    }
    let answered = load.finish();
    answered.assert_nothing_lost();
    supervisor.stop();
    let mut lines = 0;
    for name in ["access.log", "access.log.1", "access.log.2.gz", "access.log.3.gz"] {
        let path = supervisor.path("logs").join(name).display().to_string();
        let output = run("zcat", &["-f", &path]);
        assert!(output.status.success(), "{}", text(&output));
        lines += text(&output).lines().filter(|line| line.contains("GET /health ")).count() as u64;
    }
    assert_eq!(lines, answered.ok, "of {} answers {lines} lines stand in the four files", answered.ok);
}

// ---- Kubernetes -----------------------------------------------------------------------------------------------------

const MANIFESTS: [&str; 4] = [
    "deploy/kubernetes/00-namespace.yaml",
    "deploy/kubernetes/deployment.yaml",
    "deploy/kubernetes/scaling.yaml",
    "deploy/kubernetes/secret.yaml.example",
];

/// The manifests of the reference service, and that of a FastAPI app.
const ALL_MANIFESTS: [&str; 5] = [MANIFESTS[0], MANIFESTS[1], FASTAPI_MANIFEST, MANIFESTS[2], MANIFESTS[3]];
const FASTAPI_MANIFEST: &str = "deploy/kubernetes/fastapi.yaml";

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    let mut found = documents.iter().filter(|document| document["kind"] == kind);
    let one = found.next().unwrap_or_else(|| panic!("there is no {kind}"));
    assert!(found.next().is_none(), "more than one {kind}");
    one
}

#[test]
fn the_published_schemas_of_kubernetes_accept_every_file() {
    let mut listed: Vec<_> =
        fs::read_dir(root().join("deploy/kubernetes")).expect("our own folder").flatten().collect();
    listed.sort_by_key(fs::DirEntry::file_name);
    let listed: Vec<_> = listed.iter().map(|entry| entry.file_name().display().to_string()).collect();
    assert_eq!(
        listed,
        ALL_MANIFESTS.map(|name| name.rsplit('/').next().unwrap_or_default()),
        "a file that is not checked"
    );
    let validated =
        python("kubernetes-validate", &[&["-m", "kubernetes_validate", "--strict"], &ALL_MANIFESTS[..]].concat());
    let told = text(&validated);
    assert!(validated.status.success() && !told.contains("WARN"), "{told}");
    assert_eq!(told.matches(" passed for resource ").count(), yaml(&ALL_MANIFESTS).len(), "{told}");
}

#[test]
fn the_manifests_agree_with_each_other() {
    let documents = yaml(&MANIFESTS);
    let [deployment, service, scaler, budget, secret] =
        ["Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "Secret"]
            .map(|kind| of_kind(&documents, kind));
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    for selector in [
        &deployment["spec"]["selector"]["matchLabels"],
        &budget["spec"]["selector"]["matchLabels"],
        &service["spec"]["selector"],
        &deployment["spec"]["template"]["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ] {
        assert_eq!(selector, labels);
    }
    let namespace = &of_kind(&documents, "Namespace")["metadata"]["name"];
    for document in documents.iter().filter(|document| document["kind"] != "Namespace") {
        assert_eq!(&document["metadata"]["namespace"], namespace, "{}", document["kind"]);
    }
    let target = &scaler["spec"]["scaleTargetRef"];
    assert_eq!((&target["kind"], &target["name"]), (&deployment["kind"], &deployment["metadata"]["name"]));
    // The manifest must not set a number of replicas. If it did, each `apply` would undo the number that the autoscaler
    // chose.
    assert_eq!(deployment["spec"]["replicas"], Value::Null);
    let [least, kept] = [&scaler["spec"]["minReplicas"], &budget["spec"]["minAvailable"]]
        .map(|number| number.as_u64().expect("a number"));
    assert!(least > kept && kept >= 1, "with {least} pods, of which {kept} must stay, no node can be drained");
    let rolling = &deployment["spec"]["strategy"]["rollingUpdate"];
    assert_eq!((rolling["maxUnavailable"].as_u64(), rolling["maxSurge"].as_u64()), (Some(0), Some(1)));
    assert_eq!(service["spec"]["ports"][0]["targetPort"], "http");

    let uri = secret["stringData"]["MONGODB_URI"].as_str().expect("a URI");
    let hosts = uri.split_once('@').and_then(|(_, rest)| rest.split('/').next()).unwrap_or_default();
    assert!(uri.contains("replicaSet=") && hosts.split(',').count() >= 3, "{uri} names no replica set's members");
}

#[test]
fn the_manifest_of_a_fastapi_app_agrees_with_itself_and_the_settings() {
    let documents = yaml(&[FASTAPI_MANIFEST]);
    let [settings, deployment, service] = ["ConfigMap", "Deployment", "Service"].map(|kind| of_kind(&documents, kind));
    let pod = &deployment["spec"]["template"]["spec"];
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    for selector in [&deployment["spec"]["selector"]["matchLabels"], &service["spec"]["selector"]] {
        assert_eq!(selector, labels);
    }
    let settings: toml::Table =
        settings["data"]["supervisor.toml"].as_str().expect("a text").parse().expect("it is TOML");
    assert_eq!(settings["workers"]["count"].as_integer(), Some(1), "one worker in each pod");
    let [graceful, delay] =
        ["graceful_timeout", "shutdown_delay"].map(|key| seconds(settings["workers"][key].as_str().expect("a time")));
    assert!(pod["terminationGracePeriodSeconds"].as_u64().expect("a number") > graceful + delay);
    let container = &pod["containers"][0];
    let probe = &container["startupProbe"];
    let patience = probe["periodSeconds"].as_u64().zip(probe["failureThreshold"].as_u64());
    assert!(patience.is_some_and(|(period, times)| period * times >= 300), "workers.boot_timeout is 5 minutes");
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/ready");
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/health");
    assert_eq!(container["image"], pod["initContainers"][0]["image"]);
}

#[test]
fn the_pods_have_what_the_page_promises() {
    let documents = yaml(&MANIFESTS);
    let pod = &of_kind(&documents, "Deployment")["spec"]["template"]["spec"];
    let settings = &of_kind(&documents, "ConfigMap")["data"]["supervisor.toml"].as_str().expect("a text");
    let parsed: toml::Table = settings.parse().expect("TOML");
    let workers = &parsed["workers"];
    assert_eq!(workers["count"].as_integer(), Some(1), "one worker to a pod");
    let [graceful, delay, hung] = ["graceful_timeout", "shutdown_delay", "timeout"]
        .map(|key| seconds(workers[key].as_str().expect("a duration")));
    assert!(pod["terminationGracePeriodSeconds"].as_u64() > Some(graceful + delay), "{graceful} + {delay}");
    assert!(delay > 0, "the pod serves while its endpoints are withdrawn");

    let [migrate, main] = [&pod["initContainers"][0], &pod["containers"][0]];
    assert_eq!(migrate["args"][0], "migrate");
    for container in [migrate, main] {
        let locked = &container["securityContext"];
        assert_eq!(locked["readOnlyRootFilesystem"], true);
        assert_eq!(
            (&locked["allowPrivilegeEscalation"], &locked["capabilities"]["drop"][0]),
            (&false.into(), &"ALL".into())
        );
        assert_eq!(container["lifecycle"], Value::Null, "shutdown_delay is what a preStop sleep is for elsewhere");
        assert!(
            container["envFrom"][0]["secretRef"]["name"] == "oxicorn" && container["env"].is_null(),
            "secrets come from the Secret"
        );
        assert!(container["resources"]["limits"]["memory"].is_string());
    }
    assert_eq!(
        (&pod["securityContext"]["runAsNonRoot"], &pod["securityContext"]["runAsUser"]),
        (&true.into(), &1000.into())
    );
    assert!(read("Dockerfile").contains("USER 1000"), "the image's own user");
    let live = &main["livenessProbe"];
    let [period, failures] = ["periodSeconds", "failureThreshold"].map(|key| live[key].as_u64().expect("a number"));
    assert!(hung < period * (failures - 1), "a hung worker is replaced before the pod is given up");

    // The test uses the settings of the manifest, with other addresses and another log format.
    let own = settings.replace("0.0.0.0:8000", "127.0.0.1:0");
    let launch =
        Launch::new().raw(&own).env("OXICORN_CONTROL__SOCKET", "{dir}/control.sock").env("OXICORN_LOG__FORMAT", "text");
    let checked = launch.run_with(&["check"]);
    assert!(checked.status.success() && !text(&checked).contains("warning"), "{}", text(&checked));
    let supervisor = launch.serving(1);
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let path = main[probe]["httpGet"]["path"].as_str().expect("a path");
        assert_eq!(get(supervisor.address(), path).status, 200, "{probe}");
        assert_eq!(main[probe]["httpGet"]["port"], main["ports"][0]["name"], "{probe}");
    }
    assert_eq!(
        (&live["httpGet"]["path"], &main["readinessProbe"]["httpGet"]["path"]),
        (&"/health".into(), &"/ready".into())
    );
    let annotations = &of_kind(&documents, "Deployment")["spec"]["template"]["metadata"]["annotations"];
    let scraped = annotations["prometheus.io/path"].as_str().expect("a path");
    assert!(get(supervisor.address(), scraped).text().ends_with("# EOF\n"));
    assert!(
        parsed["server"]["bind"][0]
            .as_str()
            .is_some_and(|bind| bind.ends_with(&format!(":{}", main["ports"][0]["containerPort"])))
    );
}

// ---- Traefik --------------------------------------------------------------------------------------------------------

#[test]
fn traefiks_two_files_and_its_compose_file_agree() {
    let documents = yaml(&["deploy/traefik/traefik.yml", "deploy/traefik/dynamic.yml", "docker-compose.traefik.yml"]);
    let [fixed, dynamic, compose] = &documents[..] else { panic!("one document to a file") };
    let http = &dynamic["http"];
    let router = &http["routers"]["oxicorn"];
    for entry in router["entryPoints"].as_array().expect("a list") {
        assert!(fixed["entryPoints"][entry.as_str().expect("a name")]["address"].is_string(), "{entry}");
    }
    let redirected = &fixed["entryPoints"]["web"]["http"]["redirections"]["entryPoint"]["to"];
    assert!(fixed["entryPoints"][redirected.as_str().expect("a name")].is_object());
    let resolver = router["tls"]["certResolver"].as_str().expect("a name");
    assert!(fixed["certificatesResolvers"][resolver]["acme"]["storage"].is_string(), "{resolver}");
    let balancer = &http["services"][router["service"].as_str().expect("a name")]["loadBalancer"];
    let transport = &http["serversTransports"][balancer["serversTransport"].as_str().expect("a name")];
    let idle = seconds(transport["forwardingTimeouts"]["idleConnTimeout"].as_str().expect("a duration"));
    assert!(idle < default_seconds("http", "keep_alive"), "Traefik has to close first");
    assert_eq!(balancer["healthCheck"]["path"], "/ready");
    assert_eq!(balancer["servers"][0]["url"], "http://backend:8000");

    let mounts: Vec<_> = compose["services"]["traefik"]["volumes"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let read_by_traefik = fixed["providers"]["file"]["filename"].as_str().expect("a path");
    assert!(mounts.contains(&&*format!("./deploy/traefik/dynamic.yml:{read_by_traefik}:ro")), "{mounts:?}");
    let stored = fixed["certificatesResolvers"][resolver]["acme"]["storage"].as_str().expect("a path");
    assert!(
        mounts.iter().any(|mount| mount.split(':').nth(1).is_some_and(|place| stored.starts_with(place))),
        "{stored}: {mounts:?}"
    );
}

#[test]
fn nginx_closes_idle_connections_to_the_workers_before_the_workers_do() {
    for file in ["deploy/nginx/upstream.conf", "deploy/nginx/upstream.compose.conf"] {
        let text = read(file);
        let idle = text.split_once("keepalive_timeout ").and_then(|(_, rest)| rest.split_once(';'));
        let idle = seconds(idle.expect("the directive").0);
        assert!(idle < default_seconds("http", "keep_alive"), "{file}: {idle} s");
    }
}

// ---- CI -------------------------------------------------------------------------------------------------------------

#[test]
fn the_workflow_pins_its_actions_and_calls_targets_that_exist() {
    let name = ".github/workflows/ci.yml";
    let checked =
        python("check-jsonschema", &["-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", name]);
    assert!(checked.status.success(), "{}", text(&checked));

    let workflow = &yaml(&[name])[0];
    let steps: Vec<_> = workflow["jobs"]
        .as_object()
        .expect("jobs")
        .values()
        .flat_map(|job| job["steps"].as_array().expect("steps"))
        .collect();
    let actions: Vec<_> = steps.iter().filter_map(|step| step["uses"].as_str()).collect();
    assert!(actions.len() >= 4, "{actions:?}");
    for action in actions {
        let (_, commit) = action.split_once('@').unwrap_or_default();
        let pinned = commit.len() == 40 && commit.chars().all(|sign| sign.is_ascii_hexdigit());
        assert!(pinned, "{action} is not pinned to a commit");
        let line = read(name).lines().find(|line| line.contains(action)).map(str::to_owned).unwrap_or_default();
        assert!(line.contains(" # v"), "{action} does not say its version");
    }
    let makefile = read("Makefile");
    let commands: String = steps.iter().filter_map(|step| step["run"].as_str()).flat_map(|run| [run, "\n"]).collect();
    let commands = commands + &read(".ci/run");
    let targets: BTreeSet<_> = commands
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once("make ").map(|(_, rest)| rest.split_whitespace().next().unwrap_or_default()))
        .collect();
    assert!(targets.contains("test"), "{targets:?}");
    for target in targets {
        assert!(makefile.lines().any(|line| line.starts_with(&format!("{target}:"))), "there is no `make {target}`");
    }
    let manifest: toml::Table = read("Cargo.toml").parse().expect("TOML");
    assert_eq!(workflow["env"]["RUSTUP_TOOLCHAIN"].as_str(), manifest["workspace"]["package"]["rust-version"].as_str());
}
