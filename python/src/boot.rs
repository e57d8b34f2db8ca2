//! The boot of a worker: the interpreter, the import of the app, and its lifespan.
//!
//! Owns: the order of these steps, and the boot failure that names the Python cause. Refuses: to do them, which is the
//! work of the modules `_worker` and `_lifespan`, and to serve requests (`bridge`).
//!
//! The app is imported outside of the event loop and outside of tokio, because an import may run loops of its own. The
//! factory, which is a task of tokio's, only waits for the result.

use std::{
    cell::RefCell,
    collections::HashMap,
    error::Error,
    ffi::OsString,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use oxicorn::{BootFailure, Driven, Driver, Lifespan, WorkerContext};
use pyo3::{
    exceptions::PyRuntimeError,
    ffi,
    prelude::*,
    types::{PyBytes, PyDict},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    bridge::{self, AsgiService, EventLoop, LoopHandle},
    compat::Compat,
    helper::Overlay,
    logging,
    service::PythonService,
    settings::{self, Interface, Python as Settings},
    wsgi::{self, WsgiApp, WsgiService},
};

/// How long the requests that were cut may take to end, before the lifespan ends.
const CANCEL_TIME: Duration = Duration::from_millis(500);

/// How long before the end of its grace a worker gives up its threads.
const END_TIME: Duration = Duration::from_secs(1);

/// How long before the end of `workers.boot_timeout` a lifespan that has not started is reported. After that time the
/// master kills the worker, and then nobody knows where the lifespan waits.
const REPORT_BEFORE: Duration = Duration::from_millis(500);

thread_local! {
    /// The factory that waits for the app.
    static WAITING: RefCell<Option<Waiting>> = const { RefCell::new(None) };
    /// The loop of asyncio while the app is imported.
    static LOOP: RefCell<LazyLoop> = const { RefCell::new(LazyLoop::None) };
}

/// The loop of asyncio. It is made when the import of the app asks for asyncio, because the app may ask for its loop
/// then. Otherwise it is made when the app turns out to be one of ASGI.
#[derive(Default)]
enum LazyLoop {
    #[default]
    None,
    Wanted(Rc<Driver>, Arc<Settings>),
    Made(EventLoop),
}

/// Makes the loop, if it is not made yet.
#[pyfunction]
pub(crate) fn make_event_loop(py: Python<'_>) -> PyResult<()> {
    match LOOP.take() {
        LazyLoop::Wanted(driver, settings) => LOOP.set(LazyLoop::Made(EventLoop::new(py, driver, &settings)?)),
        other => LOOP.set(other),
    }
    Ok(())
}

/// What the factory hands to the outer loop, which runs outside of it.
struct Waiting {
    context: WorkerContext,
    imported: oneshot::Sender<Result<Imported, BootFailure>>,
}

/// The app after its import.
enum Imported {
    Asgi(Starting),
    Wsgi(Arc<WsgiApp>),
}

/// An ASGI app, and its lifespan, which has begun to start.
struct Starting {
    app: Arc<bridge::App>,
    lifespan: Py<PyAny>,
    event_loop: LoopHandle,
    started: oneshot::Receiver<PyResult<Py<PyAny>>>,
}

/// Waits until the outer loop has imported the app, and the lifespan or the threads have started.
///
/// # Errors
/// The reason why the app cannot serve, with the traceback.
pub(crate) async fn factory(context: WorkerContext) -> Result<Lifespan<PythonService>, BootFailure> {
    let (boot_timeout, grace) = (context.settings().workers.boot_timeout, context.table::<Settings>().shutdown_grace);
    let begun = Instant::now();
    let (imported, import) = oneshot::channel();
    WAITING.set(Some(Waiting { context, imported }));
    tokio::spawn(tell_python_of_sigterm());
    let ended = || BootFailure::new("the interpreter of the worker ended before the app was ready");
    let Starting { app, lifespan, event_loop, started } = match import.await.map_err(|_| ended())?? {
        Imported::Asgi(starting) => starting,
        Imported::Wsgi(app) => {
            let started = Python::attach(|py| app.start(py));
            started.map_err(|error| BootFailure::new(format!("the threads of the app cannot be started: {error}")))?;
            let service = PythonService::Wsgi(WsgiService(Arc::clone(&app)));
            return Ok(Lifespan::new(service).on_shutdown(async move { app.end() }).shutdown_grace(grace));
        }
    };
    let started = if boot_timeout.is_zero() {
        started.await
    } else {
        let left = boot_timeout.saturating_sub(REPORT_BEFORE.min(boot_timeout / 4));
        timeout_at(begun + left, started).await.map_err(|_| still_starting(&lifespan, boot_timeout))?
    };
    Python::attach(|py| match started.map_err(|_| ended())? {
        Ok(failed) => match failed.extract::<Option<(String, Option<String>)>>(py) {
            Ok(None) => Ok(()),
            Ok(Some((sentence, details))) => Err(with_details(sentence, details)),
            Err(error) => Err(BootFailure::new(error.to_string())),
        },
        Err(error) => Err(BootFailure::new(format!("lifespan.startup: {error}"))),
    })?;
    let service = PythonService::Asgi(AsgiService(Arc::clone(&app)));
    Ok(Lifespan::new(service).on_shutdown(shut_down(app, lifespan, event_loop)).shutdown_grace(grace))
}

/// Calls Python's handler of SIGTERM when the worker gets one, if the app has set such a handler. The worker itself
/// drains then, in any case.
async fn tell_python_of_sigterm() {
    // The worker listens to the signal already, so this does not fail.
    let Ok(mut term) = signal(SignalKind::terminate()) else { return };
    // Once is enough: a handler that calls `sys.exit()` makes the worker send itself another SIGTERM.
    if term.recv().await.is_some() {
        // SAFETY: this function may be called without the GIL, and at any time once the interpreter exists.
        #[expect(unsafe_code, reason = "to ask for the GIL here would stop the loop while another thread has it")]
        unsafe {
            ffi::PyErr_SetInterruptEx(libc::SIGTERM);
        }
    }
}

fn still_starting(lifespan: &Py<PyAny>, boot_timeout: Duration) -> BootFailure {
    let after = oxicorn::settings::duration::display(boot_timeout);
    let failure = BootFailure::new(format!("lifespan.startup did not end within workers.boot_timeout ({after})"));
    let stack = Python::attach(|py| lifespan.bind(py).call_method0("stack")?.extract::<String>());
    match stack {
        Ok(stack) if !stack.is_empty() => failure.with_details(stack),
        Ok(_) | Err(_) => failure,
    }
}

/// Cancels the requests that were cut, ends the lifespan, and then what the app has left: its tasks, its generators and
/// the threads of its executor.
async fn shut_down(app: Arc<bridge::App>, lifespan: Py<PyAny>, event_loop: LoopHandle) {
    Python::attach(|py| app.cancel_requests(py));
    // A request that refuses to be cancelled does not hold the end of the lifespan.
    let _ = timeout(CANCEL_TIME, app.requests_ended()).await;
    let begun = Python::attach(|py| event_loop.spawn(&lifespan.bind(py).call_method0("end")?));
    let ended = match begun {
        // An error of the channel means that the loop has dropped the task: then there is nothing to wait for.
        Ok(ended) => ended.await.unwrap_or_else(|_| Ok(Python::attach(|py| py.None()))),
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        tracing::error!(
            event = "lifespan_failed",
            pid = std::process::id(),
            reason = error.to_string(),
            "the tasks of the app could not be ended"
        );
    }
}

/// Runs the worker: boots the app, and then runs the event loop until the worker has ended.
///
/// # Errors
/// The event loop cannot continue.
pub(crate) fn drive(py: Python<'_>, driver: Driver, compat: &Compat) -> Result<(), Box<dyn Error + Send + Sync>> {
    let waiting = loop {
        // The factory is a task. It runs in the first steps, and hands its context over.
        if driver.drive(Some(Duration::ZERO))? == Driven::Done {
            return Ok(());
        }
        if let Some(waiting) = WAITING.take() {
            break waiting;
        }
    };
    let Waiting { context, imported } = waiting;
    let settings = context.table::<Settings>();
    let name = settings.app_of(context.arguments()).to_owned();
    let module = match prepare(py, &context, &settings, compat.overlay()) {
        Ok(module) => module,
        Err(error) => {
            let failure = BootFailure::new(format!("the interpreter cannot be prepared: {error}"));
            // If nobody waits, the worker ends already.
            drop(imported.send(Err(failure)));
            return Ok(driver.run_to_end()?);
        }
    };
    driver.hold_sigterm()?;
    let driver = Rc::new(driver);
    LOOP.set(LazyLoop::Wanted(Rc::clone(&driver), Arc::clone(&settings)));
    let compat = compat.of_worker(context.foreign());
    let booted = load(&module, &name, settings.interface, compat).and_then(|(callable, interface)| match interface {
        Interface::Wsgi => {
            if let LazyLoop::Made(event_loop) = LOOP.take() {
                event_loop.release(py);
            }
            boot_wsgi(&module, &callable, &driver, (context, settings)).map(Imported::Wsgi)
        }
        Interface::Auto | Interface::Asgi => {
            make_event_loop(py)?;
            LOOP.with_borrow(|made| match made {
                LazyLoop::Made(event_loop) => boot_asgi(&module, &callable, event_loop, (context, settings)),
                LazyLoop::None | LazyLoop::Wanted(..) => Err(PyRuntimeError::new_err("the loop cannot be made")),
            })
            .map(Imported::Asgi)
        }
    });
    let threads = if let Ok(Imported::Wsgi(app)) = &booted { Some(Arc::clone(app)) } else { None };
    drop(imported.send(booted.map_err(|error| failure(&module, error, &name))));
    match LOOP.take() {
        LazyLoop::Made(event_loop) => Ok(event_loop.run(py)?),
        LazyLoop::None | LazyLoop::Wanted(..) => {
            let ended = wsgi::run(py, driver);
            // A worker that drains before it serves may not run the hook that ends the threads.
            threads.inspect(|app| app.end());
            ended
        }
    }
}

/// The arguments of `_worker.prepare`.
#[derive(IntoPyObject)]
pub(crate) struct Preparation<'py>(Bound<'py, PyDict>, HashMap<String, String>, Option<OsString>, Vec<OsString>);

