"""A configuration of Gunicorn with every hook. Each says its name in the file that ORDER names."""

import os

workers = 2


def say(name, *values):
    with open(os.environ["ORDER"], "a") as file:
        print(name, *values, file=file)


def on_starting(server):
    say("on_starting", server.num_workers)


def on_reload(server):
    say("on_reload", server.num_workers)


def when_ready(server):
    say("when_ready")


def pre_fork(server, worker):
    say("pre_fork", worker.age, worker.pid)


def post_fork(server, worker):
    say("post_fork", worker.age, worker.pid == os.getpid())


def post_worker_init(worker):
    say("post_worker_init", worker.age)


def worker_int(worker):
    say("worker_int", worker.age)


def worker_abort(worker):
    say("worker_abort", worker.age)


def pre_exec(server):
    say("pre_exec")


def child_exit(server, worker):
    say("child_exit", worker.age, worker.pid in server.WORKERS)


def worker_exit(server, worker):
    say("worker_exit", worker.age)


def nworkers_changed(server, new, old):
    say("nworkers_changed", new, old)


def on_exit(server):
    say("on_exit")
