# SPDX-License-Identifier: Apache-2.0
"""A ztunnel that only says what reaches it, to test the node agent against; run as a program.

`agent_ztunnel.py SOCKET LOG`: connects to the ZDS socket (again and again), opens the
in-pod listeners of each pod that it gets and answers each connection with one line that
names the listener and the original destination. LOG gets one JSON line per message.
It shares no code with the agent; the messages are generated from proto/zds.proto.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import socket
import struct
import sys
import threading
import time

from mesh.proto import zds_pb2 as pb

SO_ORIGINAL_DST = 80
PORTS = {15001: "outbound", 15006: "inbound", 15008: "hbone"}
libc = ctypes.CDLL(None, use_errno=True)


class Pod:
    """The listeners in one namespace."""

    def __init__(self, fd: int) -> None:
        self.sockets: list[socket.socket] = []
        self.inode = os.fstat(fd).st_ino
        thread = threading.Thread(target=self._open, args=(fd,))
        thread.start()
        thread.join()

    def _open(self, fd: int) -> None:
        if libc.setns(fd, 0x40000000):
            raise OSError(ctypes.get_errno(), "setns")
        for family, any_address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            for port, name in PORTS.items():
                listener = socket.socket(family, socket.SOCK_STREAM)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((any_address, port))
                listener.listen(64)
                self.sockets.append(listener)
                threading.Thread(target=serve, args=(listener, name), daemon=True).start()

    def close(self) -> None:
        for listener in self.sockets:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def serve(listener: socket.socket, name: str) -> None:
    while True:
        try:
            connection, peer = listener.accept()
        except OSError:
            return
        with connection:
            if name == "outbound":
                try:
                    target = original_destination(connection)
                except OSError as error:
                    target = f"none ({error.strerror})"
            else:
                target = "{}:{}".format(*connection.getsockname()[:2])
            connection.sendall(f"ztunnel {name} {target} from {peer[0]}\n".encode())


def original_destination(connection: socket.socket) -> str:
    if connection.family == socket.AF_INET6:
        raw = connection.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
        port, ip = struct.unpack("!2xH4x16s4x", raw)
        return f"{socket.inet_ntop(socket.AF_INET6, ip)}:{port}"
    raw = connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
    port, ip = struct.unpack("!2xH4s8x", raw)
    return f"{socket.inet_ntoa(ip)}:{port}"


def main(path: str, log: str) -> None:
    pods: dict[str, Pod] = {}
    while True:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            link.connect(path)
            link.send(pb.ZdsHello(version=1).SerializeToString())
            talk(link, pods, log)
        except OSError:
            pass
        finally:
            link.close()
        time.sleep(0.05)


def talk(link: socket.socket, pods: dict[str, Pod], log: str) -> None:
    named: set[str] = set()
    while True:
        data, control, _, _ = link.recvmsg(1024, socket.CMSG_SPACE(16))
        if not data:
            return
        fds = array.array("i")
        for _, _, raw in control:
            fds.frombytes(raw)
        request = pb.WorkloadRequest.FromString(data)
        kind = request.WhichOneof("payload")
        entry: dict[str, object] = {"kind": kind}
        if kind == "add":
            info = request.add.workload_info
            entry |= {
                "uid": request.add.uid,
                "pod": f"{info.namespace}/{info.name}",
                "sa": info.service_account,
            }
            named.add(request.add.uid)
            old = pods.get(request.add.uid)
            if old is None or old.inode != os.fstat(fds[0]).st_ino:
                if old is not None:
                    old.close()
                pods[request.add.uid] = Pod(fds[0])
        elif kind == "keep":
            entry["uid"] = request.keep.uid
            named.add(request.keep.uid)
        elif kind == "del":
            entry["uid"] = getattr(request, "del").uid
            gone = pods.pop(str(entry["uid"]), None)
            if gone is not None:
                gone.close()
        else:
            for uid in set(pods) - named:
                pods.pop(uid).close()
        for fd in fds:
            os.close(fd)
        with open(log, "a") as out:
            out.write(json.dumps(entry) + "\n")
        answer = pb.WorkloadResponse()
        answer.ack.SetInParent()
        link.send(answer.SerializeToString())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
