//! Promise: a program built on the library has its own name, settings, arguments and tracing, and oxicorn still writes
//! its own log.

use std::fs;

use crate::common::{Launch, PATIENCE, Process, build_example, eventually, get};

fn embedder() -> Launch {
    Launch::of(build_example("embedder"))
}

fn output(launch: &Launch, arguments: &[&str]) -> (Option<i32>, String) {
    let output = launch.run_with(arguments);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code(), text)
}

#[test]
fn version_messages_and_titles_show_its_own_name() {
    let launch = embedder();
    assert_eq!(output(&launch, &["--version"]), (Some(0), "embedder 7.8.9\n".to_owned()));
    let (code, text) = output(&launch, &["check", "--timeout", "soon"]);
    assert!(code == Some(2) && text.starts_with("embedder: error: "), "{text}");
    let supervisor = embedder().serving(2);
    let title = |pid: u32| fs::read(format!("/proc/{pid}/cmdline")).expect("a process of ours");
    let title = |pid| String::from_utf8_lossy(&title(pid)).trim_end_matches('\0').to_owned();
    assert_eq!(title(supervisor.pid()), "embedder: master [embedder] gen 1");
    let workers = supervisor.worker_pids();
    assert!(workers.iter().all(|pid| title(*pid).starts_with("embedder: worker ")), "{}", title(workers[0]));
    assert!(supervisor.log().0.contains("version=7.8.9"), "the line of the start has the program's version");
}

#[test]
fn its_settings_in_code_stand_between_the_built_in_ones_and_the_file() {
    let launch = embedder().unset("workers.count");
    let (code, text) = output(&launch, &["config"]);
    assert_eq!(code, Some(0), "{text}");
    for line in ["count = 3  # from default (embedder)", "keep_alive = \"7s\"  # from default (embedder)"] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(text.contains("name = \"embedder\"  # from default (embedder)"), "{text}");
    let (_, text) = output(&launch, &["config", "--workers", "2"]);
    assert!(text.contains("count = 2  # from --workers"), "{text}");
    let (code, text) = output(&launch.env("EMBEDDER", "wrong default"), &["check"]);
    assert!(code == Some(2) && text.contains("workers.cuont") && text.contains("workers.count"), "{text}");
}

#[test]
fn its_arguments_are_read_by_hooks_and_workers_and_stay_over_a_reload() {
    let mut supervisor = embedder().arg("good morning").serving(2);
    assert_eq!(get(supervisor.address(), "/").text(), "good morning");
    let workers = supervisor.worker_pids();
    supervisor.signal(crate::common::Signal::SIGHUP);
    workers.into_iter().for_each(|pid| supervisor.wait_gone(pid));
    assert_eq!(get(supervisor.address(), "/").text(), "good morning");
    supervisor.stop();
}

