"""What `pre_fork` gives to the worker that is forked then.

The worker is not forked from the process of the hooks, so it asks that process: by a socket without a file, whose name
is in what each worker gets to know. It gets the attributes that hooks have set on `worker` and on `server`, as far as
JSON has them, and what they have changed in `os.environ`.

Owns: this question and its answer. Refuses: to call the hook (`hooks`).
"""

import json
import os
import socket
import struct

#: How long a worker waits for the hook, in seconds.
PATIENCE = 5.0


class Door:
    """The end of the process of the hooks. Its descriptor is readable when a worker asks."""

    def __init__(self):
        self.name = f"oxicorn-{os.getpid()}-{os.urandom(8).hex()}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"\0{self.name}")
        self._listener.listen(128)
        self._waiting = []
        #: What each pre_fork has set on its worker, by the worker's age.
        self._given = {}
        self._environ = dict(os.environ)

    def fileno(self):
        return self._listener.fileno()

    def accept(self, server):
        """Lets a worker in. Any user may know the name of the socket, so it has to be a child of the master."""
        connection, _ = self._listener.accept()
        pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        connection.settimeout(1.0)
        try:
            age = int(connection.recv(16)) if _parent_of(pid) == server.pid else 0
        except (OSError, ValueError):
            age = 0
        if age:
            self._waiting.append((age, connection))
            self.answer(server)
        else:
            connection.close()

    def answer(self, server, worker=None):
        """Answers the workers whose pre_fork is over. `worker` is the one that it was called with last."""
        if worker is not None:
            self._given[worker.age] = worker.of_hooks()
        for entry in [entry for entry in self._waiting if entry[0] in self._given]:
            self._waiting.remove(entry)
            age, connection = entry
            now, before = os.environ, self._environ
            told = {
                "worker": self._given.pop(age),
                "server": server.of_hooks(),
                "set": {name: value for name, value in now.items() if before.get(name) != value},
                "unset": [name for name in before if name not in now],
            }
            try:
                connection.sendall(json.dumps(told).encode())
            except OSError:
                # The worker has ended.
                pass
            connection.close()

    def forget(self, worker):
        """Forgets what a worker has not asked for before its end."""
        self._given.pop(worker.age, None)


def _parent_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def ask(name, server, worker):
    """Waits for the pre_fork of this worker, and takes what it gives."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(f"\0{name}")
        connection.sendall(str(worker.age).encode())
        text = b""
        while part := connection.recv(65536):
            text += part
    told = json.loads(text)
    vars(worker).update(told["worker"])
    vars(server).update(told["server"])
    os.environ.update(told["set"])
    for variable in told["unset"]:
        os.environ.pop(variable, None)
