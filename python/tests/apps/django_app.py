"""Django over ASGI, with web sockets by Channels: what the tests of frameworks ask of each."""

import asyncio
import hashlib

import django
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import JsonResponse, StreamingHttpResponse
from django.urls import path

from toolkit import record

settings.configure(
    ALLOWED_HOSTS=["*"],
    DEBUG=False,
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware", "django_app.stamp"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of the tests",
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
)
django.setup()


def stamp(get_response):
    from asgiref.sync import iscoroutinefunction, markcoroutinefunction

    async def middleware(request):
        response = await get_response(request)
        response["x-middleware"] = "yes"
        return response

    if iscoroutinefunction(get_response):
        markcoroutinefunction(middleware)
    return middleware


stamp.async_capable, stamp.sync_capable = True, False


async def of_async(request):
    await asyncio.sleep(0)
    return JsonResponse({"kind": "async"})


def of_sync(request):
    return JsonResponse({"kind": "sync"})


async def stream(request):
    async def parts():
        for number in range(3):
            yield f"part {number}\n"
            await asyncio.sleep(0.01)

    return StreamingHttpResponse(parts(), content_type="text/plain")


def upload(request):
    content = request.FILES["file"].read()
    return JsonResponse({"size": len(content), "sha256": hashlib.sha256(content).hexdigest()})


tasks = set()


async def background(request):
    async def later():
        await asyncio.sleep(0.05)
        record("background")

    task = asyncio.create_task(later())
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return JsonResponse({})


def session(request):
    request.session["count"] = request.session.get("count", 0) + 1
    return JsonResponse({"count": request.session["count"]})


class Echo(AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        await self.send(text_data.upper())


urlpatterns = [
    path("async", of_async),
    path("sync", of_sync),
    path("stream", stream),
    path("upload", upload),
    path("background", background),
    path("session", session),
]

app = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": URLRouter([path("echo", Echo.as_asgi())])})
