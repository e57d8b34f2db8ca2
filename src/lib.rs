//! oxicorn: a master that only decides and forks; workers that only serve.

mod app;
mod listener;
mod log;
mod scoreboard;
pub mod settings;
mod sys;

pub use app::{Body, IntoLifespan, Lifespan, WorkerContext};
