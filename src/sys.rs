//! The moat: every line of `unsafe` in the project is in this folder, behind safe, owned types.
#![allow(unsafe_code)]

pub(crate) mod host;
