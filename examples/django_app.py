"""A Django project in one file, behind guards: a search, and an export that is slow to make.

Run    gunicorn --workers 2 --chdir examples django_app:application
and    for i in 1 2 3 4 5 6; do curl -so/dev/null -w '%{http_code} ' 127.0.0.1:8000/search; done
to see `200` five times and then `429`, whichever worker was asked. Two exports at once,
       for i in 1 2; do curl -so/dev/null -w '%{http_code} ' 127.0.0.1:8000/export & done; wait
give one `200` and one `503`.
"""

import time

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

import guardrails
from guardrails import BlockAgents, MaxConcurrentReqs, SpeedLimit

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for this example only",  # noqa: S106 - nothing here is signed
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        # Each refusal is a line at INFO.
        "loggers": {"guardrails": {"handlers": ["console"], "level": "INFO"}},
    },
)


def front_page(request):
    return HttpResponse("Try /search and /export.\n", content_type="text/plain")


def search(request):
    return HttpResponse("Nothing was found.\n", content_type="text/plain")


def export(request):
    time.sleep(1)
    return HttpResponse("a,b\n1,2\n", content_type="text/csv")


urlpatterns = [path("", front_page), path("search", search), path("export", export)]

application = guardrails.throttle(
    get_wsgi_application(),
    BlockAgents("zgrab", "EmailSiphon"),
    SpeedLimit("120/minute"),
    SpeedLimit("5/minute", path="/search"),
    MaxConcurrentReqs(1, path="/export"),
    exempt_paths=["/static/"],
    trusted_proxies=(),  # nothing stands in front; behind nginx on this host: ["loopback"]
)
