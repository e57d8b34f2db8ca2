"""A Django project in one file, over WSGI: the admin, sessions, uploads, and static files by whitenoise.

`python django_site.py` makes its database, its one user and its static files in $HOME.
"""

import hashlib
import os
from pathlib import Path

import django
from django.conf import settings

HOME = Path(os.environ["HOME"])

settings.configure(
    SECRET_KEY="for tests",
    DEBUG=False,
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django.contrib.messages",
        "django.contrib.staticfiles",
    ],
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "whitenoise.middleware.WhiteNoiseMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": HOME / "site.db"}},
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    STATIC_URL="/static/",
    STATIC_ROOT=HOME / "static",
    STORAGES={
        "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    },
    FILE_UPLOAD_TEMP_DIR=str(HOME),
    USE_TZ=True,
)
django.setup()

from django.contrib import admin  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse  # noqa: E402
from django.urls import path  # noqa: E402
from django.views.decorators.csrf import csrf_exempt  # noqa: E402


def pid(request):
    return HttpResponse(str(os.getpid()))


def session(request):
    request.session["times"] = request.session.get("times", 0) + 1
    return JsonResponse({"times": request.session["times"]})


@csrf_exempt
def upload(request):
    file = request.FILES["file"]
    digest = hashlib.sha1()
    for piece in file.chunks():
        digest.update(piece)
    return JsonResponse({"length": file.size, "sha1": digest.hexdigest(), "note": request.POST["note"]})


def stream(request):
    return StreamingHttpResponse((f"{number}\n" for number in range(5)), content_type="text/plain")


def download(request):
    return FileResponse(open(__file__, "rb"), as_attachment=True)


def address(request, word):
    return JsonResponse({"url": request.build_absolute_uri(), "secure": request.is_secure(), "path": request.path})


urlpatterns = [
    path("admin/", admin.site.urls),
    path("pid", pid),
    path("session", session),
    path("upload", upload),
    path("stream", stream),
    path("download", download),
    path("address/<path:word>", address),
]


def make() -> None:
    """Makes the database, a user, and the static files."""
    from django.contrib.auth.models import User
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    call_command("collectstatic", verbosity=0, interactive=False)
    User.objects.create_superuser("ann", password="a password")


if __name__ == "__main__":
    make()
else:
    application = get_wsgi_application()