#[test]
fn its_arguments_stand_with_or_without_the_command_run() {
    let launch = embedder();
    assert_eq!(output(&launch, &["check", "hello"]).0, Some(0));
    let (code, text) = output(&launch, &["check", "hello"]);
    assert!(code == Some(0) && text.contains("the greeting is hello\n"), "{text}");
    let (code, text) = output(&launch, &["check"]);
    assert!(code == Some(2) && text.contains("embedder: error: there is no greeting"), "{text}");
    let (_, text) = output(&launch, &["check", "--json"]);
    assert!(text.contains(r#""ok":false"#) && text.contains("there is no greeting"), "{text}");
    for help in [&["--help"][..], &["run", "--help"], &["check", "--help"]] {
        let (_, text) = output(&launch, help);
        assert!(text.contains("[GREETING]") && text.contains("What a client is greeted with"), "{text}");
    }
    let mut supervisor = embedder().arg("run").arg("hi").serving(2);
    assert_eq!(get(supervisor.address(), "/").text(), "hi");
    supervisor.stop();
}

#[test]
fn it_may_bring_its_own_command_line() {
    let mut supervisor = embedder().unset("workers.count").env("EMBEDDER", "own command line").serving(1);
    assert_eq!(get(supervisor.address(), "/").text(), "hello");
    supervisor.stop();
}

#[test]
fn two_tables_of_one_type_or_name_are_refused() {
    for (mode, words) in [("one type twice", ["first", "second"]), ("one name twice", ["First", "Second"])] {
        let (code, text) = output(&embedder().env("EMBEDDER", mode), &["check"]);
        assert!(code == Some(101) && words.iter().all(|word| text.contains(word)), "{mode}: {text}");
    }
}

#[test]
fn its_own_layers_see_spans_and_events_and_the_log_continues() {
    let launch = embedder().env("EMBEDDER", "own layers");
    let spans = launch.path("spans");
    let mut supervisor = launch.env("EMBEDDER_SPANS", &spans.to_string_lossy()).serving(2);
    get(supervisor.address(), "/span");
    get(supervisor.address(), "/thread");
    let seen = fs::read_to_string(&spans).expect("the layer's file");
    for line in ["span a_span\n", "event inside the span\n", "event from a thread of the app\n"] {
        assert!(seen.contains(line), "{line} is not in\n{seen}");
    }
    let log = supervisor.log().0;
    for words in ["the factory is called", "worker serves", "inside the span", "from a thread of the app"] {
        assert!(log.contains(words), "{words} is not in\n{log}");
    }
    assert!(!log.contains("log_layer_missing"), "{log}");
    supervisor.stop();
    assert!(supervisor.log().0.contains("event=worker_drained"), "the worker logs to its end");
}

/// `check --deep` also runs the app's factory. The worker of this check never serves, so only the factory writes lines.
#[test]
fn its_own_layers_get_what_the_factory_says_after_it_has_installed_them() {
    let launch = || embedder().env("EMBEDDER", "layers in the factory");
    let expected = "event after the init\nspan a_task\nevent in the task\n";
    let words = ["before the init", "after the init", "in the task"];

    let checked = launch();
    let spans = checked.path("spans");
    let checked = checked.env("EMBEDDER_SPANS", &spans.to_string_lossy());
    let (code, told) = output(&checked, &["check", "--deep", "hi"]);
    let seen = fs::read_to_string(&spans).unwrap_or_default();
    assert!(code == Some(0) && seen.starts_with(expected), "{code:?} {seen}\n{told}");
    assert!(words.iter().all(|words| told.contains(words)), "{told}");

    let served = launch();
    let spans = served.path("spans");
    let served = served.env("EMBEDDER_SPANS", &spans.to_string_lossy()).set("workers.count", "1");
    let mut supervisor = served.serving(1);
    let seen = || fs::read_to_string(&spans).expect("the layer's file");
    assert!(seen().starts_with(expected) && !seen().contains("before the init"), "{}", seen());
    let log = supervisor.log().0;
    for words in words {
        assert_eq!(log.matches(words).count(), 1, "{words}: {log}");
    }

    // The preflight of an upgrade runs the factory with the same layers. The preflight has no log of its own.
    let before = seen().matches("span a_task").count();
    assert_eq!(supervisor.ctl(&["upgrade"]).status.code(), Some(0));
    assert!(seen().matches("span a_task").count() >= before + 2, "the preflight and the new worker: {}", seen());
    supervisor.stop();
}

#[test]
fn what_a_hook_says_cannot_control_the_terminal() {
    let escaped = r"red \u{1b}[31m\r\u{0}\u{202e}\u{2066}";
    for (argument, exit) in [("hello", 0), ("control", 2)] {
        let (code, text) = output(&embedder(), &["check", argument]);
        assert!(code == Some(exit) && text.contains(escaped), "{argument}: {text:?}");
        assert!(!text.contains(|c: char| c.is_control() && c != '\n' || c == '\u{202e}'), "{argument}: {text:?}");
    }
}

#[test]
fn a_wrong_name_is_refused_when_it_is_declared() {
    for name in ["", "two words", "esc\u{1b}"] {
        let (code, text) = output(&embedder().env("EMBEDDER_NAME", name), &["check", "hello"]);
        assert!(code == Some(101) && text.contains("App::name"), "{name:?}: {text}");
    }
    for mode in ["one argument twice", "argument of ours"] {
        let (code, text) = output(&embedder().env("EMBEDDER", mode), &["check", "hello"]);
        assert!(code == Some(101) && text.contains("App::positional"), "{mode}: {text}");
    }
}

#[test]
fn a_subscriber_without_our_layer_is_warned_of_once_a_worker() {
    let launch = embedder().env("EMBEDDER", "no log layer");
    let spans = launch.path("spans");
    let mut supervisor = launch.env("EMBEDDER_SPANS", &spans.to_string_lossy()).set("workers.count", "1").start();
    supervisor.wait_listening();
    eventually("the worker serves, as the status says", PATIENCE, || {
        (supervisor.status()["workers"][0]["state"] == "serving").then_some(())
    });
    let log = supervisor.log().0;
    assert_eq!(log.matches("event=log_layer_missing").count(), 1, "{log}");
    assert!(fs::read_to_string(&spans).expect("the layer's file").contains("event worker serves"));
    supervisor.stop();
}

/// The result does not depend on the variable RUST_LOG, because the tests start their programs without this variable.
#[test]
fn a_subscriber_installed_in_main_does_not_silence_the_master() {
    let mut supervisor = embedder().env("EMBEDDER", "subscriber in main").start();
    eventually("the master's lines", PATIENCE, || {
        let log = supervisor.log().0;
        (log.contains("event=worker_forked") && log.contains("event=log_layer_missing")).then_some(())
    });
    assert!(Process(supervisor.pid()).is_alive());
    supervisor.stop();
    assert!(supervisor.log().0.contains("event=stopped"));
}

#[test]
fn without_a_subscriber_of_its_own_the_app_logs_from_any_thread() {
    let mut supervisor = embedder().serving(2);
    get(supervisor.address(), "/thread");
    get(supervisor.address(), "/span");
    let log = supervisor.log().0;
    for words in ["the factory is called", "from a thread of the app", "inside the span"] {
        assert!(log.contains(words), "{words} is not in\n{log}");
    }
    supervisor.stop();
}

#[test]
fn levels_are_set_by_target() {
    let mut supervisor = embedder().set("log.targets", r#"["loud_crate=warn", "watched_crate=debug"]"#).serving(2);
    get(supervisor.address(), "/targets");
    let log = supervisor.log().0;
    for (words, is_logged) in [
        ("loud info", false),
        ("loud warning", true),
        ("watched debug", true),
        ("watched trace", false),
        ("another crate", false),
    ] {
        assert_eq!(log.contains(words), is_logged, "{words}:\n{log}");
    }
    supervisor.stop();
    let (code, text) = output(&embedder().set("log.targets", r#"["sqlx=loud"]"#), &["check"]);
    assert!(code == Some(2) && text.contains("log.targets") && text.contains("loud"), "{text}");
}
