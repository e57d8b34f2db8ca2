//! tmp
mod core;
