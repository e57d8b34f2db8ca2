"""A Pyramid app."""

from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPFound
from pyramid.response import FileResponse, Response


def hello(request):
    return {"name": request.matchdict["name"], "query": request.params.get("q"), "url": request.url}


def form(request):
    return {"name": request.POST["name"], "file": request.POST["file"].file.read().decode()}


def file(request):
    return FileResponse(__file__, request=request, content_type="text/x-python")


def items(request):
    return Response(app_iter=(piece for piece in (b"one ", b"two")), content_type="text/plain")


def away(request):
    raise HTTPFound(location="/hello/there")


def main(global_config=None, **settings):
    with Configurator(settings=settings) as config:
        for path, view, renderer in (
            ("/hello/{name}", hello, "json"),
            ("/form", form, "json"),
            ("/file", file, None),
            ("/items", items, None),
            ("/away", away, None),
        ):
            config.add_route(view.__name__, path)
            config.add_view(view, route_name=view.__name__, renderer=renderer)
        return config.make_wsgi_app()
