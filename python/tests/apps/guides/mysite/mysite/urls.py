"""The Django project of the guides, with the answers of the other apps."""

import os

from django.http import HttpResponse, JsonResponse
from django.urls import path


def root(request):
    return JsonResponse({"hello": "world"})


def pid(request):
    return HttpResponse(os.getpid())


def client(request):
    return JsonResponse(
        {"client": request.META.get("REMOTE_ADDR"), "scheme": request.scheme, "host": request.get_host()}
    )


def echo(request):
    return JsonResponse({"body": request.body.decode(), "query": request.META["QUERY_STRING"]})


urlpatterns = [path("", root), path("pid", pid), path("client", client), path("echo", echo)]
