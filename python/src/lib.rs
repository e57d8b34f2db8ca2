//! The extension module `oxicorn._oxicorn`.
//!
//! Owns: the list of what Python sees of this crate. Refuses: to do anything that a user of the library could not do.
//! The crate sees only the public API of the library.

mod bridge;
mod settings;

use pyo3::prelude::*;

#[pymodule]
fn _oxicorn(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<bridge::LoopBase>()?;
    module.add("ClientDisconnected", module.py().get_type::<bridge::ClientDisconnected>())
}
