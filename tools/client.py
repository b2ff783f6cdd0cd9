"""A client of a running ComfyUI server."""

import http.client
import json
import ssl
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import requests
import urllib3
import websocket
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from .failure import Failure

Workflow = dict[str, dict]
Progress = Callable[[str, dict], None]

TICK = 1.0
PATIENCE = 10.0
REQUEST_SECONDS, CONNECT_SECONDS = 60, 10
GATEWAY_ERRORS = (502, 503, 504)
AGAIN = Retry(
    2, backoff_factor=0.5, status_forcelist=GATEWAY_ERRORS, raise_on_status=False, respect_retry_after_header=False
)
"""How pictures are asked for again, within a second or two: without one of them a whole story is drawn again."""


CONNECTION_ERRORS = (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError, websocket.WebSocketException)


class Unreachable(Failure):
    """The connection failed, or a proxy says that its own did."""


class Refused(Failure):
    """The server answered with an error; `answer` is what it wrote."""

    def __init__(self, message: str, answer: bytes):
        super().__init__(message)
        self.answer = answer


class WorkflowError(Failure):
    """A node's own complaint. `node_id` and `node_type` name the node, or are "" when the server named none."""

    def __init__(self, message: str, node_id: str = "", node_type: str = ""):
        super().__init__(f"{node_type} (node {node_id}): {message}" if node_id else message)
        self.message = message
        self.node_id = node_id
        self.node_type = node_type


class Adapter(HTTPAdapter):
    """Trusts the certificates that this machine's system trusts, beside those of requests."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, ssl_context=ssl.create_default_context(), **options)


class Client:
    """Talks to the server at `url`. Raises `Failure` when nothing answers there."""

    def __init__(self, url: str):
        self.url = url.rstrip("/") if "://" in url else f"http://{url.rstrip('/')}"
        self.id = uuid.uuid4().hex
        try:
            host = urllib.parse.urlsplit(self.url).hostname
        except ValueError:
            host = None
        if not host:
            raise Failure(f"{url!r} is not a server's address: write one like http://127.0.0.1:8188.")
        self.is_local = is_loopback(host)
        self.session = requests.Session()
        self.session.trust_env = not self.is_local  # else the environment's proxy would be asked for this machine
        self.session.headers["Connection"] = "close"  # a kept connection fails where a new one would not
        self.session.mount(self.url, Adapter())
        self.session.mount(f"{self.url}/view", Adapter(max_retries=AGAIN))

    def request(self, path: str, **content: Any) -> bytes:
        """GET `path`, or POST `content` to it: the `data`, `files` and `headers` that requests takes.

        Raises `Unreachable`, and `Refused` when the server answers with an error.
        """
        method = "POST" if content else "GET"
        try:
            response = self.session.request(method, f"{self.url}{path}", timeout=REQUEST_SECONDS, **content)
        except (*CONNECTION_ERRORS, ValueError) as error:
            raise Unreachable(f"No ComfyUI answers at {self.url}: {reason(error)}.") from None
        fault = f"HTTP Error {response.status_code}: {response.reason}"
        if response.status_code in GATEWAY_ERRORS:
            raise Unreachable(f"No ComfyUI answers at {self.url}: {fault}.")
        if not response.ok:
            raise Refused(f"{self.url}{path} does not answer like ComfyUI: {fault}.", response.content)
        return response.content

    def get(self, path: str) -> dict:
        """GET `path` and return its JSON."""
        return self.parse(path, self.request(path))

    def post(self, path: str, body: dict) -> dict:
        """POST JSON to `path` and return the answer's JSON ({} when it is empty)."""
        content = {"data": json.dumps(body), "headers": {"Content-Type": "application/json"}}
        return self.parse(path, self.request(path, **content) or b"{}")

    def parse(self, path: str, answer: bytes) -> dict:
        try:
            return json.loads(answer)
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
        path = "/upload/image"
        answer = self.parse(path, self.request(path, files={"image": (name, data)}))
        return "/".join(filter(None, (answer["subfolder"], answer["name"])))

    def run(self, workflow: Workflow, progress: Progress | None = None, editor: dict | None = None) -> dict[str, dict]:
        """Run an API workflow to its end and return each output node's result, by node id.

        `editor` is the same workflow as the editor saves it, for the metadata of the pictures that it saves.
        `progress` gets the server's messages (type, data) as they come, and at least once in a second; ("", {}) is
        none. A dropped websocket loses only those.
        Leaving early, by Ctrl-C too, takes the workflow off the server. Raises `WorkflowError`.
        """
        messages = self.open_messages()
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

    def open_messages(self) -> "Messages | None":
        """The server's messages for this client, or None where websockets don't get through."""
        scheme, _, rest = self.url.partition("://")
        try:
            return Messages(f"{'wss' if scheme == 'https' else 'ws'}://{rest}/ws?clientId={self.id}", self.is_local)
        except CONNECTION_ERRORS:
            return None

    def submit(self, workflow: Workflow, editor: dict | None = None) -> str:
        """Queue a workflow; returns its prompt id. Nothing stays queued when any part of it is invalid."""
        try:
            metadata = {"extra_data": {"extra_pnginfo": {"workflow": editor}}} if editor else {}
            answer = self.post("/prompt", {"prompt": workflow, "client_id": self.id, **metadata})
        except Refused as refused:
            try:
                answer = json.loads(refused.answer)
                fault = answer["error"]
            except (ValueError, KeyError, TypeError):
                raise refused from None
            raise_node_error(answer.get("node_errors") or {})
            extra = fault["extra_info"]
            raise WorkflowError(fault["message"], extra.get("node_id", ""), extra.get("class_type", "")) from None
        if answer["node_errors"]:
            self.cancel(answer["prompt_id"])
            raise_node_error(answer["node_errors"])
        return answer["prompt_id"]

    def wait(self, prompt_id: str, messages: "Messages | None", progress: Progress) -> dict:
        """Follow a queued workflow; returns its history entry. Bears a server out of reach for `PATIENCE` seconds."""
        asked = time.monotonic()
        unreachable: float | None = None
        while True:
            ended = False
            progress("", {})
            if messages:
                try:
                    kind, data = parse_message(messages.receive(TICK))
                except CONNECTION_ERRORS:
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
        except Failure:
            pass

    def has_queued(self, prompt_id: str) -> bool:
        """Whether a workflow waits or runs on the server."""
        return any(prompt_id == item[1] for items in self.get("/queue").values() for item in items)


