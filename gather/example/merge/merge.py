#!/usr/bin/env python3
"""The merge of the scatter/gather example: the best K hits of all shards.

Python 3 and its standard library. The root sends a POST with one JSON object a
line: the request, an answer for each leaf as it arrives, and the end. Leaves
answer {"hits": [{"id", "score", ...}]}, and so does the merge.

    merge.py [127.0.0.1:9000 | unix:///path/to/socket]
"""
import heapq
import http.server
import json
import os
import signal
import socket
import socketserver
import sys
import urllib.parse


def order(hit):
    """The best first; equal ones by name, so that the order of arrival does not matter."""
    return -hit["score"], hit["id"]


def merge(lines):
    """Returns the answer, or None for a request that was abandoned."""
    best, k = [], 10
    for line in lines:
        part = json.loads(line)
        if "request" in part:
            k = int(urllib.parse.parse_qs(part["request"]["query"]).get("k", ["10"])[0])
        elif "end" in part:
            return {"hits": best, "reason": part["reason"], "coverage": part["coverage"]["fraction"]}
        elif part["status"] == 200:
            unique = {hit["id"]: hit for hit in best + part["body"]["hits"]}
            best = heapq.nsmallest(k, unique.values(), key=order)  # never more than K in memory
    return None


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # the root keeps its connections
    wbufsize = -1  # header and body in one packet

    def lines(self):
        """The body, line by line, while it still comes (http.server does not know chunks)."""
        rest = b""
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            *whole, rest = (rest + self.rfile.read(size)).split(b"\n")
            yield from filter(None, whole)
            self.rfile.readline()
        self.rfile.readline()

    def do_POST(self):
        answer = merge(lines := self.lines())
        if answer is None:
            self.close_connection = True
            return
        for _ in lines:  # what is left of the body, so that the connection can be used again
            pass
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class TCPServer(socketserver.ThreadingTCPServer):
    daemon_threads = allow_reuse_address = True
    request_queue_size = 256


class UnixServer(TCPServer):
    address_family = socket.AF_UNIX


def main(listen):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # as the first process of a container it would be ignored
    if listen.startswith("unix://"):
        path = listen.removeprefix("unix://")
        if os.path.exists(path):  # of an earlier start
            os.unlink(path)
        server = UnixServer(path, Handler)
    else:
        host, port = listen.rsplit(":", 1)
        server = TCPServer((host, int(port)), Handler)
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("RETINUE_MERGE_LISTEN", "127.0.0.1:9000"))
