//! Listening sockets that the parent process passes to the service by the protocol of sd_listen_fds(3). They are the
//! descriptors from 3 on. `LISTEN_FDS` says how many sockets there are, and `LISTEN_PID` says which process they are
//! meant for.
//!
//! Owns: the meaning of these variables as a value of `server.bind`. Refuses: to use the sockets; `listener` does.

use std::{collections::BTreeMap, iter};

use toml::Value;

use super::{
    origin::{GivenValue, Origin},
    problem::Problem,
};

pub(crate) const LISTEN_FDS: &str = "LISTEN_FDS";
pub(crate) const LISTEN_PID: &str = "LISTEN_PID";
/// The number of the first passed descriptor, as the protocol defines it.
const FIRST: u32 = 3;

/// Returns the passed sockets as an entry of `server.bind`; `None` if there are none. If they are meant for another
/// process, they are ignored with a warning. Usually the other process is a shell that has started this one.
pub(super) fn sockets(
    env: &BTreeMap<String, String>,
    pid: u32,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) -> Option<(String, GivenValue)> {
    let count = env.get(LISTEN_FDS).filter(|count| !matches!(count.as_str(), "" | "0"))?;
    let origin = Origin::Env(LISTEN_FDS.to_owned());
    let meant_for = env.get(LISTEN_PID).map_or("", String::as_str);
    if meant_for != pid.to_string() {
        let ignored = format!("the sockets are for the process LISTEN_PID=\"{meant_for}\", not for {pid}: ignored");
        warnings.push(Problem::at(origin, "", ignored).to_string());
        return None;
    }
    let Ok(count) = count.parse::<u16>() else {
        problems.push(Problem::at(origin, "server.bind", format!("\"{count}\" is not a number of sockets")));
        return None;
    };
    let sockets = iter::successors(Some(FIRST), |number| Some(number + 1)).take(count.into());
    let value = Value::Array(sockets.map(|number| Value::String(format!("fd://{number}"))).collect());
    Some(("server.bind".to_owned(), GivenValue { value, origin }))
}
