"""Serves the site with a server that has no command of its own: `serve.py SERVER PORT`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def bjoern(application, port):
    import bjoern

    bjoern.run(application, "127.0.0.1", port)


def pywsgi(application, port):
    from gevent.pywsgi import WSGIServer

    WSGIServer(("127.0.0.1", port), application, log=None).serve_forever()


def werkzeug(application, port):
    from werkzeug.serving import make_server

    make_server("127.0.0.1", port, application, threaded=True).serve_forever()


def wsgiref(application, port):
    from wsgiref.simple_server import make_server

    make_server("127.0.0.1", port, application).serve_forever()


if __name__ == "__main__":
    chosen, port = sys.argv[1], int(sys.argv[2])
    if chosen == "pywsgi":
        from gevent import monkey

        monkey.patch_all()
    from app import application

    globals()[chosen](application, port)
