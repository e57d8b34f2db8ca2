//! What a worker changes in its interpreter that Python itself cannot change.
//!
//! Owns: `sys.flags` of a worker. Refuses: everything that can be written in Python (`_worker.py`).

use pyo3::{ffi, prelude::*};

/// Returns a copy of `sys.flags` that says that `site` was imported. The flags have no constructor, so only C can make
/// them.
#[pyfunction]
pub(crate) fn flags_with_site(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    let flags = py.import("sys")?.getattr("flags")?;
    let kind = flags.get_type();
    let names = kind.getattr("__match_args__")?;
    let no_site = names.call_method1("index", ("no_site",))?.extract::<isize>()?;
    let fields = kind.getattr("n_fields")?.extract::<isize>()?;
    let no = 0_i32.into_pyobject(py)?.into_any();
    // SAFETY: the type is that of a struct sequence, because it is that of `sys.flags`, and so is the new object. The
    // index lies below the number of its fields. `PyStructSequence_GetItem` lends a reference, and
    // `PyStructSequence_SetItem` takes one. Every field is set before the object is used.
    #[expect(unsafe_code, reason = "Python offers no other way to make flags")]
    unsafe {
        let copy = Bound::from_owned_ptr_or_err(py, ffi::PyStructSequence_New(kind.as_type_ptr()))?;
        for at in 0..fields {
            let value = ffi::PyStructSequence_GetItem(flags.as_ptr(), at);
            let value = if at == no_site { no.as_ptr() } else { value };
            ffi::PyStructSequence_SetItem(copy.as_ptr(), at, ffi::Py_XNewRef(value));
        }
        Ok(copy)
    }
}
