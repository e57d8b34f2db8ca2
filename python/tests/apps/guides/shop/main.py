"""The FastAPI app of the guides: what a team has when it moves. It knows nothing of its server."""

import os

from fastapi import FastAPI, Request

app = FastAPI()


@app.get("/")
async def root():
    return {"hello": "world"}


@app.get("/pid")
async def pid():
    return os.getpid()


@app.get("/client")
async def client(request: Request):
    peer = request.client.host if request.client else None
    return {"client": peer, "scheme": request.url.scheme, "host": request.headers["host"]}


@app.post("/echo")
async def echo(request: Request):
    return {"body": (await request.body()).decode(), "query": str(request.query_params)}


def create_app():
    return app
