"""An origin that counts what it executes, and says so.

A POST is an execution. It is counted when it begins, with its key, and runs to its end even if its client has left:

    x-origin-hold: NAME      runs until POST /release/NAME
    x-origin-delay-ms: N     runs for so long

GET /count   executions, keys, and the most executions of one key
GET /log     all executions, in order: key, attempt, begin and end in seconds since the origin began

Needs only the standard library. Its counts end with its process; `began` distinguishes one process from the next.
"""

import collections
import json
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BEGAN = time.time()
# A hold that is never released ends with the client's timeout.
LONGEST_HOLD = 60

changed = threading.Condition()
executions = []
released = set()


def now():
    return round(time.time() - BEGAN, 3)


class Origin(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body of an answer are two writes: without this, each waits for the other's acknowledgement.
    disable_nagle_algorithm = True

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path.startswith("/release/"):
            with changed:
                released.add(self.path.removeprefix("/release/"))
                changed.notify_all()
            return self.answer(200, {})
        with changed:
            execution = {
                # Requests without a key of their own are distinguished by their path.
                "key": self.headers.get("idempotency-key", self.path),
                "attempt": self.headers.get("idempotency-attempt"),
                "began": now(),
                "ended": None,
            }
            executions.append(execution)
            number = len(executions)
            hold = self.headers.get("x-origin-hold")
            if hold:
                changed.wait_for(lambda: hold in released, LONGEST_HOLD)
        time.sleep(int(self.headers.get("x-origin-delay-ms", 0)) / 1000)
        with changed:
            execution["ended"] = now()
        self.answer(201, {"execution": number})

    def do_GET(self):
        with changed:
            log = [dict(execution) for execution in executions]
        if self.path == "/log":
            self.answer(200, {"began": BEGAN, "executions": log})
        elif self.path == "/count":
            per_key = collections.Counter(execution["key"] for execution in log)
            most = max(per_key.values(), default=0)
            self.answer(200, {"executions": len(log), "keys": len(per_key), "most_of_one_key": most})
        else:
            self.answer(404, {})

    def answer(self, status, value):
        body = (json.dumps(value) + "\n").encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Silent: the log is at /log."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    # This origin must detect bursts of duplicates that all run: none may be refused instead.
    request_queue_size = 1024

    def handle_error(self, request, client_address):
        """An Envoy that was ended while its request ran is no error of the origin's."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


# The first process of a container has no default action for this signal, so stopping it would take until a timeout.
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
Server(("", 9000), Origin).serve_forever()
