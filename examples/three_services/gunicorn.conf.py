"""Two gthread workers: as many servers run in front of WSGI apps."""

workers = 2
worker_class = "gthread"
threads = 4
graceful_timeout = 3
# The control socket of newer gunicorns would be a file outside of the demo's own folder.
control_socket_disable = True
