//! tmp
mod core;
#[cfg(test)]
mod sim;
