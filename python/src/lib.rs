//! The extension module `oxicorn._oxicorn`.
//!
//! Owns: the list of what Python sees of this crate. Refuses: to do anything that a user of the library could not do.
//! The crate sees only the public API of the library.

mod boot;
mod bridge;
mod compat;
mod helper;
mod hooks;
mod interpreter;
mod logging;
mod program;
mod runtime;
mod service;
mod settings;
mod told;
mod upgrade;
mod wsgi;

use pyo3::prelude::*;

#[pymodule]
mod _oxicorn {
    use super::{Bound, PyModule, PyModuleMethods, PyResult};
    #[pymodule_export]
    use super::{
        boot::make_event_loop,
        bridge::{ClientDisconnected, LoopBase, WebSocketChannel},
        interpreter::flags_with_site,
        logging::{SharedStream, want_access_records},
        program::main,
        told::{hook_failed, lifespan_failed, lifespan_unsupported, pre_fork_missed, threads_left},
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
