//! Connects tokio with asyncio: tokio is asyncio's selector, and a request runs as a real asyncio Task.