impl<'py> Preparation<'py> {
    /// `path` resolves the paths of the settings. `more` has variables that the environment of this process may lack, and
    /// `overlay` has those that replace its own.
    pub(crate) fn new(
        py: Python<'py>,
        settings: &Settings,
        more: &[(String, String)],
        overlay: Overlay,
        path: impl Fn(&Path) -> PathBuf,
    ) -> PyResult<Self> {
        let environment = PyDict::new(py);
        for (name, value) in more {
            environment.set_item(PyBytes::new(py, name.as_bytes()), PyBytes::new(py, value.as_bytes()))?;
        }
        for (name, value) in std::env::vars_os() {
            environment.set_item(PyBytes::new(py, name.as_bytes()), PyBytes::new(py, value.as_bytes()))?;
        }
        for (name, value) in overlay {
            let name = PyBytes::new(py, name.as_bytes());
            match value {
                Some(value) => environment.set_item(name, PyBytes::new(py, value.as_bytes()))?,
                None if environment.contains(&name)? => environment.del_item(name)?,
                None => {}
            }
        }
        let path = |of: &PathBuf| path(of).into_os_string();
        let chdir = (!settings.chdir.as_os_str().is_empty()).then(|| path(&settings.chdir));
        let pythonpath = settings.pythonpath.iter().map(path).collect();
        Ok(Self(environment, settings.raw_env.iter().cloned().collect(), chdir, pythonpath))
    }
}

