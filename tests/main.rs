//! The suite: one program for all black-box tests, because fifty programs took minutes to compile and link.
//!
//! Owns: the list of promises, one module each. `cargo test --test suite drain::` runs those of one file. Refuses: anything of the
//! crate's inside; a test sees the real binary from outside.

mod chaos;
mod common;
mod corpus;
mod https;

mod abandoned;
mod access_log;
mod bad_settings;
mod balance;
mod bearer;
mod behind_proxies;
mod boot;
mod boot_failure;
mod check_deep;
mod control;
mod crash;
mod crash_loop;
mod database_down;
mod deploy;
mod docs;
mod drain;
mod examples;
mod exits;
mod facts;
mod facts_many_workers;
mod facts_survive;
mod few_files;
mod hang;
mod health;
mod http2;
mod install;
mod inherited;
mod limits;
mod master_killed;
mod metrics;
mod migrate;
mod openapi;
mod pid1;
mod privileges;
mod proxies;
mod ready;
mod real_clients;
mod recycle;
mod reload;
mod rescue;
mod scale;
mod signals;
mod slow_clients;
mod sockets;
mod stalled_output;
mod status;
mod stop;
mod strictness;
mod systemd;
mod tidy;
mod tls;
mod upgrade;
mod upgrade_connections;
mod upgrade_version;
mod user_service;
mod which_service;
mod zero_loss;