def clients_of(urls: Iterable[str]) -> list[Client]:
    """A client of each server, once. Raises `Failure` for what is no address."""
    return list({client.url: client for client in map(Client, urls)}.values())


def reason(error: BaseException) -> BaseException:
    """What a connection failed for, below the exceptions that libraries wrap around it."""
    while isinstance(inner := error.__cause__ or error.__context__, CONNECTION_ERRORS):
        error = inner
    return error


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


class Messages:
    """The text messages of a websocket; pings are answered, binary messages skipped.

    Raises one of `CONNECTION_ERRORS` when it can't connect and once the connection is gone.
    """

    def __init__(self, url: str, is_local: bool = False):
        options: dict[str, Any] = {"suppress_origin": True, "skip_utf8_validation": True}
        if is_local:  # a proxy that is named and then excepted: the one way to have the environment's left alone
            options |= {"http_proxy_host": "none", "http_proxy_port": 1, "http_no_proxy": ["*"]}
        self.socket = websocket.create_connection(url, CONNECT_SECONDS, **options)

    def receive(self, timeout: float) -> str | None:
        """The next text message, or None when `timeout` seconds bring none."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                opcode, data = self.socket.recv_data(control_frame=True)
            except websocket.WebSocketTimeoutException:
                return None
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                raise ConnectionError("the server closed the websocket")
            if opcode == websocket.ABNF.OPCODE_TEXT:
                return data.decode("utf-8", "replace")
        return None

    def close(self) -> None:
        self.socket.shutdown()


def saved_files(output: dict[str, Any]) -> list[dict[str, str]]:
    """The files that an output node saved for good, by what names them to the server."""
    entries = [entry for value in output.values() if isinstance(value, list) for entry in value]
    return [
        {name: entry[name] for name in ("filename", "subfolder", "type") if name in entry}
        for entry in entries
        if isinstance(entry, dict) and entry.get("type") == "output" and "filename" in entry
    ]


def images(outputs: dict[str, dict], node_ids: Iterable[str]) -> list[dict]:
    """The images that some output nodes saved, in their order."""
    return [image for node_id in node_ids for image in outputs.get(node_id, {}).get("images", [])]