/// Returns how long the threads of the app may take to end, after what was in progress was cut. The library keeps
/// `shutdown_grace` for the end, but never more than half of the whole grace. The worker has to end before that, or the
/// master kills it and nobody learns which threads are left.
fn threads_grace(shutdown_grace: Duration, context: &WorkerContext) -> Duration {
    let kept = shutdown_grace.min(context.settings().workers.graceful_timeout / 2);
    kept.saturating_sub(END_TIME).max(kept / 4)
}

fn prepare<'py>(
    py: Python<'py>,
    context: &WorkerContext,
    settings: &Settings,
    overlay: Overlay,
) -> PyResult<Bound<'py, PyModule>> {
    let module = py.import("oxicorn._worker")?;
    module.setattr("slot", context.slot())?;
    module.setattr("generation", context.generation())?;
    module.setattr("threads_grace", threads_grace(settings.shutdown_grace, context).as_secs_f64())?;
    module.call_method0("take_sigterm")?;
    let preparation = Preparation::new(py, settings, &[], overlay, |path| context.path(path))?;
    module.getattr("prepare")?.call1(preparation.into_pyobject(py)?)?;
    logging::install(py, context.settings().log.level)?;
    Ok(module)
}

/// Imports the app, and finds out which interface it has. `compat` is what the worker needs to know of another server's
/// settings.
fn load<'py>(
    module: &Bound<'py, PyModule>,
    name: &str,
    interface: Interface,
    compat: Option<String>,
) -> PyResult<(Bound<'py, PyAny>, Interface)> {
    let load = || module.call_method1("load", (name, interface.name()))?.extract::<(Bound<'py, PyAny>, String)>();
    let (callable, found) = match compat {
        Some(compat) => {
            let worker = module.py().import("oxicorn._compat.worker")?;
            worker.call_method1("begin", (compat,))?;
            let (callable, found) = load()?;
            worker.call_method0("loaded")?;
            (worker.call_method1("wrap", (callable, &found))?, found)
        }
        None => load()?,
    };
    Ok((callable, if found == Interface::Wsgi.name() { Interface::Wsgi } else { Interface::Asgi }))
}

/// Makes the app of a worker without asyncio.
fn boot_wsgi(
    module: &Bound<'_, PyModule>,
    callable: &Bound<'_, PyAny>,
    driver: &Driver,
    (context, settings): (WorkerContext, Arc<Settings>),
) -> PyResult<Arc<WsgiApp>> {
    // The import may have set a handler of its own.
    driver.hold_sigterm()?;
    module.call_method0("raise_early_sigterm")?;
    let app = WsgiApp::new(module.py(), callable, context, &settings)?;
    module.call_method0("spare_the_collector")?;
    Ok(app)
}

/// Starts the lifespan of the app.
fn boot_asgi(
    module: &Bound<'_, PyModule>,
    callable: &Bound<'_, PyAny>,
    event_loop: &EventLoop,
    (context, settings): (WorkerContext, Arc<Settings>),
) -> PyResult<Starting> {
    let py = module.py();
    module.call_method1("hold_sigterm", (event_loop.object(py),))?;
    // A loop that the import has run, such as by `asyncio.run()`, has left its own mark.
    let current = event_loop.object(py);
    py.import("asyncio")?.call_method1("set_event_loop", (current,))?;
    let (state, slot) = (PyDict::new(py), context.slot());
    let app = bridge::App::new(py, callable, event_loop, &state, context, &settings)?;
    let mode = match settings.lifespan {
        settings::Lifespan::Auto => "auto",
        settings::Lifespan::On => "on",
        settings::Lifespan::Off => "off",
    };
    let (spec, grace) = (settings.asgi_spec.name(), settings.shutdown_grace.as_secs_f64());
    let class = py.import("oxicorn._lifespan")?.getattr("Lifespan")?;
    let lifespan = class.call1((callable, current, state, mode, spec, grace, slot))?;
    let event_loop = event_loop.handle();
    let started = event_loop.spawn(&lifespan.call_method0("start")?)?;
    Ok(Starting { app, lifespan: lifespan.unbind(), event_loop, started })
}

/// Turns an exception into the reason why the worker cannot boot.
fn failure(module: &Bound<'_, PyModule>, error: PyErr, name: &str) -> BootFailure {
    let words = error.to_string();
    let explained = module.call_method1("explain", (error.into_value(module.py()), name));
    match explained.and_then(|explained| explained.extract::<(String, Option<String>)>()) {
        Ok((sentence, details)) => with_details(sentence, details),
        // The text of an exception is made by code of the app, which may fail too.
        Err(_) => BootFailure::new(words.replace('\n', "; ")),
    }
}

fn with_details(sentence: String, details: Option<String>) -> BootFailure {
    let failure = BootFailure::new(sentence);
    match details {
        Some(details) => failure.with_details(details),
        None => failure,
    }
}
