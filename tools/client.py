"""A client of a running ComfyUI server, in the standard library alone."""

import base64
import hashlib
import http.client
import json
import os
import socket
import ssl
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterable

from .failure import Failure

Workflow = dict[str, dict]
Progress = Callable[[str, dict], None]

TICK = 1.0
PATIENCE = 10.0
GATEWAY_ERRORS = (502, 503, 504)


class Unreachable(Failure):
    """The connection failed, or a proxy says that its own did."""


class WorkflowError(Failure):
    """A node's own complaint. `node_id` and `node_type` name the node, or are "" when the server named none."""

    def __init__(self, message: str, node_id: str = "", node_type: str = ""):
        super().__init__(f"{node_type} (node {node_id}): {message}" if node_id else message)
        self.message = message
        self.node_id = node_id
        self.node_type = node_type


class Client:
    """Talks to the server at `url`. Raises `Failure` when nothing answers there."""

    def __init__(self, url: str):
        self.url = url.rstrip("/") if "://" in url else f"http://{url.rstrip('/')}"
        self.id = uuid.uuid4().hex
        host = urllib.parse.urlsplit(self.url).hostname
        if not host:
            raise Failure(f"{url!r} is not a server's address: write one like http://127.0.0.1:8188.")
        direct = [urllib.request.ProxyHandler({})] if is_loopback(host) else []
        self.opener = urllib.request.build_opener(*direct)

    def request(self, path: str, body: bytes | None = None, content_type: str = "application/json") -> bytes:
        """GET `path`, or POST `body` to it. Raises `Unreachable`, and `urllib.error.HTTPError` for a refusal."""
        request = urllib.request.Request(f"{self.url}{path}", body, {"Content-Type": content_type} if body else {})
        try:
            with self.opener.open(request, timeout=60) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            if error.code not in GATEWAY_ERRORS:
                raise
            raise Unreachable(f"No ComfyUI answers at {self.url}: {error}.") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Unreachable(f"No ComfyUI answers at {self.url}: {getattr(error, 'reason', error)}.") from None

    def get(self, path: str) -> dict:
        """GET `path` and return its JSON."""
        try:
            return json.loads(self.request(path))
        except (urllib.error.HTTPError, ValueError) as error:
            raise Failure(f"{self.url}{path} does not answer like ComfyUI: {error}.") from None

    def post(self, path: str, body: dict) -> dict:
        """POST JSON to `path` and return the answer's JSON ({} when it is empty)."""
        answer = self.request(path, json.dumps(body).encode())
        try:
            return json.loads(answer or b"{}")
        except ValueError as error:
            raise Failure(f"{self.url}{path} does not answer like ComfyUI: {error}.") from None

    def choices(self, node_type: str, name: str) -> list[str] | None:
        """What a node's combo input offers on this server, or None when the server lacks that node."""
        info = self.get(f"/object_info/{urllib.parse.quote(node_type)}").get(node_type)
        if info is None:
            return None
        kind, *options = {**info["input"].get("required", {}), **info["input"].get("optional", {})}[name]
        return kind if isinstance(kind, list) else options[0]["options"]

    def download(self, image: dict) -> bytes:
        """The bytes of an image that a node's output names."""
        return self.request(f"/view?{urllib.parse.urlencode(image)}")

    def upload(self, name: str, data: bytes) -> str:
        """Put an image into the server's input folder; returns the name that LoadImage takes."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        body = head.encode() + data + f"\r\n--{boundary}--\r\n".encode()
        answer = json.loads(self.request("/upload/image", body, f"multipart/form-data; boundary={boundary}"))
        return "/".join(filter(None, (answer["subfolder"], answer["name"])))

    def run(self, workflow: Workflow, progress: Progress | None = None, editor: dict | None = None) -> dict[str, dict]:
        """Run an API workflow to its end and return each output node's result, by node id.

        `editor` is the same workflow as the editor saves it, for the metadata of the pictures that it saves.
        `progress` gets the server's messages (type, data) as they come, and at least once in a second; ("", {}) is
        none. A dropped websocket loses only those.
        Leaving early, by Ctrl-C too, takes the workflow off the server. Raises `WorkflowError`.
        """
        messages = self.open_websocket()
        try:
            prompt_id = self.submit(workflow, editor)
            try:
                entry = self.wait(prompt_id, messages, progress or (lambda kind, data: None))
            except BaseException:
                self.cancel(prompt_id)
                raise
        finally:
            if messages:
                messages.close()
        raise_error(entry["status"])
        return entry["outputs"]

    def open_websocket(self) -> "WebSocket | None":
        """The server's message stream for this client, or None where websockets don't get through."""
        url = urllib.parse.urlsplit(self.url)
        scheme = "wss" if url.scheme == "https" else "ws"
        try:
            return WebSocket(f"{scheme}://{url.netloc}{url.path}/ws?clientId={self.id}")
        except OSError:
            return None

    def submit(self, workflow: Workflow, editor: dict | None = None) -> str:
        """Queue a workflow; returns its prompt id. Nothing stays queued when any part of it is invalid."""
        try:
            metadata = {"extra_data": {"extra_pnginfo": {"workflow": editor}}} if editor else {}
            answer = self.post("/prompt", {"prompt": workflow, "client_id": self.id, **metadata})
        except urllib.error.HTTPError as error:
            try:
                answer = json.loads(error.read())
                fault = answer["error"]
            except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
                raise Failure(f"{self.url} refused the workflow: {error}.") from None
            raise_node_error(answer.get("node_errors") or {})
            extra = fault["extra_info"]
            raise WorkflowError(fault["message"], extra.get("node_id", ""), extra.get("class_type", "")) from None
        if answer["node_errors"]:
            self.cancel(answer["prompt_id"])
            raise_node_error(answer["node_errors"])
        return answer["prompt_id"]

    def wait(self, prompt_id: str, messages: "WebSocket | None", progress: Progress) -> dict:
        """Follow a queued workflow; returns its history entry. Bears a server out of reach for `PATIENCE` seconds."""
        asked = time.monotonic()
        unreachable: float | None = None
        while True:
            ended = False
            progress("", {})
            if messages:
                try:
                    kind, data = parse_message(messages.receive(TICK))
                except OSError:
                    messages.close()
                    messages = None
                    continue
                if data.get("prompt_id") == prompt_id:
                    progress(kind, data)
                    ended = kind == "executing" and data["node"] is None
            else:
                time.sleep(TICK)
            if ended or unreachable or time.monotonic() - asked > (PATIENCE if messages else 0):
                asked = time.monotonic()
                try:
                    if entry := self.finished(prompt_id):
                        return entry
                    unreachable = None
                except Unreachable:
                    now = time.monotonic()
                    unreachable = unreachable or now
                    if now - unreachable > PATIENCE:
                        raise

    def finished(self, prompt_id: str) -> dict | None:
        """A workflow's history entry, or None while it waits or runs."""
        path = f"/history/{prompt_id}"
        entry = self.get(path).get(prompt_id)
        if not entry and not self.has_queued(prompt_id):
            entry = self.get(path).get(prompt_id)
            if not entry:
                raise Failure(f"{self.url} no longer knows the workflow it was given: it was removed or restarted.")
        return entry

    def cancel(self, prompt_id: str) -> None:
        """Take a workflow off the server, queued or running. A server that is gone needs nothing taken off."""
        try:
            self.post("/queue", {"delete": [prompt_id]})
            deadline = time.monotonic() + PATIENCE
            # A workflow that is just starting forgets an interruption: ask until it is gone.
            while self.has_queued(prompt_id) and time.monotonic() < deadline:
                self.post("/interrupt", {"prompt_id": prompt_id})
                time.sleep(0.2)
        except (Failure, urllib.error.HTTPError):
            pass

    def has_queued(self, prompt_id: str) -> bool:
        """Whether a workflow waits or runs on the server."""
        return any(prompt_id == item[1] for items in self.get("/queue").values() for item in items)


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def raise_node_error(node_errors: dict[str, dict]) -> None:
    """Raise the first of a validation's errors."""
    for node_id, node in node_errors.items():
        for error in node["errors"]:
            message, details = error["message"], error.get("details", "")
            if error["type"] == "custom_validation_failed":
                message = details.partition(" - ")[2] or details
            elif details:
                message = f"{message}: {details}"
            raise WorkflowError(message, node_id, node.get("class_type", ""))


