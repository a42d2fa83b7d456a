#!/usr/bin/env python3
"""Does one step of work after the other while this replica leads. Needs Python 3.7 on Linux, and no package."""
import contextlib, http.client, json, os, signal, socket, sys, threading, time, uuid

(scheme, place), election = os.environ["RETINUE_ELECTOR_ADDR"].split("://"), os.environ.get("ELECTION", "leader")
candidate = f"{socket.gethostname()}-{uuid.uuid4().hex[:6]}"  # no other candidate may have it
clock = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)  # it goes on while the machine sleeps

def ask(method, verb, body=None, timeout=None):
    connection = http.client.HTTPConnection("localhost" if scheme == "unix" else place, timeout=timeout)
    if scheme == "unix":
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(timeout)
        connection.sock.connect(place)
    connection.request(method, f"/v1/elections/{election}/{verb}", json.dumps(body) if body else None)
    return connection.getresponse()

def lead(token):
    tether = ask("GET", f"hold?token={token}")  # while it is open, and read, the elector knows that this process lives
    threading.Thread(target=all, args=(tether,), daemon=True).start()
    while True:
        asked = clock()
        answer = ask("POST", "renew", {"token": token}, timeout=1)
        grant = json.load(answer)
        left = asked + grant.get("remaining_ms", 0) / 1000 - clock()
        if answer.status != 200 or grant.get("stepdown") or left <= 0:
            return
        print(f"working token={token}", flush=True)  # one step, over when `left` seconds are; fence its writes with the token
        time.sleep(min(left, 0.2))

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True:
    with contextlib.suppress(OSError, http.client.HTTPException):
        token = json.load(ask("POST", "become", {"id": candidate, "lease_ms": 5000})).get("token", 0)
        try:
            lead(token)
        finally:  # on SIGTERM too, and whatever comes of it
            with contextlib.suppress(Exception):
                ask("POST", "resign", {"token": token}, timeout=2)
    time.sleep(0.2)
