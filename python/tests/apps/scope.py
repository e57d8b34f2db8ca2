"""Answers each request, and each web socket, with its scope."""

import json

from toolkit import Routes, answer, plain

app = Routes()
lifespan_scope = {}
live_state = {}


async def lifespan(scope, receive, send):
    lifespan_scope.update({key: value for key, value in scope.items() if key != "state"})
    state = scope["state"]
    state["number"] = 1
    state["shared"] = []
    live_state["dict"] = state
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


app.lifespan = lifespan


class Scope:
    """Every path answers the scope; some also change the state."""

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": json.dumps(plain(scope), default=repr)})
            await send({"type": "websocket.close"})
        else:
            if scope["path"].endswith("/change-state"):
                scope["state"]["of this request"] = True
                scope["state"]["shared"].append(scope["query_string"].decode())
            if scope["path"].endswith("/refresh"):
                # A background task of the app keeps the dict of its lifespan and adds to it later.
                live_state["dict"]["added later"] = True
            if scope["path"].endswith("/lifespan"):
                await answer(send, lifespan_scope)
            else:
                await answer(send, scope)


app_with_scope = Scope()