def raise_error(status: dict) -> None:
    """Raise what stopped a workflow, if anything did."""
    for kind, data in status["messages"]:
        if kind == "execution_error":
            message = data["exception_message"].strip() or data["exception_type"]
            raise WorkflowError(message, str(data["node_id"]), data["node_type"])
        if kind == "execution_interrupted":
            raise WorkflowError("The workflow was interrupted on the server.")


def parse_message(text: str | None) -> tuple[str, dict]:
    """A server message's type and data; ("", {}) for silence and for what other packs send in their own format."""
    message = json.loads(text) if text else {}
    data = message.get("data")
    return message.get("type", ""), data if isinstance(data, dict) else {}


class WebSocket:
    """The receiving end of a websocket (RFC 6455): text messages only; pings are answered, binary messages skipped.

    Raises `OSError` when it can't connect and once the connection is gone.
    """

    def __init__(self, url: str):
        parts = urllib.parse.urlsplit(url)
        secure = parts.scheme == "wss"
        address = (parts.hostname, parts.port or (443 if secure else 80))
        self.socket = socket.create_connection(address, timeout=10)
        self.buffer = b""
        self.text: list[bytes] = []
        self.is_text = False
        try:
            if secure:
                self.socket = ssl.create_default_context().wrap_socket(self.socket, server_hostname=parts.hostname)
            self.shake_hands(f"{parts.path}?{parts.query}", parts.netloc.rpartition("@")[2])
        except BaseException:
            self.socket.close()
            raise

    def shake_hands(self, path: str, host: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self.buffer:
            self.read_more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        accept = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
        if status.split()[1:2] != ["101"] or headers.get("sec-websocket-accept") != base64.b64encode(accept).decode():
            raise ConnectionError(f"no websocket there: {status}")

    def receive(self, timeout: float) -> str | None:
        """The next text message, or None when `timeout` seconds bring none."""
        deadline = time.monotonic() + timeout
        while True:
            frame = self.take_frame()
            if frame is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self.socket.settimeout(left)
                try:
                    self.read_more()
                except TimeoutError:
                    return None
                continue
            final, opcode, payload = frame
            if opcode == 0x8:
                raise ConnectionError("the server closed the websocket")
            if opcode == 0x9:
                self.send(0xA, payload)
            elif opcode < 0x8:
                if opcode:
                    self.is_text = opcode == 0x1
                    self.text = []
                self.text.append(payload)
                if final and self.is_text:
                    return b"".join(self.text).decode()

    def take_frame(self) -> tuple[bool, int, bytes] | None:
        """Cut one whole frame off the buffer: (final, opcode, payload); None while it isn't whole yet."""
        if len(self.buffer) < 2:
            return None
        start, size = 2, self.buffer[1] & 0x7F
        if size > 125:
            start += 2 if size == 126 else 8
            if len(self.buffer) < start:
                return None
            (size,) = struct.unpack(">H" if start == 4 else ">Q", self.buffer[2:start])
        if len(self.buffer) < start + size:
            return None
        first, payload = self.buffer[0], self.buffer[start : start + size]
        self.buffer = self.buffer[start + size :]
        return bool(first & 0x80), first & 0x0F, payload

    def read_more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server dropped the websocket")
        self.buffer += data

    def send(self, opcode: int, payload: bytes) -> None:
        """Send one masked control frame (its payload is at most 125 bytes)."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self.socket.sendall(bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + masked)

    def close(self) -> None:
        self.socket.close()


def images(outputs: dict[str, dict], node_ids: Iterable[str]) -> list[dict]:
    """The images that some output nodes saved, in their order."""
    return [image for node_id in node_ids for image in outputs.get(node_id, {}).get("images", [])]
