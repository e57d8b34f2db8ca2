//! tmp
pub(crate) fn init(_: &crate::settings::Log) -> std::io::Result<()> { tracing_subscriber::fmt().with_writer(std::io::stderr).init(); Ok(()) }
pub(crate) fn reopen() {}
