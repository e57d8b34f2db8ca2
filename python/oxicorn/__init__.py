"""oxicorn: a pre-fork supervisor and server for ASGI apps."""
