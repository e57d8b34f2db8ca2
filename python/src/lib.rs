//! The extension module `oxicorn._oxicorn`.
//!
//! Owns: the list of what Python sees of this crate. Refuses: to do anything that a user of the library could not do.
//! The crate sees only the public API of the library.

mod bridge;

use pyo3::prelude::*;

#[pymodule]
fn _oxicorn(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
