//! The words in which the log says why the core recycles, drains or kills a worker.
//!
//! Owns: one short phrase for each cause. Refuses: sentences (`perform`, `exits`).

use std::fmt;

use super::core::{Cause, KillCause, RecycleCause};

impl fmt::Display for RecycleCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MaxRequests => "max_requests",
            Self::MaxAge => "max_age",
            Self::MaxRss => "max_rss",
        })
    }
}

impl fmt::Display for KillCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BootTimeout => "not ready within workers.boot_timeout",
            Self::Hung => "hung, and SIGABRT did not end it",
            Self::DrainTimeout => "not drained in time",
        })
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recycle(cause) => write!(f, "recycle: {cause}"),
            Self::Reload => f.write_str("reload"),
            Self::RollBack => f.write_str("its generation failed its trial"),
            Self::ScaleDown => f.write_str("scale down"),
            Self::Stop => f.write_str("stop"),
        }
    }
}
