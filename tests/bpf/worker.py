# SPDX-License-Identifier: Apache-2.0
"""A process inside a pod: runs the code it is sent and answers what `result` then is.

Started by tests.bpf.node in a network namespace and a cgroup; one JSON object a line each way.
"""

import json
import sys
import threading
import traceback

HELPERS = '''
import errno, os, socket, struct, threading, time
socket.setdefaulttimeout(5)
SO_NETNS_COOKIE, SO_COOKIE = 71, 57

def listen(host, port, family=socket.AF_INET, v6only=True, options=()):
    s = socket.socket(family)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    for level, name, value in options:
        s.setsockopt(level, name, value)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
    s.bind((host, port))
    s.listen(1024)
    return s

def original(c, level=socket.SOL_IP):
    """The original destination of an accepted socket, or the errno's name."""
    try:
        data = c.getsockopt(level, 80, 28)
    except OSError as error:
        return errno.errorcode[error.errno]
    family, port = struct.unpack("=H", data[:2])[0], struct.unpack("!H", data[2:4])[0]
    if family == socket.AF_INET:
        return [socket.inet_ntop(family, data[4:8]), port]
    return [socket.inet_ntop(family, data[8:24]), port]

def source(c, level=socket.SOL_IP):
    try:
        return list(struct.unpack("=QII", c.getsockopt(level, 82, 16)))
    except OSError as error:
        return errno.errorcode[error.errno]

def serve(listener, name, seen, reply=True):
    """Accept for ever; note what the kernel says of each connection."""
    def run():
        listener.settimeout(None)
        while True:
            try:
                c, peer = listener.accept()
            except OSError:
                return
            one = {"listener": name, "peer": peer[:2], "local": c.getsockname()[:2]}
            one.update(original=original(c), source=source(c))
            c.settimeout(5)
            try:
                one["data"] = c.recv(64).decode()
            except OSError as error:
                one["data"] = errno.errorcode.get(error.errno, str(error))
            seen.append(one)  # before the answer: who has that can ask for this
            try:
                if reply:
                    c.sendall(name.encode())
            except OSError:
                pass
            c.close()
    threading.Thread(target=run, daemon=True).start()

def serve_both(port, name, seen):
    serve(listen('0.0.0.0', port), name, seen)
    serve(listen('::', port, socket.AF_INET6), name, seen)

def attempt(host, port, send=b"hi", bind=None, family=None, options=(), recv=True, timeout=5):
    """Connect, send, receive; return what came or the errno's name."""
    s = socket.socket(family or (socket.AF_INET6 if ":" in host else socket.AF_INET))
    s.settimeout(timeout)
    try:
        for level, name, value in options:
            s.setsockopt(level, name, value)
        if bind:
            s.bind(bind)
        s.connect((host, port))
        out = {"peer": s.getpeername()[:2], "local": s.getsockname()[:2]}
        if send:
            s.sendall(send)
        if recv:
            out["data"] = s.recv(64).decode()
        return out
    except TimeoutError:
        return "TIMEOUT"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    finally:
        s.close()
'''


def main() -> None:
    scope: dict[str, object] = {"threading": threading}
    exec(HELPERS, scope)
    for line in sys.stdin:
        scope["result"] = None
        try:
            exec(json.loads(line), scope)
            answer = {"result": scope["result"]}
        except BaseException:  # noqa: BLE001 - the test shall see any fault of the code it sent
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


main()
